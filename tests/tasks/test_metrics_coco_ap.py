"""COCO statistics: equal to pycocotools, silent, and refusing what pycocotools would swallow."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from goldens import COMMITTED, metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.coco_ap import BACKENDS, coco_ap
from beit3_bench.tasks.metrics.coco_truth import rle_pixels


def backend_or_skip(backend):
    if backend == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval")
    return backend


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("part", ["real", "synthetic"])
def test_statistics_equal_the_golden_per_category_too(part, iou_type, backend):
    folder = metrics_golden("detection")
    expected = json.loads((folder / "expected.json").read_text())[part][iou_type]
    annotations = json.loads((folder / part / "instances.json").read_text())
    detections = json.loads((folder / part / f"{iou_type}_results.json").read_text())
    scores = coco_ap(annotations, detections, iou_type, backend=backend_or_skip(backend))
    assert scores.metrics == pytest.approx({f"{iou_type}/{k}": v for k, v in expected["stats"].items()}, abs=1e-12)
    for category in annotations["categories"]:
        wanted = expected["per_category_AP"][category["name"]]
        assert scores.per_category[category["id"]] == pytest.approx(
            np.nan if wanted is None else wanted, abs=1e-12, nan_ok=True
        )
    sums = {k: float(v) for k, v in scores.table.sums().items()}
    assert sums == pytest.approx(scores.metrics, abs=1e-12)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_statistics_equal_those_that_detectron2_reports(iou_type):
    folder = COMMITTED / "detectron2" / "ops"
    annotations, detections, expected = (
        json.loads((folder / f"coco_{name}.json").read_text()) for name in ("gt", "detections", "metrics")
    )
    scores = coco_ap(annotations, detections, iou_type)
    names = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "AP_small", "APm": "AP_medium", "APl": "AP_large"}
    official = expected["official"][iou_type]
    for theirs, ours in names.items():
        wanted = -1 if official[theirs] is None or np.isnan(official[theirs]) else official[theirs] / 100
        assert scores.metrics[f"{iou_type}/{ours}"] == pytest.approx(wanted, abs=1e-9)


def world(seed=0, images=3):
    """A few boxes per image with their masks as polygons, and detections near them; scores are all different."""
    random = np.random.default_rng(seed)
    truth = {"images": [], "annotations": [], "categories": [{"id": c, "name": f"kind {c}"} for c in (1, 4, 9)]}
    detections = []
    for i in range(images):
        truth["images"].append({"id": 10 + i, "height": 200, "width": 240})
        for _ in range(random.integers(0, 7)):
            w, h = random.choice([12.0, 50.0, 110.0], 2)
            x, y = random.uniform(0, 240 - w), random.uniform(0, 200 - h)
            category, crowd = int(random.choice([1, 4, 9])), int(random.random() < 0.15)
            polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            segmentation = mask.merge(mask.frPyObjects(polygon, 200, 240))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": 10 + i,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": crowd,
                    "segmentation": {"size": [200, 240], "counts": segmentation["counts"].decode()}
                    if crowd
                    else polygon,
                }
            )
            for _ in range(random.integers(0, 4)):
                box = np.array([x, y, w, h]) + random.normal(0, 3, 4)
                box[2:] = np.abs(box[2:]) + 1
                kind = category if random.random() < 0.8 else int(random.choice([1, 4, 9]))
                detections.append({"image_id": 10 + i, "category_id": kind, "bbox": [float(v) for v in box]})
    for record, score in zip(detections, random.permutation(len(detections)), strict=True):
        x, y, w, h = record["bbox"]
        rle = mask.merge(mask.frPyObjects([[x, y, x + w, y, x + w, y + h, x, y + h]], 200, 240))
        record["segmentation"] = {"size": [200, 240], "counts": rle["counts"].decode()}
        record["score"] = (int(score) + 1) / (len(detections) + 1)
    return truth, detections


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(20, 28))
def test_back_ends_agree_on_ties_crowds_and_crowded_images(seed, iou_type, backend):
    truth, detections = world(seed, images=12)
    random = np.random.default_rng(seed)
    for record in detections:
        record["score"] = round(record["score"], int(random.integers(0, 3)))
    for record in truth["annotations"]:  # several objects for a detection to choose from, and equal overlaps
        if random.random() < 0.5:
            record["category_id"] = 4
    for record in list(truth["annotations"])[::3]:
        number = len(truth["annotations"]) + 1
        truth["annotations"].append(copy.deepcopy(record) | {"id": number, "area": float(random.choice([500, 2000]))})
    own, theirs = (coco_ap(truth, detections, iou_type, backend=b) for b in ("own", backend_or_skip(backend)))
    assert own.metrics == pytest.approx(theirs.metrics, abs=1e-12)
    assert own.per_category == pytest.approx(theirs.per_category, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_the_ap_of_an_image_by_itself_is_that_of_scoring_it_alone(seed, iou_type):
    truth, detections = world(seed + 40, images=9)
    wanted = {}
    for image in truth["images"]:
        own = [d for d in detections if d["image_id"] == image["id"]]
        value = coco_ap(truth, own, iou_type, [image["id"]], backend="pycocotools").metrics[f"{iou_type}/AP"]
        if value != -1:
            wanted[image["id"]] = value
    assert len(set(wanted.values())) > 1
    assert coco_ap(truth, detections, iou_type).per_image == pytest.approx(wanted, abs=1e-12)


def test_inputs_are_left_alone_and_nothing_is_printed(capsys):
    truth, detections = world()
    before = copy.deepcopy((truth, detections))
    for iou_type in ("segm", "bbox"):
        coco_ap(truth, detections, iou_type)
    assert (truth, detections) == before
    assert capsys.readouterr() == ("", "")


def test_a_coco_object_is_taken_as_well(capsys):
    from pycocotools.coco import COCO

    truth, detections = world(1)
    index = COCO()
    index.dataset = copy.deepcopy(truth)
    index.createIndex()
    assert coco_ap(index, detections, "segm").metrics == coco_ap(truth, detections, "segm").metrics


def test_the_size_of_a_mask_is_that_of_the_mask_even_beside_a_box():
    """A detection's area decides which size ranges it counts for; a box in the record must not."""
    truth, detections = world(2, images=6)
    bare = [{k: v for k, v in record.items() if k != "bbox"} for record in detections]
    assert coco_ap(truth, detections, "segm").metrics == coco_ap(truth, bare, "segm").metrics


def test_uncompressed_masks_score_like_compressed_ones():
    truth, detections = world(3)
    plain = copy.deepcopy(detections)
    for record in plain:
        pixels = mask.decode(record["segmentation"]).ravel(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], pixels]))).tolist()
        record["segmentation"]["counts"] = np.diff([0, *edges, len(pixels)]).tolist()
    assert coco_ap(truth, plain, "segm").metrics == coco_ap(truth, detections, "segm").metrics


def test_no_detections_score_zero():
    truth, _ = world(0)
    values = coco_ap(truth, [], "bbox")
    assert values.metrics["bbox/AP"] == values.metrics["bbox/AR_maxdets100"] == 0
    assert float(values.table.sums()["bbox/AP"]) == 0


def test_no_objects_are_minus_one_as_in_the_official_tool():
    truth, detections = world(0)
    values = coco_ap(truth | {"annotations": []}, detections, "bbox")
    assert set(values.metrics.values()) == {-1.0}
    assert all(np.isnan(v) for v in values.table.sums().values())


def test_a_subset_of_images_is_scored_by_itself():
    truth, detections = world(4, images=6)
    subset = [10, 12, 13]
    part = {
        "images": [i for i in truth["images"] if i["id"] in subset],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in subset],
        "categories": truth["categories"],
    }
    theirs = [d for d in detections if d["image_id"] in subset]
    assert coco_ap(truth, theirs, "bbox", subset).metrics == coco_ap(part, theirs, "bbox").metrics
    with pytest.raises(BenchError, match=r"image_id 1[145] is not in the annotations"):
        coco_ap(truth, detections, "bbox", subset)


def changed(index=None, key=None, value=None, part="annotations"):
    """The world with one entry replaced, of a detection, or of the annotation file's ``part``."""
    truth, detections = copy.deepcopy(world(0))
    target = detections if part == "detections" else truth[part]
    if value is KeyError:
        del target[index][key]
    else:
        target[index][key] = value
    return truth, detections


@pytest.mark.parametrize(
    ("iou_type", "part", "index", "key", "value", "message"),
    [
        ("bbox", "detections", 2, "category_id", 2, r"detections\[2\]: category_id 2"),
        ("bbox", "detections", 2, "category_id", "1", r"detections\[2\]: 'category_id' should be an integer"),
        ("bbox", "detections", 1, "image_id", 99, r"detections\[1\]: image_id 99"),
        ("bbox", "detections", 1, "image_id", KeyError, r"detections\[1\]: 'image_id'"),
        ("bbox", "detections", 0, "bbox", [0, 0, float("nan"), 4], r"detections\[0\]: bbox"),
        ("bbox", "detections", 0, "bbox", [0, 0, float("inf"), 4], r"detections\[0\]: bbox"),
        ("bbox", "detections", 0, "bbox", [0, 0, -3, 4], r"detections\[0\]: bbox"),
        ("bbox", "detections", 0, "bbox", [0, 0, 4], r"detections\[0\]: bbox"),
        ("bbox", "detections", 0, "bbox", KeyError, r"detections\[0\]: bbox"),
        ("bbox", "detections", 3, "score", float("nan"), r"detections\[3\]: 'score'"),
        ("bbox", "detections", 3, "score", "0.5", r"detections\[3\]: 'score'"),
        ("bbox", "detections", 3, "score", 10**400, r"detections\[3\]: 'score'"),
        ("segm", "detections", 0, "segmentation", KeyError, r"detections\[0\]: segmentation should be RLE"),
        ("segm", "detections", 0, "segmentation", [[1, 1, 5, 1, 5, 5]], r"detections\[0\]: segmentation should be RLE"),
        ("segm", "detections", 0, "segmentation", {"size": [240, 200], "counts": "x"}, r"detections\[0\]: RLE size"),
        (
            "segm",
            "detections",
            1,
            "segmentation",
            {"size": [200, 240], "counts": "PPP"},
            r"detections\[1\]: RLE counts",
        ),
        ("segm", "detections", 1, "segmentation", {"size": [200, 240], "counts": "é0"}, r"detections\[1\]: RLE counts"),
        (
            "segm",
            "detections",
            1,
            "segmentation",
            {"size": [200, 240], "counts": [9, 9]},
            r"detections\[1\]: RLE counts",
        ),
        ("bbox", "annotations", 1, "image_id", 99, r"annotations\[1\]: image_id 99"),
        ("bbox", "annotations", 1, "category_id", 99, r"annotations\[1\]: category_id 99"),
        ("bbox", "annotations", 1, "area", None, r"annotations\[1\]: 'area'"),
        ("bbox", "annotations", 1, "id", 1, r"annotations\[1\]: id 1 comes twice"),
        ("bbox", "annotations", 1, "iscrowd", 2, r"annotations\[1\]: iscrowd"),
        ("segm", "annotations", 1, "segmentation", [[1, 2, 3]], r"annotations\[1\]: polygon"),
        ("segm", "annotations", 1, "segmentation", [], r"annotations\[1\]: segmentation is empty"),
        ("bbox", "images", 0, "height", 0, r"images\[0\]: height is 0"),
        ("bbox", "images", 1, "id", 10, r"images\[1\]: id 10 comes twice"),
        ("bbox", "categories", 0, "id", None, r"categories\[0\]: 'id'"),
    ],
)
def test_bad_records_are_named_with_their_index(iou_type, part, index, key, value, message):
    truth, detections = changed(index, key, value, part)
    with pytest.raises(BenchError, match=message) as caught:
        coco_ap(truth, detections, iou_type)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("truth", "detections", "options", "message"),
    [
        ([], [], {}, "expected an object with images"),
        ({"images": [], "annotations": []}, [], {}, "categories"),
        ({"images": [], "annotations": [], "categories": []}, [], {}, "no images"),
        (world()[0], {"annotations": []}, {}, "expected a list of records"),
        (world()[0], [3], {}, r"detections\[0\]"),
        (world()[0], [], {"iou_type": "keypoints"}, "keypoints"),
        (world()[0], [], {"backend": "cocoapi"}, "cocoapi"),
        (world()[0], [], {"image_ids": [7]}, "image 7"),
    ],
)
def test_other_bad_input_is_named(truth, detections, options, message):
    with pytest.raises(BenchError, match=message):
        coco_ap(truth, detections, **({"iou_type": "bbox"} | options))


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_rle_strings_count_their_pixels(seed):
    random = np.random.default_rng(seed)
    masks = []
    for _ in range(random.integers(1, 6)):
        height, width = random.integers(1, 90, 2)
        pixels = random.random((height, width)) < random.choice([0.0, 0.01, 0.5, 1.0])
        masks.append(mask.encode(np.asfortranarray(pixels.astype(np.uint8))))
    assert rle_pixels([m["counts"] for m in masks]).tolist() == [int(np.prod(m["size"])) for m in masks]


def read_rle(text):
    """One character after the other; None where the string breaks off, or counts are negative or absurdly long."""
    counts, at = [], 0
    while at < len(text):
        value, group = 0, 0
        while True:
            if at == len(text) or group > 5 or not 48 <= text[at] <= 111:
                return None
            part = text[at] - 48
            value |= (part & 31) << (5 * group)
            at, group = at + 1, group + 1
            if not part & 32:
                break
        if part & 16:
            value -= 1 << (5 * group)
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return sum(counts) if counts and min(counts) >= 0 else None


@given(st.lists(st.binary(max_size=12) | st.text("0123456789:;<=>?@PQRSTUVWXYZabcdefgo", max_size=9).map(str.encode)))
@settings(max_examples=400, deadline=None)
def test_garbled_rle_strings_are_told_from_good_ones(texts):
    if not texts:
        return
    wanted = [read_rle(text) for text in texts]
    assert rle_pixels(texts).tolist() == [-1 if w is None else w for w in wanted]
