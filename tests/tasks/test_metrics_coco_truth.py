"""One reader of COCO instances: scoring, running, checking and training take and refuse the same records."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import invoke
from test_metrics_coco_ap import backend_or_skip, world

from beit3_bench.errors import BenchError
from beit3_bench.tasks.coco_det import CocoDetection
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.metrics.coco_ap import BACKENDS, coco_ap
from beit3_bench.tasks.metrics.coco_truth import polygons_rle, read_truth
from beit3_bench.tasks.tinyworld.world import write_tiny_world

POLYGON, SECOND = [10.0, 10, 60, 10, 60, 70, 10, 70], [100.0, 100, 130, 100, 130, 140]


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world") / "tiny"
    write_tiny_world(root, size="mini")
    return root / "coco"


def changed(coco: Path, tmp_path: Path, change, split: str = "val2017") -> Path:
    """A copy of the data, its annotations changed, with links to the same images."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (root / name).symlink_to(coco / name)
        content = json.loads((coco / "annotations" / f"instances_{name}.json").read_text())
        if name == split:
            change(content)
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return root


def official(truth: dict, detections: list, iou_type: str) -> float:
    """AP by pycocotools alone, from files' contents."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = copy.deepcopy(truth)
        index.createIndex()
        results = index.loadRes(copy.deepcopy(detections))
        evaluator = COCOeval(index, results, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0])


# ---- masks ------------------------------------------------------------------------------------------------------------


def without_masks(content: dict) -> None:
    for record in content["annotations"]:
        record["segmentation"] = []


def test_empty_segmentations_are_objects_without_masks_for_every_reader(coco, tmp_path):
    root = changed(coco, tmp_path, without_masks)
    own = CocoDetection(root)
    split = own.read("val2017")
    rows = {
        e.id: {"id": e.id, "masks": True, "detections": [{**o, "score": 0.9} for o in e.target if not o["iscrowd"]]}
        for e in split.examples
    }
    scores = own.score(rows, split)
    assert scores.metrics["bbox/AP"] == 1.0
    assert scores.notes == ["the annotations have no masks: boxes only"]
    found = invoke("data", "verify", "--task", "coco-det", "--data-root", root, "--split", "val2017", "--json")
    assert "reader" not in {finding["check"] for finding in json.loads(found.stdout)["findings"]}
    detections = [
        {"image_id": int(i), **{k: d[k] for k in ("category_id", "bbox", "score")}}
        for i, row in rows.items()
        for d in row["detections"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(detections))
    inputs = ScoreInputs(tmp_path / "found.json", root / "annotations" / "instances_val2017.json", iou_type="bbox")
    assert CocoDetection.score_file(inputs).metrics["bbox/AP"] == 1.0


def test_some_objects_without_masks_are_counted(coco, tmp_path):
    root = changed(coco, tmp_path, lambda content: content["annotations"][0].update(segmentation=[]))
    own = CocoDetection(root)
    split = own.read("val2017")
    rows = {e.id: {"id": e.id, "masks": True, "detections": []} for e in split.examples}
    total = sum(len(e.target) for e in split.examples)
    assert own.score(rows, split).notes == [f"1 of {total} objects have no masks: boxes only"]


def test_training_on_boxes_takes_empty_segmentations_and_on_masks_names_them(coco, tmp_path):
    root = changed(coco, tmp_path, without_masks, "train2017")
    assert CocoDetection(root, {"masks": "0"}).training_split().examples
    with pytest.raises(BenchError, match=r"an object without segmentation; .* -o masks=0"):
        CocoDetection(root).training_split()


def test_scoring_masks_names_an_object_without_one():
    truth, detections = world(0)
    for value in ([], None):
        truth["annotations"][1]["segmentation"] = value
        with pytest.raises(BenchError, match=r"annotations\[1\]: segmentation is empty"):
            coco_ap(truth, detections, "segm")
    del truth["annotations"][1]["segmentation"]
    with pytest.raises(BenchError, match=r"annotations\[1\]: segmentation is missing"):
        coco_ap(truth, detections, "segm")


@pytest.mark.parametrize("polygons", [
    [POLYGON, [80.0, 80, 90, 95]],                  # two points after a whole one
    [POLYGON, [80.0, 80]],                          # one point
    [POLYGON, []],
    [POLYGON, [80.0, 80, 90, 95], SECOND],
    [[*POLYGON[:6], 10.0]],                         # a coordinate too many, which pycocotools drops
], ids=str)  # fmt: skip
def test_short_polygons_make_the_masks_of_pycocotools(polygons):
    from pycocotools import mask

    read_truth(one_object(polygons), "x.json", ("bbox", "segm"))
    ours = mask.decode(polygons_rle(polygons, (200, 240)))
    theirs = mask.decode(mask.merge(mask.frPyObjects([p for p in polygons if p], 200, 240)))
    assert np.array_equal(ours, theirs)
    assert ours.any()


def test_a_short_polygon_before_a_whole_one_covers_nothing():
    """pycocotools alone takes all polygons for boxes then, and stops."""
    from pycocotools import mask

    ours = mask.decode(polygons_rle([[80.0, 80, 90, 95], POLYGON], (200, 240)))
    assert np.array_equal(ours, mask.decode(mask.merge(mask.frPyObjects([POLYGON], 200, 240))))


def one_object(polygons: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 1, "height": 200, "width": 240, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "segmentation": polygons}
        ],
    }


@pytest.mark.parametrize("polygons", [[[1, 2, 3]], [[1, 2]], [[]], [[1, 2, 3, 4]], [[1, 2, 3, 4], [1, 2]]])
def test_short_polygons_alone_are_no_mask(polygons):
    read_truth(one_object(polygons), "x.json", ("bbox", "segm"))
    with pytest.raises(BenchError, match=r"x\.json: annotations\[0\]: polygon .* three or more"):
        read_truth(one_object(polygons), "x.json", ("segm",))


@pytest.mark.parametrize(
    "polygons", [[1, 2, 3, 4, 5, 6], [["a"] * 6], [[True] * 6], [[0, 0, 1e7, 0, 1, 1]], "x", 7, {"counts": "0"}]
)
def test_what_is_no_mask_at_all_is_named(polygons):
    with pytest.raises(BenchError, match=r"x\.json: annotations\[0\]: (polygon|segmentation|RLE)"):
        read_truth(one_object(polygons), "x.json", ("bbox", "segm"))


@pytest.mark.parametrize("counts", ["0", [1, 2], "PPP", "é0"])
def test_masks_that_would_fail_after_the_run_are_named_before_it(coco, tmp_path, counts):
    def spoil(content):
        size = [content["images"][0][key] for key in ("height", "width")]
        content["annotations"][0].update(image_id=content["images"][0]["id"])
        content["annotations"][0]["segmentation"] = {"size": size, "counts": counts}

    with pytest.raises(BenchError, match=r"annotations\[0\]: RLE counts"):
        CocoDetection(changed(coco, tmp_path, spoil)).read("val2017")


def add_short(content: dict) -> None:
    polygons = [a for a in content["annotations"] if isinstance(a["segmentation"], list) and not a["iscrowd"]]
    polygons[0]["segmentation"].append([1.0, 1, 2, 2])
    polygons[1]["segmentation"] = [[1.0, 1, 8, 8]]


def test_training_leaves_out_what_detectron2_leaves_out(coco, tmp_path):
    root = changed(coco, tmp_path, add_short, "train2017")
    plain, short = (CocoDetection(place).training_split().examples for place in (coco, root))
    count = [sum(len(e.target) for e in examples) for examples in (plain, short)]
    assert count[1] == count[0] - 1
    polygons = [p for e in short for o in e.target if isinstance(o["segmentation"], list) for p in o["segmentation"]]
    assert all(len(p) >= 6 and len(p) % 2 == 0 for p in polygons)
    line = "1 objects of train2017 have no polygon of three points: left out of training"
    assert CocoDetection(root).training_split().notes == (line,)
    words = ["finetune", "--task", "coco-det", "--data-root", root, "--preset", "tiny", "--device", "cpu", "--dry-run"]
    assert json.loads(invoke(*words, "--json").stdout)["notes"] == [line]


def test_short_polygons_are_a_note_of_the_score(coco, tmp_path):
    from test_coco_det import perfect_rows

    def add_one(content):
        add_short(content)
        del content["annotations"][[a["segmentation"] for a in content["annotations"]].index([[1.0, 1, 8, 8]])]

    root = changed(coco, tmp_path, add_one)
    own = CocoDetection(root)
    split = own.read("val2017")
    scores = own.score(perfect_rows(split.examples), split)
    assert scores.metrics["segm/AP"] == 1.0
    assert scores.notes == ["1 polygon of fewer than three points covers nothing; training leaves such out"]


def test_an_object_of_two_points_leaves_boxes_to_be_scored(coco, tmp_path):
    root = changed(coco, tmp_path, add_short)
    own = CocoDetection(root)
    split = own.read("val2017")
    rows = {
        e.id: {"id": e.id, "masks": True, "detections": [{**o, "score": 0.9} for o in e.target]} for e in split.examples
    }
    scores = own.score(rows, split)
    assert set(scores.metrics) == {m.name for m in own.metrics if m.name.startswith("bbox/")}
    assert scores.notes[0].endswith("objects have no masks: boxes only")


# ---- ids --------------------------------------------------------------------------------------------------------------


def renamed(truth: dict, detections: list, image, category, annotation) -> tuple[dict, list]:
    truth, detections = copy.deepcopy((truth, detections))
    for record in truth["images"]:
        record["id"] = image(record["id"])
    for record in truth["categories"]:
        record["id"] = category(record["id"])
    for record in truth["annotations"]:
        record["id"] = annotation(record["id"])
    for record in (*truth["annotations"], *detections):
        record["image_id"], record["category_id"] = image(record["image_id"]), category(record["category_id"])
    return truth, detections


SPELLINGS = {
    "whole floats": (float, float, float),
    "text": ("{:012d}".format, str, str),
    "words": ("image {}".format, "class-{}".format, int),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_ids_may_be_whole_floats_or_text_as_for_pycocotools(spelling, iou_type, backend):
    truth, detections = world(3)
    expected = coco_ap(truth, detections, iou_type)
    other = renamed(truth, detections, *SPELLINGS[spelling])
    scores = coco_ap(*other, iou_type, backend=backend_or_skip(backend))
    assert scores.metrics == pytest.approx(expected.metrics, abs=1e-12)
    assert scores.metrics[f"{iou_type}/AP"] == pytest.approx(official(*other, iou_type), abs=1e-12)
    names = {SPELLINGS[spelling][0](i) for i in expected.per_image}
    assert set(scores.per_image) == names
    assert list(scores.per_category.values()) == pytest.approx(list(expected.per_category.values()), nan_ok=True)


def test_text_ids_of_annotations_that_are_no_numbers_are_only_names():
    truth, detections = world(3)
    other = renamed(truth, detections, int, int, "annotation {}".format)
    assert coco_ap(*other, "bbox").metrics == coco_ap(truth, detections, "bbox").metrics


@pytest.mark.parametrize("part", ["truth", "detections"])
def test_text_and_numbers_are_different_ids(part):
    """pycocotools, too, finds no image '1' where the file has 1."""
    truth, detections = world(0)
    (truth["annotations"] if part == "truth" else detections)[1]["image_id"] = "10"
    with pytest.raises(BenchError, match=r"\[1\]: 'image_id' should be an integer, found '10'"):
        coco_ap(truth, detections, "bbox")
    truth, detections = renamed(*world(0), str, int, int)
    (truth["annotations"] if part == "truth" else detections)[1]["image_id"] = 10
    with pytest.raises(BenchError, match=r"\[1\]: 'image_id' should be text, as the ids of the .* are, found 10"):
        coco_ap(truth, detections, "bbox")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_data_root_with_such_ids_is_scored_and_submitted_under_them(coco, tmp_path, spelling):
    from test_coco_det import perfect_rows

    def rename(content):
        content.update(renamed(content, [], *SPELLINGS[spelling])[0])

    root = changed(coco, tmp_path, rename)
    own = CocoDetection(root)
    split = own.read("val2017")
    rows = perfect_rows(split.examples)
    assert own.score(rows, split).metrics["segm/AP"] == 1.0
    (boxes, _) = own.submission(rows, split, tmp_path)
    truth = root / "annotations" / "instances_val2017.json"
    assert CocoDetection.score_file(ScoreInputs(boxes, truth, iou_type="bbox")).metrics["bbox/AP"] == 1.0
    assert official(json.loads(truth.read_text()), json.loads(boxes.read_text()), "bbox") == pytest.approx(1.0)
