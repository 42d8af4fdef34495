"""The COCO detection task: reading, rows, scores, submission files, training, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asking import ask, load
from goldens import COMMITTED, metrics_golden
from native import edit_json, invoke
from PIL import Image, ImageOps
from random_detector import random_detector
from run_requests import run_request, with_settings

import beit3_bench
from beit3_bench.backbones.abilities import Item
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.options import DetectorOptions
from beit3_bench.backbones.beit3.detection.plan import DetectorPlan
from beit3_bench.backbones.checkpoints import METADATA_KEY
from beit3_bench.backbones.recipe import Recipe
from beit3_bench.backbones.registry import get_family
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.training import TrainingOptions
from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.finetune import describe
from beit3_bench.harness.evidence.compare import compare
from beit3_bench.harness.evidence.verify import verify
from beit3_bench.harness.reading import prepare
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task
from beit3_bench.tasks.coco_det import CocoDetection
from beit3_bench.tasks.contract import ScoreInputs, Split
from beit3_bench.tasks.tinyworld.world import write_tiny_world

TOWER = BEiT3Config(image_size=64, patch_size=16, embed_dim=32, num_heads=2, ffn_dim=64, depth=4)
PLAN = DetectorPlan(
    head="mask_rcnn", num_classes=6, image_size=96, window_size=3, out_channels=16, fc_dim=24, proposals=50
)


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world") / "tiny"
    write_tiny_world(root, size="mini")
    return root / "coco"


def detector(plan: DetectorPlan = PLAN, tower: BEiT3Config = TOWER) -> Any:
    return random_detector(plan, tower)


def save(path: Path, plan: DetectorPlan = PLAN, tower: BEiT3Config = TOWER, metadata: bool = True) -> Path:
    own = {"head": "detection", "task": "coco-det", "config": tower.to_dict(), "head_arguments": plan.to_dict()}
    content = {"model": detector(plan, tower).state_dict(), "iteration": 7}
    torch.save({**content, **({METADATA_KEY: own} if metadata else {})}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "model_final.pth")


def task(coco: Path, **options: str) -> CocoDetection:
    return CocoDetection(coco, {"engine": "native", **options})


def predicted(coco: Path, checkpoint: Path, count: int = 4, **options: str) -> tuple[CocoDetection, Split, dict]:
    own = task(coco, **options)
    split = own.limited(own.read("val2017"), count)
    return own, split, ask(own, split, load(own, split, checkpoint))


# ---- scores -----------------------------------------------------------------------------------------------------------


def from_zero(content: dict) -> None:
    """Annotations numbered from 0; the first one is no crowd."""
    content["annotations"].sort(key=lambda a: a.get("iscrowd", 0))
    for number, record in enumerate(content["annotations"]):
        record["id"] = number


def perfect(coco: Path, to: Path, change: Any = lambda content: None) -> list[object]:
    """The words that score detections which are the annotations of val2017."""
    content = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    change(content)
    (to / "instances.json").write_text(json.dumps(content))
    records = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in content["annotations"]
    ]
    (to / "detections.json").write_text(json.dumps(records))
    files = ["--predictions", to / "detections.json", "--annotations", to / "instances.json"]
    return ["score", "--task", "coco-det", "--iou-type", "bbox", *files]


@pytest.mark.parametrize("kind", [int, float, str])
def test_annotation_id_0_counts_as_cocoeval_counts_it_and_is_named(coco, tmp_path, kind):
    assert "id 0" not in invoke(*perfect(coco, tmp_path)).stdout

    def change(content: dict) -> None:
        from_zero(content)
        for record in content["annotations"]:
            record["id"] = kind(record["id"])

    words = perfect(coco, tmp_path, change)
    own = json.loads(invoke(*words, "--json").stdout)
    assert own["bbox/AP"] < 1
    assert own == pytest.approx(json.loads(invoke(*words, "--ap-backend", "pycocotools", "--json").stdout), abs=1e-12)
    record = json.loads((tmp_path / "instances.json").read_text())["annotations"][0]
    told = (
        f"the annotation with id 0 (image {record['image_id']}, category {record['category_id']}) counts as never found"
    )
    assert f"note: {tmp_path / 'instances.json'}: {told}" in invoke(*words).stdout


def test_a_crowd_with_id_0_changes_nothing_and_is_not_named(coco, tmp_path):
    def crowd_first(content: dict) -> None:
        from_zero(content)
        content["annotations"][0]["iscrowd"] = 1

    words = perfect(coco, tmp_path, crowd_first)
    assert "id 0" not in invoke(*words).stdout

    def from_one(content: dict) -> None:
        crowd_first(content)
        for record in content["annotations"]:
            record["id"] += 1

    first = json.loads(invoke(*words, "--json").stdout)
    assert first == json.loads(invoke(*perfect(coco, tmp_path, from_one), "--json").stdout)


def test_annotation_id_0_is_named_by_run_and_verify(coco, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "coco"
    shutil.copytree(coco, root)
    edit_json(root / "annotations" / "instances_val2017.json", from_zero)
    words = ["--checkpoint", checkpoint, "--data-root", root, "--workers", 0, "--device", "cpu", "--limit", 2]
    done = invoke("run", "--task", "coco-det", *words, "--output", tmp_path / "run", "-o", "engine=native")
    assert done.exit_code == 0, done.output
    told = f"{root / 'annotations' / 'instances_val2017.json'}: the annotation with id 0 (image "
    assert f"note: {told}" in done.stdout
    assert f"warning: {told}" in done.stderr
    verified = invoke("data", "verify", "--task", "coco-det", "--data-root", root, "--split", "val2017")
    assert verified.exit_code == 2
    assert f"finding (notes): {told}" in verified.stdout


def test_annotation_id_0_is_named_by_finetune(coco, tmp_path):
    root = tmp_path / "coco"
    shutil.copytree(coco, root)
    words = ["finetune", "--task", "coco-det", "--data-root", root, "--preset", "tiny", "--device", "cpu", "--dry-run"]
    assert json.loads(invoke(*words, "--json").stdout)["notes"] == []
    edit_json(root / "annotations" / "instances_val2017.json", from_zero)
    told = f"{root / 'annotations' / 'instances_val2017.json'}: the annotation with id 0 (image "
    assert f"note: {told}" in invoke(*words).stdout
    (note,) = json.loads(invoke(*words, "--json").stdout)["notes"]
    assert note.startswith(told)
    summary = {"task": "coco-det", "steps": 1, "seconds": 1.0, "checkpoint": "best.pth", "notes": [note]}
    best = {"metric": "bbox/AP", "value": 0.1, "step": 1}
    assert describe({**summary, "best": best}).endswith(f"\nnote: {note}")


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("name", ["real", "synthetic"])
def test_official_files_score_as_pycocotools_scores_them(name, iou_type):
    folder = metrics_golden("detection")
    expected = json.loads((folder / "expected.json").read_text())[name][iou_type]["stats"]
    inputs = ScoreInputs(
        folder / name / f"{iou_type}_results.json", folder / name / "instances.json", iou_type=iou_type
    )
    assert CocoDetection.score_file(inputs).metrics == pytest.approx(
        {f"{iou_type}/{key}": value for key, value in expected.items()}, abs=1e-9
    )


def perfect_rows(examples) -> dict[str, Any]:
    from pycocotools import mask

    rows = {}
    for example in examples:
        size = (example.meta["height"], example.meta["width"])
        detections = []
        for thing in example.target:
            if not thing["iscrowd"]:
                shape = mask.merge(mask.frPyObjects(thing["segmentation"], *size))
                detections.append(
                    {
                        "category_id": thing["category_id"],
                        "bbox": thing["bbox"],
                        "score": 0.9,
                        "segmentation": {"size": list(size), "counts": shape["counts"].decode()},
                    }
                )
        rows[example.id] = {"id": example.id, "detections": detections, "masks": True}
    return rows


def test_the_truth_itself_scores_one(coco):
    own = task(coco)
    split = own.read("val2017")
    scores = own.score(perfect_rows(split.examples), split)
    assert {scores.metrics[f"{kind}/{name}"] for kind in ("bbox", "segm") for name in ("AP", "AP50", "AP75")} == {1.0}
    assert {m.name for m in own.metrics} == set(scores.metrics)
    assert own.estimate(scores.table.sums())["segm/AP"] == pytest.approx(1.0)


def test_scores_of_a_run_equal_those_of_its_result_files(coco, checkpoint, tmp_path):
    own, split, rows = predicted(coco, checkpoint, 6)
    scores = own.score(rows, split)
    assert scores.counts["detections"] > 20
    assert set(scores.metrics) == {m.name for m in own.metrics}
    truth = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    wanted = {int(e.id) for e in split.examples}
    truth["images"] = [image for image in truth["images"] if image["id"] in wanted]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in wanted]
    (tmp_path / "part.json").write_text(json.dumps(truth))
    files = own.submission(rows, split, tmp_path)
    assert [path.name for path in files] == ["bbox_results.json", "segm_results.json"]
    for path, kind in zip(files, ("bbox", "segm"), strict=True):
        again = CocoDetection.score_file(ScoreInputs(path, tmp_path / "part.json", iou_type=kind)).metrics
        for name, value in again.items():
            assert value == pytest.approx(scores.metrics[name]) or (value == -1 and np.isnan(scores.metrics[name]))


@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval"])
def test_every_ap_backend_gives_the_same_statistics_and_intervals(coco, checkpoint, backend):
    if backend == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval")
    own, other = task(coco), task(coco, ap_backend=backend)
    split = own.read("val2017")
    rows = {
        e.id: {
            "id": e.id,
            "masks": False,
            "detections": [
                {"category_id": o["category_id"], "bbox": [v * 1.1 for v in o["bbox"]], "score": 1 / (2 + k % 7)}
                for k, o in enumerate(e.target)
            ],
        }
        for e in split.examples
    }
    ours, theirs = own.score(rows, split), other.score(rows, other.read("val2017"))
    assert 0 < ours.metrics["bbox/AP"] < 1
    assert theirs.metrics == pytest.approx(ours.metrics, abs=1e-12, nan_ok=True)
    assert theirs.table.ids == ours.table.ids


def test_an_ap_backend_that_is_not_installed_is_named_before_the_run(coco, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(BenchError, match=r"faster.coco.eval.*pip install"):
        task(coco, ap_backend="faster-coco-eval")


def test_a_detector_without_mask_head_is_scored_on_boxes_alone(coco, tmp_path):
    path = save(tmp_path / "boxes.pth", PLAN.replace(with_masks=False))
    own, split, rows = predicted(coco, path)
    scores = own.score(rows, split)
    assert set(scores.metrics) == {m.name for m in own.metrics if m.name.startswith("bbox/")}
    assert scores.notes == ["the detector has no mask head: boxes only"]
    assert [p.name for p in own.submission(rows, split, tmp_path)] == ["bbox_results.json"]


def test_annotations_without_masks_are_scored_on_boxes_alone(coco, checkpoint):
    own, split, rows = predicted(coco, checkpoint)
    bare = [
        dataclasses.replace(e, target=[{k: v for k, v in o.items() if k != "segmentation"} for o in e.target])
        for e in split.examples
    ]
    scores = own.score(rows, split.of(bare))
    assert scores.notes == ["the annotations have no masks: boxes only"]
    assert "bbox/AP" in scores.metrics


# ---- rows -------------------------------------------------------------------------------------------------------------


def test_rows_hold_the_detections_in_official_terms(coco, checkpoint):
    from pycocotools import mask

    own, split, rows = predicted(coco, checkpoint, 3)
    model, preprocessing = detector(), load(own, split, checkpoint).ability.reader.preprocessing
    for example in split.examples:
        with Image.open(example.images[0]) as picture:
            image = preprocessing.pixels(picture.convert("RGB"))
        size = (example.meta["height"], example.meta["width"])
        with torch.no_grad():
            found = model.detect([{"image": image, "height": size[0], "width": size[1]}])[0]
        detections = rows[example.id]["detections"]
        assert len(detections) == len(found["scores"]) > 0
        ids = [category["id"] for category in split.truth]
        assert [d["category_id"] for d in detections] == [ids[c] for c in found["classes"].tolist()]
        np.testing.assert_allclose([d["score"] for d in detections], found["scores"].numpy(), atol=1e-5)
        boxes = np.array([d["bbox"] for d in detections])
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_allclose(boxes, found["boxes"].numpy(), atol=1e-3)
        bitmaps = mask.decode([d["segmentation"] for d in detections]).transpose(2, 0, 1).astype(bool)
        assert (bitmaps != found["masks"].numpy()).mean() < 1e-4
    json.dumps(rows)


def test_masks_are_encoded_as_they_lie_in_memory(coco, checkpoint, monkeypatch):
    from pycocotools import mask

    seen = []
    encode = mask.encode
    monkeypatch.setattr(mask, "encode", lambda bitmaps: seen.append(bitmaps) or encode(bitmaps))
    own = task(coco)
    split = own.limited(own.read("val2017"), 1)
    (example,), ability = split.examples, load(own, split, checkpoint).ability
    with torch.inference_mode():
        (value,) = ability.predict(ability.reader.collate([own.item(example)]))
    assert value["masks"].dtype == bool
    assert value["masks"].shape[1:] == (example.meta["height"], example.meta["width"])
    assert [value[k].dtype for k in ("boxes", "scores", "classes")] == [np.float32, np.float32, np.int64]
    (row,) = own.rows([example], [value], split, [None])
    (bitmaps,) = seen
    assert np.shares_memory(bitmaps, value["masks"])
    assert bitmaps.flags.f_contiguous
    # and masks that lie otherwise are the same rows
    assert own.rows([example], [{**value, "masks": np.ascontiguousarray(value["masks"])}], split, [None]) == [row]


def test_batches_of_any_size_give_the_same_rows(coco, checkpoint):
    own, split, together = predicted(coco, checkpoint, 3)
    model = load(own, split, checkpoint)
    for example in split.examples:
        (alone,) = ask(own, split.of([example]), model).values()
        mates = together[example.id]["detections"]
        assert [d["category_id"] for d in alone["detections"]] == [d["category_id"] for d in mates]
        np.testing.assert_allclose([d["bbox"] for d in alone["detections"]], [d["bbox"] for d in mates], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, 96), ({"short_side": "48", "max_size": "64"}, 64), ({"scales": "64,128"}, 64)],
)
def test_images_are_resized_as_asked(coco, checkpoint, options, shape):
    own = task(coco, **options)
    split = own.read("val2017")
    batch = load(own, split, checkpoint).ability.reader.collate([own.item(split.examples[0])])
    assert batch["images"].dtype == torch.uint8
    height, width = batch["shapes"][0][0]
    if "short_side" in options:
        assert min(height, width) <= 48
    assert max(height, width) == shape or min(height, width) == 48
    assert [max(s[0]) for s in batch["shapes"][1:]] == ([128] if "scales" in options else [])


@pytest.mark.parametrize(
    "options", [{"scales": "64,96", "flip_test": "1"}, {"flip_test": "1"}, {"soft_nms": "gaussian"}]
)
def test_augmentation_and_soft_nms_change_the_rows(coco, checkpoint, options):
    _, _, plain = predicted(coco, checkpoint, 1)
    _, _, other = predicted(coco, checkpoint, 1, **options)
    ((name, row),) = other.items()
    assert row["detections"]
    assert row["detections"] != plain[name]["detections"]


def test_a_file_of_detectron2_alone_is_enough_for_a_preset(coco, tmp_path):
    tower = BEiT3Config.preset("tiny", patch_size=16)
    path = save(tmp_path / "model_final.pth", PLAN.replace(window_size=14, proposals=1000), tower, metadata=False)
    own = task(coco, score_threshold="0.1")
    model = load(own, own.read("val2017"), path, image_size=96)
    assert (model.card.preset, model.card.image_size) == ("tiny", 96)
    assert model.card.resolved == {"engine": "native"}  # what no file decided stays as it was asked for
    assert model.module.proposal_generator.post_nms_topk == 1000
    (note,) = model.notes
    assert "assumed: 14 tokens along a window, 1000 proposals" in note


# ---- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_reports_all_statistics_and_the_engine(coco, checkpoint, tmp_path):
    request = run_request(
        "coco-det", checkpoint, coco, limit=5, output=tmp_path / "run",
        options={"engine": "native", "score_threshold": "0.2"},
    )  # fmt: skip
    result = run_task(request, CocoDetection).result
    assert result["metrics"]["bbox/AP"]["headline"]
    assert result["metrics"]["segm/AP50"]["ci95"] is not None
    assert result["provenance"]["options"]["engine"] == "native"
    assert result["model"]["image_size"] == 96
    assert run_task(request, CocoDetection).was_finished


def test_python_detects_what_the_rows_hold(coco, checkpoint, tmp_path):
    """`load(...).detect` and `evaluate`, with data and without."""
    options = {"engine": "native", "score_threshold": 0.2}
    request = run_request(
        "coco-det", checkpoint, coco, limit=4, output=tmp_path / "run", options={k: str(v) for k, v in options.items()}
    )
    expected = run_task(request, CocoDetection).result
    rows = RunStore.read(tmp_path / "run").rows()
    model = beit3_bench.load(checkpoint, "coco-det", coco, device="cpu", **options)
    split = task(coco).read("val2017")
    examples = split.examples[:4]
    for example, found in zip(examples, model.detect([e.images[0] for e in examples]), strict=True):
        detections = rows[example.id]["detections"]
        assert len(found["boxes"]) == len(detections)
        corners = np.array([d["bbox"] for d in detections]).reshape(-1, 4)
        np.testing.assert_allclose(found["boxes"][:, :2], corners[:, :2], atol=1e-4)
        np.testing.assert_allclose(found["scores"], [d["score"] for d in detections], atol=1e-6)
        assert [split.truth[c]["id"] for c in found["classes"]] == [d["category_id"] for d in detections]
        assert found["masks"].shape == (len(detections), example.meta["height"], example.meta["width"])
    assert model.labels == split.labels
    result = beit3_bench.evaluate(model, "coco-det", coco, limit=4, **options)
    assert {n: m.value for n, m in result.metrics.items()} == {n: m["value"] for n, m in expected["metrics"].items()}
    alone = beit3_bench.load(checkpoint, "coco-det", device="cpu", **options)
    assert len(alone.detect([examples[0].images[0]])[0]["boxes"]) == len(rows[examples[0].id]["detections"])


def detectron2_file(folder: Path) -> Path:
    """What detectron2's launcher leaves: a ``model_final.pth`` of names and tensors."""
    folder.mkdir()
    tower = BEiT3Config.preset("tiny", patch_size=16)
    return save(folder / "model_final.pth", PLAN.replace(window_size=5, proposals=40), tower, metadata=False)


CONFIG_YAML = """\
model:
  backbone: {net: {window_size: 5, num_heads: 4}, square_pad: 96}
  proposal_generator: {post_nms_topk: [40, 40]}
  roi_heads: {box_predictor: {test_score_thresh: 0.0}}
  hook: !!python/object/apply:os.system ['touch EXECUTED']
"""


@pytest.mark.parametrize("told", [True, False])
def test_a_detector_of_detectron2_is_run_as_it_was_trained_or_the_result_says_what_was_assumed(coco, tmp_path, told):
    path = detectron2_file(tmp_path / "d2")
    if told:
        (path.parent / "config.yaml").write_text(CONFIG_YAML)
    request = run_request(
        "coco-det", path, coco, limit=2, output=tmp_path / "run", preset="tiny",
        options={"engine": "native", "score_threshold": "0.2"}, image_size=None if told else 96,
    )  # fmt: skip
    result = run_task(request, CocoDetection).result
    assert result["model"]["image_size"] == 96
    notes = [note for note in result["notes"] if str(path.parent) in note]
    if told:
        assert result["provenance"]["options"]["window_size"] == 5
        assert notes == [f"{path.parent}/config.yaml: would be tested with score_threshold 0.0 instead of 0.2"]
        before = result["provenance"]["fingerprints"]["model"]
        (path.parent / "config.yaml").write_text(
            CONFIG_YAML.replace("window_size: 5", "window_size: 5, global_blocks: [0]")
        )
        again = run_task(with_settings(request, output=tmp_path / "again"), CocoDetection).result
        assert again["provenance"]["fingerprints"]["model"] != before
    else:
        (note,) = notes
        assert "assumed: 14 tokens along a window, 1000 proposals" in note


@pytest.mark.parametrize("told", [True, False])
def test_training_goes_on_from_a_detector_as_it_was_trained(coco, tmp_path, told):
    path = detectron2_file(tmp_path / "d2")
    if told:
        (path.parent / "config.yaml").write_text(CONFIG_YAML)
    options = {k: v for k, v in SMALL.items() if k not in ("window_size", "proposals")}
    own = task(coco, **options, head="mask_rcnn")
    training = start(own, own.training_split(), path)
    assert (training.plan.window_size, training.plan.proposals) == ((5, 40) if told else (14, 1000))
    assert training.resolved == {"engine": "native", **({"window_size": 5, "proposals": 40} if told else {})}
    assert [note.partition(": ")[2].partition(" (")[0] for note in training.notes] == (
        [] if told else ["does not say how it was trained; assumed: 14 tokens along a window, 1000 proposals"]
    )


@pytest.mark.parametrize("before", [True, False])
def test_a_mask_head_that_only_one_of_both_has_is_new_or_left_out(coco, tmp_path, before):
    path = save(tmp_path / "objects.pth", PLAN.replace(num_classes=11, with_masks=before))
    training = trainable(coco, path, masks="0" if before else "1")[2]
    assert (training.module.roi_heads.mask_head is None) == before
    assert any(name.startswith("roi_heads.mask_head.") for name in training.new) == (not before)


def test_two_runs_are_compared_image_by_image(coco, checkpoint, tmp_path):
    for name, options in {"a": {}, "b": {"score_threshold": "0.9", "ap_backend": "pycocotools"}}.items():
        request = run_request(
            "coco-det", checkpoint, coco, limit=5, output=tmp_path / name,
            options={"engine": "native", **options},
        )  # fmt: skip
        run_task(request, CocoDetection)
    found = compare(tmp_path / "a", tmp_path / "b", metrics=["bbox/AP", "bbox/AP50"], data_root=coco)
    ap, ap50 = found.metrics
    assert ap.a > ap.b == 0
    assert ap.difference == pytest.approx(ap.b - ap.a, abs=1e-12)
    assert ap.ci95[0] <= ap.difference <= ap.ci95[1]
    assert 0 < ap.p_value <= 1
    assert ap.test == "paired bootstrap"
    assert ap.flips
    assert all(flip.a > flip.b == 0 for flip in ap.flips)
    assert ap50.changed is None
    assert [note for note in found.notes if "option" in note] == [
        "option score_threshold differs: 0.05 in A, 0.9 in B", "option ap_backend differs: own in A, pycocotools in B"
    ]  # fmt: skip


def test_test_dev_gives_the_zip_file_that_the_server_takes(coco, checkpoint, tmp_path):
    request = run_request(
        "coco-det", checkpoint, coco, split="test-dev", limit=3, output=tmp_path / "run",
        options={"engine": "native", "algorithm": "beit3-base"},
    )  # fmt: skip
    result = run_task(request, CocoDetection).result
    assert result["status"] == "to upload"
    name = "detections_test-dev2017_beit3-base-segm_results"
    with zipfile.ZipFile(tmp_path / "run" / "submission" / f"{name}.zip") as archive:
        assert archive.namelist() == [f"{name}.json"]
        records = json.loads(archive.read(f"{name}.json"))
    assert records
    assert set(records[0]) == {"image_id", "category_id", "score", "segmentation"}


# ---- orientation ------------------------------------------------------------------------------------------------------


def tag(path: Path, orientation: int) -> None:
    """Store an image again as JPEG with an EXIF orientation; its pixels stay as they are."""
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.convert("RGB").save(path, "JPEG", exif=exif, quality=95)


def turned(coco: Path, tmp_path: Path, orientation: int, swap: bool, split: str = "val2017") -> tuple[Path, Path]:
    """A copy of the data whose first image is stored on its side; ``swap``: the annotations are of the upright one."""
    root = tmp_path / "coco"
    shutil.copytree(coco, root)
    place = root / "annotations" / f"instances_{split}.json"
    content = json.loads(place.read_text())
    first = next(image for image in content["images"] if image["height"] != image["width"])
    if swap:
        first["height"], first["width"] = first["width"], first["height"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first["id"]]
        box = {"bbox": [4.0, 6, 30, 40], "segmentation": [[4.0, 6, 34, 6, 34, 46, 4, 46]], "area": 1200.0, "iscrowd": 0}
        content["annotations"].append(
            {**box, "id": 10**6, "image_id": first["id"], "category_id": content["categories"][0]["id"]}
        )
    place.write_text(json.dumps(content))
    tag(root / split / first["file_name"], orientation)
    return root, root / split / first["file_name"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_by_detectron2(coco, tmp_path, checkpoint, orientation):
    root, path = turned(coco, tmp_path, orientation, swap=orientation > 4)
    own = task(root)
    split = own.read("val2017")
    example = next(e for e in split.examples if e.images[0] == str(path))
    reader = load(own, split, checkpoint).ability.reader
    batch = reader.collate([own.item(example)])
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        assert (np.asarray(upright).shape == np.asarray(picture).shape) == (orientation < 5)
    height, width = batch["shapes"][0][0]
    assert torch.equal(batch["images"][0][:, :height, :width], reader.preprocessing.pixels(upright))
    assert batch["sizes"] == [(upright.height, upright.width)]
    with Image.open(path) as picture:  # the API takes images, too
        assert torch.equal(reader.collate([Item(images=(picture,))])["images"], batch["images"])


@pytest.mark.parametrize("orientation", [3, 6])
def test_training_sees_the_upright_image_with_its_boxes(coco, tmp_path, orientation):
    root, path = turned(coco, tmp_path, orientation, swap=orientation > 4, split="train2017")
    own = task(root, **SMALL, jitter_min="1", jitter_max="1")
    split = own.training_split()
    example = next(e for e in split.examples if e.images[0] == str(path))
    training = start(own, split, recipe=dataclasses.replace(RECIPE, image_size=320, flip=0.0))
    (made,) = training.collate([own.training_item(example)], torch.Generator().manual_seed(0))["inputs"]
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    factor = 320 / max(upright.size)
    size = (round(upright.width * factor), round(upright.height * factor))
    expected = np.asarray(upright.resize(size, Image.Resampling.BILINEAR))
    assert np.array_equal(made["image"].permute(1, 2, 0).numpy(), expected)
    if orientation == 6:
        np.testing.assert_allclose(made["instances"]["boxes"][0].numpy(), np.array([4, 6, 34, 46]) * factor, rtol=1e-2)


def test_an_orientation_that_nobody_can_read_counts_as_upright(coco, tmp_path):
    from beit3_bench.backbones.preprocess import decode, upright_size

    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 6), (1, 2, 3)).save(path, exif=b"Exif\0\0II*\0" + bytes(range(40)))
    assert decode(path, upright=True).size == upright_size(path) == (8, 6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 5, 6, 8])
def test_a_header_tells_the_size_that_decoding_gives(tmp_path, kind, orientation):
    from beit3_bench.backbones.preprocess import decode, upright_size

    image = Image.new("RGB", (8, 6), (1, 2, 3))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a", kind, exif=exif)
    assert (
        upright_size(tmp_path / "a")
        == decode(tmp_path / "a", upright=True).size
        == ((8, 6) if orientation == 1 else (6, 8))
    )
    assert decode(tmp_path / "a").size == ((6, 8) if kind == "TIFF" and orientation > 1 else (8, 6))


def test_verify_compares_sizes_with_the_upright_image(coco, tmp_path):
    root, path = turned(coco, tmp_path, 6, swap=False)
    found = verify(CocoDetection, root, split="val2017")
    (line,) = [f.line for f in found.findings if f.check == "annotations"]
    assert str(path) in line
    assert "EXIF orientation" in line
    assert "annotations" not in {
        f.check for f in verify(CocoDetection, turned(coco, tmp_path / "b", 6, swap=True)[0], split="val2017").findings
    }


# ---- fine-tuning ------------------------------------------------------------------------------------------------------


RECIPE = Recipe(image_size=96, weight_decay=0.1, layer_decay=0.5, drop_path=0.2)
SMALL = {"out_channels": "16", "fc_dim": "24", "proposals": "50", "rois_per_image": "16", "window_size": "3"}


def start(own: CocoDetection, split: Split, checkpoint: Path | None = None, recipe: Recipe = RECIPE) -> Any:
    source = Source(str(checkpoint), checkpoint) if checkpoint else None
    return get_family("beit3").start_training(own.asked(split), TrainingOptions(recipe, "tiny", source))


def trainable(coco: Path, checkpoint: Path | None = None, **options: str) -> tuple[CocoDetection, list[Item], Any]:
    own = task(coco, **{**SMALL, "head": "mask_rcnn", **options})
    split = own.training_split()
    training = start(own, split, checkpoint)
    training.module.train()
    return own, [own.training_item(e) for e in split.examples], training


@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn"])
def test_a_few_steps_lower_the_loss(coco, head):
    _, items, training = trainable(coco, head=head, jitter_min="0.9", jitter_max="1.0")
    model = training.module
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(15):
        batch = training.collate(items[:2], torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        loss = training.loss(model, batch, lambda tensor: tensor, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_crowds_and_images_without_objects_are_not_trained_on(coco):
    own = task(coco)
    everything, chosen = own.read("train2017").examples, own.training_split().examples
    crowds = sum(o["iscrowd"] for e in everything for o in e.target)
    assert crowds > 0
    assert len(chosen) < len(everything)
    assert all(e.target for e in chosen)
    assert sum(len(e.target) for e in chosen) == sum(not o["iscrowd"] for e in everything for o in e.target)
    assert {o["class"] for e in chosen for o in e.target} == set(range(6))


def test_rates_fall_with_depth_and_norms_do_not_decay(coco):
    training = trainable(coco)[2]
    rates = {}
    for group in training.groups():
        rates |= {name: (group["lr_scale"], group["weight_decay"]) for name in group["names"]}
    assert set(rates) == dict(training.module.named_parameters()).keys()
    assert rates["backbone.net.pos_embed"] == (0.5**5, 0.0)
    assert rates["backbone.net.blocks.3.attn.qkv.weight"] == (0.5, 0.1)
    assert rates["backbone.net.blocks.3.norm1.weight"] == (0.5, 0.0)
    assert rates["roi_heads.box_head.fc1.weight"] == (1.0, 0.1)


def test_official_weights_fill_the_tower(coco, tmp_path):
    from beit3_bench.backbones.beit3.checkpoint import official_state_dict
    from beit3_bench.backbones.beit3.models import build_model

    pretrained = BEiT3Config.preset("tiny")
    source = build_model("retrieval", pretrained)
    state = official_state_dict(source)
    torch.save({"model": state}, tmp_path / "pretrained.pth")
    training = trainable(coco, tmp_path / "pretrained.pth")[2]
    assert (training.settings["patch_size"], training.settings["image_size"]) == (16, 96)
    loaded = training.module.state_dict()["backbone.net.blocks.1.mlp.fc1.weight"]
    assert torch.equal(loaded, state["beit3.encoder.layers.1.ffn.A.fc1.weight"])
    assert not [name for name in training.start["missing"] if "encoder.layers" in name]
    assert "roi_heads.box_head.fc1.weight" in training.new


def test_a_detector_of_other_classes_keeps_all_but_its_class_layers(coco, tmp_path):
    path = save(tmp_path / "objects.pth", PLAN.replace(num_classes=11))
    source = torch.load(path, weights_only=True)["model"]
    training = trainable(coco, path)[2]
    state = training.module.state_dict()
    assert sorted({name.rpartition(".")[0] for name in training.new}) == [
        "roi_heads.box_predictor.bbox_pred", "roi_heads.box_predictor.cls_score", "roi_heads.mask_head.predictor"
    ]  # fmt: skip
    assert all(torch.equal(state[name], source[name]) for name in state if name not in training.new)


# ---- bad input --------------------------------------------------------------------------------------------------------


def spoiled(coco: Path, tmp_path: Path, change) -> Path:
    """A copy of the annotations with a change, beside the same images."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").symlink_to(coco / "val2017")
    content = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    change(content)
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


def set_in(where: str, index: int, **values: Any):
    return lambda content: content[where][index].update(values)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_in("annotations", 2, category_id=55), r"annotations\[2\]: category_id 55 is not in the categories"),
        (set_in("annotations", 2, image_id=-1), r"annotations\[2\]: image_id -1 is not in the images"),
        (set_in("annotations", 0, bbox=[1, 2, 3]), r"annotations\[0\]: bbox \[1, 2, 3\]"),
        (set_in("annotations", 0, bbox=[1, 2, -3, 4]), r"annotations\[0\]: bbox"),
        (set_in("annotations", 1, segmentation={"size": [3, 3], "counts": "0"}), r"RLE size \[3, 3\] differs"),
        (set_in("annotations", 1, segmentation={"size": None, "counts": "0"}), r"RLE size None differs"),
        (set_in("annotations", 1, segmentation=[[1, 2, "3"] * 3]), r"annotations\[1\]: polygon \[1, 2, '3'"),
        (set_in("annotations", 1, segmentation="x"), r"annotations\[1\]: segmentation should be RLE"),
        (set_in("annotations", 1, category_id={}), r"annotations\[1\]: 'category_id' should be an integer, found \{\}"),
        (set_in("annotations", 1, image_id="1"), r"annotations\[1\]: 'image_id' should be an integer, found '1'"),
        (set_in("annotations", 1, id=None), r"annotations\[1\]: 'id' should be an integer, found None"),
        (set_in("annotations", 1, id=1.5), r"annotations\[1\]: 'id' should be an integer, found 1.5"),
        (set_in("images", 1, id="a\nb"), r"images\[1\]: 'id' should be an integer, found 'a\\nb'"),
        (set_in("images", 1, id="1"), r"images\[1\]: id '1' and that of the first record are text and number"),
        (set_in("annotations", 1, area=None), r"annotations\[1\]: 'area' should be a finite number, found None"),
        (set_in("annotations", 1, area=10**400), r"annotations\[1\]: 'area' should be a finite number, found 1000"),
        (set_in("annotations", 0, bbox=[0, 0, 10**400, 1]), r"annotations\[0\]: bbox"),
        (set_in("annotations", 0, segmentation=[[0, 0, 1, 0, 1, -(10**400)]]), r"annotations\[0\]: polygon"),
        (set_in("annotations", 1, iscrowd=2), r"annotations\[1\]: iscrowd is 2"),
        (set_in("images", 1, height="12"), r"images\[1\]: 'height' should be an integer, found '12'"),
        (set_in("images", 1, height=0), r"images\[1\]: height is 0"),
        (lambda content: content.pop("categories"), r"'categories' is missing or no list"),
        (lambda content: content["images"].append(content["images"][0]), r"comes twice"),
        (lambda content: content.update(images=[]), r"0 images"),
    ],
)
def test_spoiled_annotations_are_named(coco, tmp_path, change, told):
    with pytest.raises(BenchError, match=told):
        task(spoiled(coco, tmp_path, change)).read("val2017")


def test_missing_images_are_named(coco, tmp_path):
    root = spoiled(coco, tmp_path, set_in("images", 0, file_name="gone.jpg"))
    with pytest.raises(BenchError, match=r"1 of \d+ image files are missing.*gone\.jpg"):
        prepare(task(root), "val2017")


def test_an_image_of_another_size_is_named(coco, tmp_path, checkpoint):
    own = task(spoiled(coco, tmp_path, set_in("images", 0, width=1000, height=10)))
    split = own.read("val2017")
    reader = load(own, split, checkpoint).ability.reader
    with pytest.raises(BenchError, match=r"the annotations say 1000x10"):
        reader.collate([own.item(split.examples[0])])


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ('[{"image_id": 1, "category_id": 1, "bbox": [NaN, 0, 1, 1], "score": 1}]', "holds NaN"),
        (
            '[{"image_id": %d, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1}]',
            "category_id 2 is not in the annotat",
        ),
        (
            '[{"image_id": 5, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]',
            "image_id 5 is not in the annotations",
        ),
        ('[{"image_id": %d, "category_id": 1, "bbox": [0, 0, 1], "score": 1}]', "bbox"),
        ('{"a": 1}', "expected a list"),
    ],
)
def test_spoiled_detection_files_are_named(coco, tmp_path, records, told):
    annotations = coco / "annotations" / "instances_val2017.json"
    image = json.loads(annotations.read_text())["images"][0]["id"]
    path = tmp_path / "results.json"
    path.write_text(records % image if "%d" in records else records)
    with pytest.raises(BenchError, match=rf"results\.json: .*{told}"):
        CocoDetection.score_file(ScoreInputs(path, annotations, iou_type="bbox"))


def test_masks_of_another_size_are_named(coco, tmp_path):
    annotations = coco / "annotations" / "instances_val2017.json"
    image = json.loads(annotations.read_text())["images"][0]["id"]
    record = {"image_id": image, "category_id": 1, "score": 1, "segmentation": {"size": [2, 2], "counts": "04"}}
    (tmp_path / "results.json").write_text(json.dumps([record]))
    with pytest.raises(BenchError, match=r"results\.json: detections\[0\]: RLE size \[2, 2\] differs"):
        CocoDetection.score_file(ScoreInputs(tmp_path / "results.json", annotations, iou_type="segm"))


@pytest.mark.parametrize(
    ("plan", "options", "told"),
    [
        (PLAN.replace(head="cascade_mask_rcnn"), {"head": "mask_rcnn"}, "holds a cascade_mask_rcnn head"),
        (PLAN.replace(num_classes=80), {}, "detects 80 classes, the annotations have 6"),
        (PLAN, {"window_size": "4"}, "trained with window_size 3"),
        (PLAN, {"max_size": "200"}, "--image-size 224"),
        (PLAN, {"engine": "detectron2", "flip_test": "1"}, "need the native engine"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(coco, tmp_path, plan, options, told):
    own = task(coco, **options)
    split = own.read("val2017")
    with pytest.raises(BenchError, match=told):
        load(own, split, save(tmp_path / "model_final.pth", plan))


def test_a_checkpoint_of_another_task_is_named(coco, tmp_path):
    from beit3_bench.backbones.beit3.checkpoint import official_state_dict
    from beit3_bench.backbones.beit3.models import build_model

    torch.save({"model": official_state_dict(build_model("retrieval", BEiT3Config.preset("tiny")))}, tmp_path / "r.pth")
    own = task(coco)
    with pytest.raises(BenchError, match=r"r\.pth: .*not the checkpoint of a ViTDet detector"):
        load(own, own.read("val2017"), tmp_path / "r.pth")


@pytest.mark.parametrize(
    "option",
    [
        {"engine": "tensorflow"}, {"head": "yolo"}, {"soft_nms": "cubic"}, {"scales": "800,x"}, {"scales": "8"},
        {"scales": "64,64"}, {"jitter_min": "3"}, {"score_threshold": "2"}, {"algorithm": "a/b"}, {"fc_dim": "0"},
        {"window_size": "-1"}, {"soft_nms_sigma": "0"}, {"ap_backend": "cocoapi"},
    ],
    ids=lambda option: "-".join(*option.items()),
)  # fmt: skip
def test_options_out_of_range_are_named(tmp_path, option):
    (name,) = option
    with pytest.raises(BenchError, match=name):
        CocoDetection(tmp_path, option)


def test_num_classes_is_a_promise(coco):
    assert len(task(coco, num_classes="6").read("val2017").examples) > 0
    with pytest.raises(BenchError, match="has 6 categories, the task was given num_classes=365"):
        task(coco, num_classes="365").read("val2017")


def test_options_are_plain_values_for_the_record():
    assert all(
        value is None or isinstance(value, (str, int, float)) for value in asdict(CocoDetection.Options()).values()
    )


def test_the_family_knows_the_tasks_options_by_their_names_and_defaults():
    task_options, family_options = asdict(CocoDetection.Options()), asdict(DetectorOptions())
    assert family_options == {name: task_options[name] for name in family_options}
    assert DetectorOptions.of({**task_options, "head": None}) == DetectorOptions()
    assert DetectorOptions.of({"scales": "800,1024", "flip_test": True}).protocol == "2 scales, flipped"


@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval"])
def test_every_back_end_of_ap_scores_the_same(backend):
    if backend == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval")
    folder = COMMITTED / "detectron2" / "ops"
    words = ["--task", "coco-det", "--annotations", folder / "coco_gt.json", "--iou-type", "bbox", "--json"]
    words += ["--predictions", folder / "coco_detections.json"]
    own, other = invoke("score", *words), invoke("score", *words, "--ap-backend", backend)
    assert own.exit_code == other.exit_code == 0, other.output
    assert json.loads(other.stdout) == pytest.approx(json.loads(own.stdout), abs=1e-12)
    assert "--ap-backend" in invoke("score", "--run", "somewhere", "--ap-backend", backend).stderr


def renumbered(content: dict, kind: type) -> None:
    """Ids of one kind; those of categories are of other lengths: as text, "10" is before "9"."""
    new = {category["id"]: kind(8 + number) for number, category in enumerate(content["categories"])}
    for category in content["categories"]:
        category["id"] = new[category["id"]]
    for record in content["annotations"]:
        record.update(category_id=new[record["category_id"]], image_id=kind(record["image_id"]))
    for record in content["images"] + content["annotations"]:
        record["id"] = kind(record["id"])


@pytest.mark.parametrize("kind", [str, float])
def test_outputs_mean_the_same_categories_however_ids_are_written(coco, checkpoint, tmp_path, kind):
    seen = []
    for written in (int, kind):
        root = tmp_path / written.__name__ / "coco"
        shutil.copytree(coco, root)
        edit_json(root / "annotations" / "instances_val2017.json", lambda content, k=written: renumbered(content, k))
        own, split, rows = predicted(root, checkpoint, 8)
        names = {category["id"]: category["name"] for category in split.truth}
        found = [[names[d["category_id"]] for d in row["detections"]] for row in rows.values()]
        seen.append((list(names.values()), found, own.score(rows, split).metrics))
    np.testing.assert_equal(seen[1], seen[0])
