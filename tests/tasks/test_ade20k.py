"""ADE20K: label maps are checked, scores are mmseg's, predictions are those of plain mmseg, runs resume."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from beit3_golden import tensors
from beit3_recipes import load_recipe, recipe_names
from click.testing import CliRunner
from goldens import metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_requests import run_request

import beit3_bench
from beit3_bench.backbones.abilities import Item
from beit3_bench.backbones.beit3.training.segmentation import OTHERS, SAME, apply_recipe, check_keys, divide_batch
from beit3_bench.backbones.checkpoints import read_checkpoint
from beit3_bench.backbones.training import TrainingEngine
from beit3_bench.errors import BenchError
from beit3_bench.harness.cli import main
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.progress import Reporting
from beit3_bench.harness.session import run_task
from beit3_bench.harness.termination import Terminated, heeding_sigterm
from beit3_bench.harness.training.engines import EngineWatcher, start_engine
from beit3_bench.harness.training.start import FinetuneRequest, find_origin
from beit3_bench.tasks.ade20k import ADE20K, class_names, commonest_class_score
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.label_maps import dense_histogram, encode_png, read_label, sparse_histogram
from beit3_bench.tasks.metrics.segmentation import class_histograms

CLASSES = 150
SIZES = [(64, 48), (50, 70), (96, 64), (40, 40)]  # width, height


def write(path: Path, values: Any, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(path)
    return path


@pytest.fixture
def maps(tmp_path: Path) -> tuple[Path, Path]:
    """Two images of 2x3: predictions (1..150) and annotations with an ignored pixel."""
    write(tmp_path / "labels" / "a.png", [[0, 1, 1], [2, 2, 150]])
    write(tmp_path / "labels" / "b.png", [[255, 1, 1], [1, 1, 1]])
    write(tmp_path / "predicted" / "a.png", [[7, 1, 2], [2, 2, 150]])
    write(tmp_path / "predicted" / "b.png", [[1, 1, 1], [1, 3, 3]])
    return tmp_path / "predicted", tmp_path / "labels"


def score(predicted: Path, labels: Path, **more: Any) -> dict[str, float]:
    return ADE20K.score_file(ScoreInputs(predicted, labels, **more)).metrics


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_of_two_small_maps_are_those_counted_by_hand(maps: tuple[Path, Path]) -> None:
    scores = ADE20K.score_file(ScoreInputs(*maps))
    # wall: 4 of 7 labelled, 4 predicted; building: 2 of 2 labelled, 3 predicted; sky: 2 predicted only; flag: 1 of 1
    iou = {"wall": 4 / 7, "building": 2 / 3, "sky": 0.0, "flag": 1.0}
    acc = {"wall": 4 / 7, "building": 1.0, "flag": 1.0}
    expected = {f"IoU/{k}": v for k, v in iou.items()} | {f"Acc/{k}": v for k, v in acc.items()}
    expected |= {"mIoU": np.mean(list(iou.values())), "mAcc": np.mean(list(acc.values())), "aAcc": 7 / 10}
    assert scores.metrics == pytest.approx(expected)
    assert scores.counts == {"images": 2, "pixels": 10, "classes": 3}
    assert scores.samples["aAcc"] == pytest.approx({"a": 4 / 5, "b": 3 / 5})


def test_zero_based_predictions_score_the_same(maps: tuple[Path, Path], tmp_path: Path) -> None:
    for path in maps[0].iterdir():
        write(tmp_path / "zero" / path.name, np.asarray(Image.open(path)) - 1)
    assert score(tmp_path / "zero", maps[1], zero_based=True) == score(*maps)


def test_zeros_are_wrong_and_of_no_class_as_in_the_official_tool(maps: tuple[Path, Path]) -> None:
    """utils_eval.py of CSAILVision/sceneparsing; a value of 150 says that the predictions count from 1."""
    write(maps[0] / "a.png", [[0, 1, 0], [2, 2, 150]])
    scores = ADE20K.score_file(ScoreInputs(*maps))
    # wall: 4 of 7 labelled, 4 predicted; building: 2 of 2; sky: 2 predicted only; flag: 1 of 1
    assert {k: scores.metrics[f"IoU/{k}"] for k in ("wall", "building", "sky", "flag")} == pytest.approx(
        {"wall": 4 / 7, "building": 1.0, "sky": 0.0, "flag": 1.0}
    )
    assert scores.metrics["aAcc"] == pytest.approx(7 / 10)
    assert scores.notes == [
        "1 of 10 evaluated pixels are predicted as 0 (other): wrong, and of no class, as in the official utils_eval.py"
    ]
    for name, old in (("wall", 0), ("sky", 2)):
        assert class_names()[old] == name
    table = scores.table
    assert table is not None
    assert {k: float(v) for k, v in ADE20K(maps[0]).estimate(table.sums()).items() if np.isfinite(v)} == pytest.approx(
        scores.metrics
    )


def official(predicted: Path, labels: Path) -> tuple[float, float]:
    """Mean IoU over the classes that are there, and pixel accuracy, after ``intersectionAndUnion`` and ``pixelAccuracy``."""
    areas = np.zeros((3, CLASSES + 1))
    right = labelled = 0
    for path in sorted(labels.iterdir()):
        truth = np.asarray(Image.open(path)).astype(int)
        values = np.asarray(Image.open(predicted / path.name)).astype(int) * (truth > 0)
        areas += [np.bincount(x.ravel(), minlength=CLASSES + 1) for x in (values * (values == truth), values, truth)]
        right, labelled = right + int(((values == truth) & (truth > 0)).sum()), labelled + int((truth > 0).sum())
    intersection, union = areas[0, 1:], (areas[1] + areas[2] - areas[0])[1:]
    return float((intersection[union > 0] / union[union > 0]).mean()), right / labelled


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_predictions_with_zeros_score_as_the_official_tool_scores_them(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    random, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("maps")
    for n in range(3):
        label = random.choice([0, 1, 2, 77, 150], (5, 6))
        guess = np.where(random.random((5, 6)) < 0.7, label, random.choice([0, 1, 3, 150], (5, 6)))
        guess[0, 0] = 150
        write(folder / "labels" / f"{n}.png", label)
        write(folder / "predicted" / f"{n}.png", guess)
    found = score(folder / "predicted", folder / "labels")
    assert (found["mIoU"], found["aAcc"]) == pytest.approx(official(folder / "predicted", folder / "labels"))


@pytest.mark.parametrize(
    ("values", "zero_based", "note", "error"),
    [
        ([[0, 0, 0], [1, 1, 149]], False, None, r"a\.png: prediction holds 0; .*give --zero-based"),
        ([[3, 1, 2], [2, 2, 2]], True, "is --zero-based right?", None),
        ([[5, 2, 2], [1, 1, 149]], True, None, None),
        (
            [[0, 0, 0], [0, 0, 0]],
            False,
            "5 of 5 evaluated pixels are predicted as 0",
            None,
        ),  # by chance 2 of 5 are right
    ],
)
def test_advice_on_the_numbering_goes_by_what_more_pixels_say(
    maps: tuple[Path, Path], values: Any, zero_based: bool, note: str | None, error: str | None
) -> None:
    write(maps[1] / "a.png", [[0, 1, 1], [2, 2, 150]])
    write(maps[0] / "a.png", values)
    for folder in maps:
        (folder / "b.png").unlink()
    if error is not None:
        with pytest.raises(BenchError, match=error):
            score(*maps, zero_based=zero_based)
        return
    notes = ADE20K.score_file(ScoreInputs(*maps, zero_based=zero_based)).notes
    assert any(note in line for line in notes) if note is not None else notes == []


@pytest.mark.parametrize("count", [999, 1001, 2001])
def test_a_part_of_the_validation_images_is_read(tmp_path: Path, count: int) -> None:
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        folder = tmp_path / kind / "validation"
        folder.mkdir(parents=True)
        for n in range(count):
            (folder / f"ADE_val_{n + 1:08d}.{suffix}").touch()
    assert len(ADE20K(tmp_path).read("val").examples) == count


def test_score_prints_the_golden_values(tmp_path: Path) -> None:
    folder = metrics_golden("segmentation")
    words = ["--predictions", str(folder / "predictions"), "--annotations", str(folder / "annotations"), "--zero-based"]
    done = CliRunner().invoke(main, ["score", "--task", "ade20k-seg", *words, "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    expected = json.loads((folder / "expected.json").read_text())
    assert {k: values[k] for k in ("mIoU", "mAcc", "aAcc")} == pytest.approx(
        {k: expected[k] for k in ("mIoU", "mAcc", "aAcc")}, abs=1e-9
    )
    for kind in ("IoU", "Acc"):
        wanted = {
            f"{kind}/{n}": v for n, v in zip(class_names(), expected["per_class"][kind], strict=True) if v is not None
        }
        assert {k: v for k, v in values.items() if k.startswith(f"{kind}/")} == pytest.approx(wanted, abs=1e-9)


def test_every_class_of_the_result_has_an_interval(maps: tuple[Path, Path]) -> None:
    scores = ADE20K.score_file(ScoreInputs(*maps))
    assert scores.table is not None
    estimated = ADE20K(maps[0]).estimate(scores.table.sums())
    assert {k: float(v) for k, v in estimated.items() if np.isfinite(v)} == pytest.approx(scores.metrics)
    resampled = ADE20K(maps[0]).estimate(scores.table.sums(np.array([[2.0, 0], [1, 1], [0, 2]])))
    assert {values.shape for values in resampled.values()} == {(3,)}


def test_partial_predictions_need_permission(maps: tuple[Path, Path]) -> None:
    (maps[0] / "b.png").unlink()
    with pytest.raises(BenchError, match=r"1 of 2 images without prediction \(b\)"):
        score(*maps)
    scores = ADE20K.score_file(ScoreInputs(*maps, allow_partial=True))
    assert scores.notes == ["partial: 1 of 2 images (50.0%)"]
    assert scores.metrics["aAcc"] == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("name", "values", "mode", "more", "message"),
    [
        ("predicted/a.png", np.ones((3, 2)), None, {}, r"a\.png: prediction is 2x3, its annotation 3x2"),
        ("predicted/a.png", np.full((2, 3), 150), None, {"zero_based": True}, r"holds 150; classes are 0\.\.149; is --zero-based right"),
        ("predicted/a.png", np.full((2, 3), 151), None, {}, r"prediction holds 151"),
        ("predicted/a.png", np.ones((2, 3)), "P", {}, r"a\.png: prediction is a palette image"),
        ("predicted/a.png", np.ones((2, 3)), "RGB", {}, "prediction is an image of mode RGB"),
        ("labels/a.png", np.ones((2, 3)), "P", {}, r"a\.png: annotation is a palette image"),
        ("labels/a.png", np.full((2, 3), 151), None, {}, r"a\.png: annotation holds 151; ADE20K has 0 \(other\)"),
        ("labels/c.png", np.ones((2, 3)), None, {}, r"1 of 3 images without prediction \(c\)"),
        ("predicted/c.png", np.ones((2, 3)), None, {}, r"1 unknown images \(c\)"),
    ],
)  # fmt: skip
def test_bad_maps_are_named(
    maps: tuple[Path, Path], name: str, values: Any, mode: str | None, more: dict, message: str
) -> None:
    write(maps[0].parent / name, values, mode)
    with pytest.raises(BenchError, match=message):
        score(*maps, **more)


def test_bad_folders_are_named(maps: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match="there is no such folder"):
        score(maps[0] / "a.png", maps[1])
    with pytest.raises(BenchError, match="holds no PNG files"):
        score(tmp_path / "empty", maps[1])
    with pytest.raises(BenchError, match="needs --annotations"):
        ADE20K.score_file(ScoreInputs(maps[0]))
    (maps[0] / "a.png").write_bytes((maps[0] / "a.png").read_bytes()[:40])
    with pytest.raises(BenchError, match=r"a\.png: prediction does not decode"):
        score(*maps)
    for name in "ab":
        write(maps[1] / f"{name}.png", np.zeros((2, 3)))
        write(maps[0] / f"{name}.png", np.ones((2, 3)))
    with pytest.raises(BenchError, match="no pixel to evaluate"):
        score(*maps)


@given(st.integers(0, 2**32 - 1), st.integers(1, CLASSES))
@settings(max_examples=30, deadline=None)
def test_rows_hold_every_area_exactly(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    label = random.integers(0, classes, (7, 9)).astype(np.uint8)
    label[random.random((7, 9)) < 0.2] = 255
    histogram = class_histograms(random.integers(0, classes, (7, 9)), label, CLASSES)
    row = json.loads(json.dumps(sparse_histogram(histogram)))
    back = dense_histogram(row)
    assert back.dtype == np.int64
    assert np.array_equal(back, histogram)


def test_the_commonest_class_alone_scores_its_share_over_the_classes() -> None:
    areas = np.zeros(CLASSES, dtype=np.int64)
    areas[[3, 5, 9, 20]] = [60, 20, 10, 10]
    label = np.repeat([3, 5, 9, 20], [60, 20, 10, 10]).reshape(10, 10)
    histogram = class_histograms(np.full((10, 10), 3), label, CLASSES)
    ious = histogram[0] / np.maximum(histogram[1], 1)
    assert commonest_class_score(areas) == pytest.approx(ious.sum() / 4) == pytest.approx(0.15)


def test_png_bytes_come_back_in_both_numberings(tmp_path: Path) -> None:
    classes = np.arange(150).reshape(10, 15)
    for zero_based in (False, True):
        (tmp_path / "x.png").write_bytes(encode_png(classes, zero_based).tobytes())
        assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), classes + (not zero_based))


# ---- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Training and validation images of several sizes, and test images without annotation."""
    return write_data(tmp_path / "ADEChallengeData2016")


def write_data(root: Path) -> Path:
    random = np.random.default_rng(0)
    for subset, word, sizes in (
        ("training", "train", SIZES * 2),
        ("validation", "val", SIZES),
        ("testing", "test", SIZES[:2]),
    ):
        for i, (width, height) in enumerate(sizes):
            name = f"ADE_{word}_{i + 1:08d}"
            label = np.kron(random.integers(0, 5, (2, 2)), np.ones((height // 2, width // 2), dtype=int))
            label[0, 0] = 3
            pixels = np.stack([label * 60, 255 - label * 50, label * 20], axis=-1) + random.integers(
                0, 10, (height, width, 3)
            )
            path = root / "images" / subset / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=95)
            if subset != "testing":
                write(root / "annotations" / subset / f"{name}.png", label)
    return root


def test_examples_are_the_images_and_their_annotations(data: Path) -> None:
    for root in (data, data.parent):
        examples = ADE20K(root).read("val").examples
        assert [e.id for e in examples] == [f"ADE_val_{i:08d}" for i in (1, 2, 3, 4)]
        assert all(Path(e.images[0]).is_file() and Path(e.truth_files[0]).is_file() for e in examples)
    assert [e.target for e in ADE20K(data).read("test").examples] == [None, None]


def test_missing_data_is_named(data: Path) -> None:
    (data / "annotations/validation/ADE_val_00000002.png").unlink()
    with pytest.raises(BenchError, match=r"1 of 4 images have no annotation \(ADE_val_00000002\.jpg\)"):
        ADE20K(data).read("val")
    with pytest.raises(BenchError, match="ADE20K image folder not found"):
        ADE20K(data / "annotations").read("val")
    (data / "images/training").rename(data / "images/train")
    with pytest.raises(BenchError, match="images/training: ADE20K image folder not found"):
        ADE20K(data).read("train")


def test_label_values_reach_the_models_numbering(tmp_path: Path) -> None:
    path = write(tmp_path / "x.png", [[0, 1, 150, 255]])
    assert read_label(path).tolist() == [[255, 0, 149, 255]]


# ---- without the stack -----------------------------------------------------------------------------------------------


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)


def test_reading_and_scoring_import_no_heavy_framework() -> None:
    done = python(
        "import sys, beit3_bench.tasks.ade20k as a; a.class_names(); print([m for m in ('torch', 'mmseg', 'mmcv') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("missing", ["mmcv", "mmcv._ext", "mmseg"])
def test_a_missing_stack_is_recorded_with_its_install_line(data: Path, tmp_path: Path, missing: str) -> None:
    """``mmcv._ext`` holds the compiled ops: mmcv without them is as good as none."""
    if missing == "mmseg":
        pytest.importorskip("mmcv")  # or that would be the first to be missed
    checkpoint, folder = tmp_path / "x.pth", tmp_path / "run"
    checkpoint.write_bytes(b"")
    words = [
        "run",
        "--task",
        "ade20k-seg",
        "--checkpoint",
        str(checkpoint),
        "--data-root",
        str(data),
        "--output",
        str(folder),
    ]
    program = f"import sys; sys.modules[{missing!r}] = None; from beit3_bench.harness.cli import main; main({words!r})"
    done = python(program)
    assert done.returncode == 2
    assert f"task ade20k-seg needs {missing.split('.')[0]}" in done.stderr
    assert "install it with: pip install" in done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "not installed"
    assert "pip install" in result["notes"][0]


# ---- recipes ---------------------------------------------------------------------------------------------------------


def test_recipe_options_without_effect_are_refused() -> None:
    check_keys({"lr": "1", "micro-batch": "2"}, "ade20k-seg")
    with pytest.raises(BenchError, match="recipe of ade20k-seg: mixup has no effect on segmentation; it takes: steps"):
        check_keys({"mixup": "0.8"}, "ade20k-seg")
    assert not set(SAME) & set(OTHERS)


def test_a_batch_is_divided_or_refused() -> None:
    recipe = load_recipe("ade20k-seg", "base")
    assert divide_batch(recipe, 8) == (2, 1)
    assert divide_batch(load_recipe("ade20k-seg", "base", {"micro_batch": "2"}), 2) == (2, 4)
    with pytest.raises(BenchError, match="16 does not divide over 3 processes"):
        divide_batch(recipe, 3)
    with pytest.raises(BenchError, match="micro_batch 5 does not divide the 16"):
        divide_batch(load_recipe("ade20k-seg", "base", {"micro_batch": "5"}), 1)


# ---- with the stack --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dense() -> SimpleNamespace:
    """What needs mmcv, mmdet and mmseg; skips where they are not installed."""
    for module in ("mmcv.ops", "mmdet.models", "mmseg.apis"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra: dense)", exc_type=ImportError)
    import torch
    from mmengine.config import Config

    from beit3_bench.backbones.beit3.mmseg_adapter import loading, mmseg_config
    from beit3_bench.backbones.beit3.mmseg_adapter import settings as named

    return SimpleNamespace(torch=torch, Config=Config, loading=loading, mmseg_config=mmseg_config, named=named)


ARCH = {"image_size": 64, "patch_size": 16, "embed_dim": 48, "num_heads": 3, "ffn_dim": 96, "depth": 3}


@pytest.fixture(scope="session")
def trained(dense: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with random weights that predict several classes: whole images, and sliding windows."""
    torch, files = dense.torch, {}
    for neck, mode in (("adapter", "slide"), ("pyramid", "whole")):
        settings_ = dense.named.SegmentationSettings(
            arch=ARCH, neck=neck, mode=mode, crop=64, stride=48, width=32, queries=6, encoder_layers=1, decoder_layers=1,
            decoder_ffn=32, points=32, conv_channels=4, ratios=(0.75, 1.0),
            **({"multiple": 32, "sigmoid_first": True} if neck == "adapter" else {}),
        )  # fmt: skip
        torch.manual_seed(0)
        model = dense.loading.build_segmentor(dense.Config(dense.mmseg_config.config_dict(settings_)))
        torch.manual_seed(4)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(("norm" in name and name.endswith("weight")) + torch.randn(p.shape))
        folder = tmp_path_factory.mktemp(mode)
        files[mode] = folder / "best.pth"
        dense.loading.save_segmentor(files[mode], model, settings_, {"task": "ade20k-seg", "preset": "tiny"})
        dense.Config(dense.mmseg_config.config_dict(settings_)).dump(str(folder / "config.py"))
    return files


def evaluate(
    checkpoint: Path, data: Path, folder: Path, batch_size: int = 16, split: str | None = None, **options: str
) -> dict[str, Any]:
    request = run_request(
        "ade20k-seg",
        checkpoint,
        data,
        split=split,
        device="cpu",
        workers=0,
        batch_size=batch_size,
        output=folder,
        options=options,
    )
    return run_task(request, ADE20K).result


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {p.stem: np.asarray(Image.open(p)) for p in sorted((folder / "submission").glob("*.png"))}


def test_python_segments_what_a_run_writes(trained: dict[str, Path], data: Path, tmp_path: Path) -> None:
    """`load(...).segment` and `evaluate`, with data and without."""
    expected = evaluate(trained["whole"], data, tmp_path / "run", save_png="true")
    own = pictures(tmp_path / "run")
    files = sorted((data / "images/validation").iterdir())
    for model in (
        beit3_bench.load(trained["whole"], "ade20k-seg", data, device="cpu"),
        beit3_bench.load(trained["whole"], "ade20k-seg", device="cpu"),
    ):
        for path, classes in zip(files, model.segment([str(path) for path in files]), strict=True):
            assert classes.dtype == np.uint8
            assert np.array_equal(own[path.stem].astype(int) - 1, classes)
        assert len(model.labels) == 150
    result = beit3_bench.evaluate(model, "ade20k-seg", data)
    assert result.metrics["mIoU"].value == expected["metrics"]["mIoU"]["value"]


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_predictions_are_those_of_plain_mmseg(trained: dict[str, Path], data: Path, tmp_path: Path, mode: str) -> None:
    from mmseg.apis import inference_model, init_model

    result = evaluate(trained[mode], data, tmp_path / "run", save_png="true")
    model = init_model(str(trained[mode].parent / "config.py"), str(trained[mode]), device="cpu")
    own = pictures(tmp_path / "run")
    assert len(own) == 4
    seen = set()
    for path in sorted((data / "images/validation").iterdir()):
        expected = inference_model(model, str(path)).pred_sem_seg.data[0].numpy()
        assert np.array_equal(own[path.stem].astype(int) - 1, expected)
        seen |= set(np.unique(expected).tolist())
    assert len(seen) > 1
    assert set(result["metrics"]) >= {"mIoU", "mAcc", "aAcc"}
    assert result["metrics"]["mIoU"]["unit"] == "fraction"


@pytest.mark.parametrize("multi_scale", [False, True])
def test_images_in_memory_are_predicted_as_files_are(trained: dict[str, Path], data: Path, multi_scale: bool) -> None:
    from asking import load

    task = ADE20K(data, {"multi_scale": str(multi_scale)})
    split, path = task.read("val"), on_its_side(data, "validation", "ADE_val_00000001")
    ability = load(task, split, trained["slide"]).ability
    with Image.open(path) as picture:
        first, second = ability.predict(ability.reader.collate([Item(images=(str(path),)), Item(images=(picture,))]))
    assert first.dtype == np.uint8
    assert first.shape == (48, 64)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_scores_are_those_of_mmsegs_own_test_loop(
    trained: dict[str, Path], data: Path, tmp_path: Path, mode: str
) -> None:
    """mmengine's Runner with the checkpoint's config: loader, preprocessor, model and `IoUMetric` of mmseg."""
    from mmengine.config import Config
    from mmengine.runner import Runner

    result = evaluate(trained[mode], data, tmp_path / "run")
    cfg = Config.fromfile(str(trained[mode].parent / "config.py"))
    loader = cfg.test_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    loader.dataset.data_root = str(data)
    cfg.update(work_dir=str(tmp_path / "work"), load_from=str(trained[mode]), experiment_name=f"{mode}-{tmp_path.name}")
    metrics = Runner.from_cfg(cfg).test()
    for name in ("mIoU", "mAcc", "aAcc"):
        assert 100 * result["metrics"][name]["value"] == pytest.approx(
            metrics[name], abs=0.006
        )  # it rounds to 2 decimals


def test_several_scales_and_flips_are_those_of_mmsegs_tta(
    trained: dict[str, Path], data: Path, tmp_path: Path, dense: SimpleNamespace
) -> None:
    from mmseg.registry import MODELS

    result = evaluate(trained["slide"], data, tmp_path / "run", multi_scale="true", save_png="true")
    assert {n for n in result["metrics"] if "/" not in n} == {"mIoU_ms", "mAcc_ms", "aAcc_ms"}
    assert [n for n, m in result["metrics"].items() if m["headline"]] == ["mIoU_ms"]
    assert result["metrics"]["mIoU_ms"]["ci95"] is not None
    source = read_checkpoint(trained["slide"])
    cfg = dense.loading.evaluation_config(source, None, dense.loading.Protocol())
    model = dense.loading.build_segmentor(cfg)
    dense.loading.load_segmentor(model, source.tensors, "x")
    wrapper = MODELS.build({"type": "SegTTAModel", "module": model})
    pipeline = dense.loading.preprocessing_of(cfg, True).compose()
    own = pictures(tmp_path / "run")
    for path in sorted((data / "images/validation").iterdir()):
        packed = pipeline({"img_path": str(path)})
        assert len(packed["inputs"]) == 4
        with dense.torch.no_grad():
            found = wrapper.test_step(
                {"inputs": [[x] for x in packed["inputs"]], "data_samples": [[x] for x in packed["data_samples"]]}
            )
        assert np.array_equal(own[path.stem].astype(int) - 1, found[0].pred_sem_seg.data.numpy().squeeze())


def test_written_pngs_score_like_the_run(trained: dict[str, Path], data: Path, tmp_path: Path) -> None:
    labels = data / "annotations/validation"
    for options in ({}, {"zero_based": "true"}):
        folder = tmp_path / f"run{len(options)}"
        result = evaluate(trained["whole"], data, folder, save_png="true", **options)
        again = score(folder / "submission", labels, zero_based=bool(options))
        assert again == {name: metric["value"] for name, metric in result["metrics"].items()}


def test_the_test_split_is_only_predicted(trained: dict[str, Path], data: Path, tmp_path: Path) -> None:
    result = evaluate(trained["whole"], data, tmp_path / "run", split="test")
    assert result["status"] == "to upload"
    found = pictures(tmp_path / "run")
    assert [v.shape[::-1] for v in found.values()] == SIZES[:2]
    assert all(v.min() >= 1 and v.max() <= 150 for v in found.values())


def test_rows_do_not_depend_on_batches_and_a_killed_run_goes_on(
    trained: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    first = evaluate(trained["slide"], data, tmp_path / "a", batch_size=1)
    second = evaluate(trained["slide"], data, tmp_path / "b", batch_size=3)
    values = lambda result: {n: m["value"] for n, m in result["metrics"].items()}  # noqa: E731
    assert values(first) == values(second)
    assert first["chance"] == pytest.approx(second["chance"])
    assert 0 < first["chance"] < 1
    shard = tmp_path / "a/rows/rank-00000.jsonl"
    lines = shard.read_text().splitlines(keepends=True)
    shard.write_text("".join(lines[:4]) + lines[4][:20])  # two rows with their markers, and a torn third
    (tmp_path / "a/result.json").unlink()
    resumed = evaluate(trained["slide"], data, tmp_path / "a", batch_size=2)
    assert resumed["timing"]["resumed_samples"] == 2
    assert values(resumed) == values(first)
    assert {n: m["ci95"] for n, m in resumed["metrics"].items()} == {n: m["ci95"] for n, m in first["metrics"].items()}


@pytest.mark.parametrize(
    ("name", "values", "mode", "message"),
    [
        ("annotations/validation/ADE_val_00000001.png", np.ones((4, 5)), None, r"annotation is 5x4, its image 64x48"),
        ("annotations/validation/ADE_val_00000001.png", np.full((48, 64), 200), None, "annotation holds 200"),
        ("annotations/validation/ADE_val_00000001.png", np.ones((48, 64)), "P", "annotation is a palette image"),
        ("images/validation/ADE_val_00000001.jpg", None, None, r"ADE_val_00000001\.jpg: image does not decode"),
    ],
)  # fmt: skip
def test_bad_data_stops_a_run(
    trained: dict[str, Path], data: Path, tmp_path: Path, name: str, values: Any, mode: str | None, message: str
) -> None:
    if values is None:
        (data / name).write_bytes((data / name).read_bytes()[:100])
    else:
        write(data / name, values, mode)
    with pytest.raises(BenchError, match=message):
        evaluate(trained["whole"], data, tmp_path / "run")
    assert not (tmp_path / "run/result.json").exists()


def changed(dense: SimpleNamespace, source: Path, target: Path, change: Any) -> Path:
    content = dense.torch.load(source, weights_only=True)
    change(content)
    dense.torch.save(content, target)
    return target


def test_checkpoints_that_do_not_fit_are_named(
    trained: dict[str, Path], data: Path, tmp_path: Path, dense: SimpleNamespace
) -> None:
    torch = dense.torch

    def refused(change: Any, message: str, **options: str) -> None:
        file = changed(dense, trained["whole"], tmp_path / "x.pth", change)
        with pytest.raises(BenchError, match=message):
            evaluate(file, data, tmp_path / "run", **options)

    def other_classes(c: dict) -> None:
        c["state_dict"]["decode_head.cls_embed.weight"] = torch.zeros(20, 32)

    def other_settings(c: dict) -> None:
        c["beit3_bench"]["segmentation"]["classes"] = 19

    refused(other_classes, "was trained for 19 classes, this model has 150")
    refused(other_settings, "config has 19 classes, ADE20K has 150")
    refused(lambda c: c["state_dict"].pop("backbone.net.pos_embed"), r"1 missing \(backbone\.net\.pos_embed\)")
    refused(lambda c: c["state_dict"].update(more=torch.zeros(1)), r"1 unexpected \(more\)")
    refused(lambda c: c["beit3_bench"].pop("segmentation"), r"-o config=FILE\.py")
    refused(lambda c: None, "does not fit this model", config="tiny")
    refused(lambda c: None, "config file not found", config="absent.py")
    refused(lambda c: None, "did you mean 'large-896'", config="large-898")
    refused(lambda c: None, "mode is 'crops'", mode="crops")
    official = tmp_path / "official.pth"
    torch.save({"model": {**tensors("weights_backbone"), **tensors("weights_retrieval")}}, official)
    with pytest.raises(BenchError, match="holds no segmentation head; train one first: beit3-bench finetune"):
        evaluate(official, data, tmp_path / "run", config="tiny")


def test_a_plain_mmseg_config_and_state_dict_can_be_evaluated(
    trained: dict[str, Path], data: Path, tmp_path: Path, dense: SimpleNamespace
) -> None:
    bare = changed(dense, trained["whole"], tmp_path / "iter_10.pth", lambda c: (c.pop("beit3_bench"), c.pop("meta")))
    config = str(trained["whole"].parent / "config.py")
    first = evaluate(trained["whole"], data, tmp_path / "a")
    second = evaluate(bare, data, tmp_path / "b", config=config)
    assert {n: m["value"] for n, m in first["metrics"].items()} == {n: m["value"] for n, m in second["metrics"].items()}
    with pytest.raises(BenchError, match=r"config\.py: sets mode itself"):
        evaluate(bare, data, tmp_path / "c", config=config, mode="slide")


def test_windows_can_be_chosen_for_a_run(trained: dict[str, Path], data: Path, tmp_path: Path) -> None:
    plain = evaluate(trained["whole"], data, tmp_path / "a")
    windows = evaluate(trained["whole"], data, tmp_path / "b", mode="slide", crop="96", stride="64")
    assert (
        plain["provenance"]["fingerprints"]["preprocessing"] != windows["provenance"]["fingerprints"]["preprocessing"]
    )
    assert windows["model"]["image_size"] == 96
    assert windows["metrics"]["aAcc"]["value"] != plain["metrics"]["aAcc"]["value"]


# ---- orientation -----------------------------------------------------------------------------------------------------


def on_its_side(data: Path, subset: str, name: str, kind: str = "JPEG") -> Path:
    """Store an image with EXIF orientation 6; the label map stays as it is."""
    path = data / "images" / subset / f"{name}.jpg"
    with Image.open(path) as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_90)  # what orientation 6 undoes
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(path, kind, exif=exif, quality=95)
    return path


@pytest.mark.parametrize("subset", ["training", "validation"])
def test_images_are_turned_upright_in_training_and_evaluation(dense: SimpleNamespace, data: Path, subset: str) -> None:
    from mmengine.registry import DefaultScope
    from mmseg.registry import DATASETS
    from PIL import ImageOps

    name = f"ADE_{'train' if subset == 'training' else 'val'}_00000001"
    path = on_its_side(data, subset, name)
    config = dense.mmseg_config.config_dict(dense.named.VARIANTS["tiny"], str(data))
    loader = config["train_dataloader" if subset == "training" else "val_dataloader"]["dataset"]
    loader["pipeline"] = (
        loader["pipeline"][:2] if subset == "training" else [*loader["pipeline"][:1], loader["pipeline"][2]]
    )
    with DefaultScope.overwrite_default_scope("mmseg"):
        sample = DATASETS.build(loader)[0]
    assert sample["img_path"] == str(path)
    assert sample["img"].shape[:2] == sample["gt_seg_map"].shape == (48, 64)
    with Image.open(path) as stored:
        assert stored.size == (48, 64)
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.abs(sample["img"][..., ::-1].astype(int) - upright).max() <= 2


def test_a_run_takes_upright_sizes_and_verify_compares_them(
    trained: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    from beit3_bench.harness.evidence.verify import verify

    on_its_side(data, "validation", "ADE_val_00000001")
    assert "annotations" not in {f.check for f in verify(ADE20K, data, split="val").findings}
    result = evaluate(trained["whole"], data, tmp_path / "run")
    assert result["counts"]["images"] == len(SIZES)
    label = data / "annotations/validation/ADE_val_00000001.png"
    write(label, np.asarray(Image.open(label)).T)
    (line,) = [f.line for f in verify(ADE20K, data, split="val").findings if f.check == "annotations"]
    assert "annotation is 48x64, its image 64x48" in line


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recipe_names("ade20k-seg"))
def test_recipes_say_what_the_configs_say(dense: SimpleNamespace, name: str) -> None:
    settings_, recipe = dense.named.variant(name), load_recipe("ade20k-seg", name)
    assert apply_recipe(settings_, recipe, settings_.batch) == settings_
    assert recipe.batch == (settings_.batch if name == "tiny" else 16)
    assert set(recipe_names("ade20k-seg")) == {n for n, s in dense.named.VARIANTS.items() if s.dataset == "ade20k"}


def ask(data: Path, output: Path, **more: Any) -> FinetuneRequest:
    """A request that a mini data set can serve."""
    options = {"steps": "2", "warmup_steps": "1", "batch": "2", "log_steps": "1", **more.pop("options", {})}
    known: dict[str, Any] = {"preset": "tiny", "output": output, "device": "cpu", "workers": 0}
    return FinetuneRequest("ade20k-seg", data, **{**known, "options": options, **more})


def engine(request: FinetuneRequest) -> TrainingEngine:
    return start_engine(request, ADE20K, find_origin(request, ADE20K), Processes())


def finetune(request: FinetuneRequest) -> dict[str, Any]:
    return engine(request).run()


def test_fine_tuning_starts_from_an_official_checkpoint_and_ends_in_one_that_runs(
    dense: SimpleNamespace, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmseg.apis import init_model

    torch = dense.torch
    config = {**ARCH, "num_heads": 4, "ffn_dim": 192, "vocab_size": 211, "mask_token_id": 202}
    start = tmp_path / "start.pth"
    weights = {**tensors("weights_backbone"), **tensors("weights_retrieval")}
    torch.save({"model": weights, "beit3_bench": {"preset": "tiny", "config": config}}, start)
    request = ask(data, tmp_path / "out", checkpoint=start, options={"lr": "0", "min_lr": "0"})
    summary = finetune(request)
    assert capsys.readouterr().out == ""
    assert summary["steps"] == summary["best"]["step"] == 2
    assert summary["source"]["missing"] == []
    assert summary["folder"] == str(tmp_path / "out")
    best = torch.load(summary["checkpoint"], weights_only=True)
    # at a rate of zero the tower is still what it started as
    assert torch.equal(
        best["state_dict"]["backbone.net.blocks.0.attn.proj.weight"],
        weights["beit3.encoder.layers.0.self_attn.out_proj.A.weight"],
    )
    assert best["beit3_bench"]["source"]["sha256"] == read_checkpoint(start).sha256
    result = evaluate(Path(summary["checkpoint"]), data, tmp_path / "run")
    assert (result["setting"], result["model"]["preset"]) == ("fine-tuned", "tiny")
    assert result["metrics"]["mIoU"]["value"] == pytest.approx(summary["best"]["value"], abs=6e-5)  # mmseg rounds
    init_model(str(tmp_path / "out/mmseg_config.py"), summary["checkpoint"], device="cpu")
    # and so does mmengine's own state, which holds the last weights, optimizer and all
    state = max((tmp_path / "out").glob("iter_*.pth"))
    last = evaluate(state, data, tmp_path / "last", config=str(tmp_path / "out/mmseg_config.py"))
    assert last["metrics"]["mIoU"]["value"] == pytest.approx(summary["best"]["value"], abs=6e-5)
    # a segmentor is a start, too
    again = finetune(ask(data, tmp_path / "again", checkpoint=Path(summary["checkpoint"])))
    assert again["source"]["checkpoint"] == "best.pth"


def test_a_training_goes_on_where_it_stopped(
    dense: SimpleNamespace, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from beit3_bench.backbones.beit3.mmseg_adapter.training import StopAtNaN

    torch, out = dense.torch, tmp_path / "out"
    options = {"steps": "4", "save_steps": "1", "micro_batch": "1"}

    def interrupted(self: Any, runner: Any, batch_idx: int, **_: Any) -> None:
        if batch_idx == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StopAtNaN, "after_train_iter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(ask(data, out, options=options))
    assert not (out / "best.pth").exists()
    with pytest.raises(BenchError, match="holds a training already; go on with --resume"):
        finetune(ask(data, out, options=options))
    with pytest.raises(BenchError, match=r"was made with other settings \(lr 0\.002 -> 0\.1\)"):
        finetune(ask(data, out, resume=True, options={**options, "lr": "0.1"}))
    resumed = finetune(ask(data, out, resume=True, options=options))
    assert resumed["steps"] == resumed["best"]["step"] == 4
    state = torch.load(out / "iter_8.pth", weights_only=True)  # two forward passes per step
    assert state["meta"]["iter"] == 8
    assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {4}
    (out / "iter_8.pth").write_bytes((out / "iter_8.pth").read_bytes()[:1000])
    with pytest.raises(BenchError, match="not a whole training state"):
        finetune(ask(data, out, resume=True, options=options))
    finetune(ask(data, out, overwrite=True))
    assert not (out / "iter_8.pth").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_training_leaves_no_decoding_process_behind(
    interrupted: bool, dense: SimpleNamespace, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a process outlives the one SIGTERM that Python sends it at its own end, which waited for it for ever."""
    from beit3_bench.backbones.beit3.mmseg_adapter.training import StopAtNaN

    def interrupt(self: Any, runner: Any, batch_idx: int, **_: Any) -> None:
        raise KeyboardInterrupt

    before = multiprocessing.active_children()
    if interrupted:
        monkeypatch.setattr(StopAtNaN, "after_train_iter", interrupt)
    request = ask(data, tmp_path / "out", workers=1)
    watcher = EngineWatcher(request, Processes())
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        watcher.watch(start_engine(request, ADE20K, find_origin(request, ADE20K), Processes(), watcher))
    assert multiprocessing.active_children() == before


def test_somebody_elses_folder_is_left_alone(dense: SimpleNamespace, data: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no training to resume"):
        finetune(ask(data, tmp_path / "nothing", resume=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(BenchError, match=r"holds something else \(thesis\.txt\)"):
        finetune(ask(data, tmp_path / "mine", overwrite=True))
    assert (tmp_path / "mine/thesis.txt").read_text() == "x"


def test_a_state_that_would_run_code_is_not_resumed(dense: SimpleNamespace, tmp_path: Path) -> None:
    from beit3_bench.backbones.beit3.mmseg_adapter.training import resumable_state

    class Harmful:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    out = tmp_path / "out"
    out.mkdir()
    dense.torch.save({"state_dict": {}, "meta": Harmful()}, out / "iter_1.pth")
    (out / "last_checkpoint").write_text(str(out / "iter_1.pth"))
    with pytest.raises(BenchError, match="plain values"):
        resumable_state(out)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "base"}, "preset base starts from pretrained weights"),
        ({"preset": "bsae"}, "did you mean 'base'"),
        ({"preset": None}, "--preset is missing"),
        ({"recipe": "tiny-er"}, "did you mean 'tiny'"),
        ({"checkpoint": Path("absent.pth")}, r"absent\.pth: checkpoint not found"),
        ({"options": {"mixup": "1"}}, "mixup has no effect"),
        ({"options": {"image_size": "65"}}, "nearest that is: 64"),
        ({"options": {"modus": "x"}}, "have no option 'modus'; did you mean 'mode'"),
    ],
)
def test_bad_requests_are_told_before_anything_is_written(
    dense: SimpleNamespace, data: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        finetune(ask(data, tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_a_palette_annotation_stops_a_training_before_it_begins(
    dense: SimpleNamespace, data: Path, tmp_path: Path
) -> None:
    write(data / "annotations/training/ADE_train_00000003.png", np.ones((64, 96)), "P")
    with pytest.raises(BenchError, match=r"ADE_train_00000003\.png: annotation is a palette image"):
        finetune(ask(data, tmp_path / "out"))


def test_more_warm_up_than_steps_is_refused_before_anything_is_written(
    dense: SimpleNamespace, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(BenchError, match="3 warm-up steps do not fit into 2 steps; lower warmup_steps, or give more"):
        engine(
            ask(data, tmp_path / "out", preset="tiny", from_scratch=True, options={"steps": "2", "warmup_steps": "3"})
        )
    assert not (tmp_path / "out").exists()


def test_a_plan_says_what_would_happen_and_writes_nothing(dense: SimpleNamespace, data: Path, tmp_path: Path) -> None:
    options = {"batch": "4", "micro_batch": "2"}
    facts = engine(ask(data, tmp_path / "out", preset="base", from_scratch=True, options=options)).plan()
    assert (facts["recipe"], facts["steps"], facts["accumulate"], facts["samples_at_once"]) == ("base", 2, 2, 2)
    assert (facts["training_samples"], facts["validation_samples"], facts["start"]) == (8, 4, "from scratch")
    assert facts["settings"]["arch"]["embed_dim"] == 768
    assert not (tmp_path / "out").exists()


OPTIONS = {"steps": "6", "micro_batch": "1", "save_steps": "100", "drop_path": "0.3"}


@pytest.mark.parametrize(("strikes", "workers"), [((2,), 0), pytest.param((1, 3, 5), 2, marks=pytest.mark.slow)])
def test_sigterm_keeps_the_step_and_the_resumed_training_comes_to_the_same_weights(
    strikes: tuple[int, ...],
    workers: int,
    dense: SimpleNamespace,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from beit3_bench.backbones.beit3.mmseg_adapter.resuming import Watching

    straight = watched(ask(data, tmp_path / "straight", options=OPTIONS, workers=workers))
    before = Watching.before_train_iter

    def struck(self: Any, runner: Any, *arguments: Any, **more: Any) -> None:
        if runner.iter in [2 * step for step in strikes]:  # the first of two passes of a step
            os.kill(os.getpid(), signal.SIGTERM)
        before(self, runner, *arguments, **more)

    monkeypatch.setattr(Watching, "before_train_iter", struck)
    out = tmp_path / "out"
    for number, step in enumerate(strikes):
        with pytest.raises(Terminated) as caught, heeding_sigterm():
            watched(ask(data, out, options=OPTIONS, workers=workers, resume=number > 0))
        assert caught.value.__notes__ == [f"step {step + 1} is kept in {out}; go on with --resume"]
    monkeypatch.undo()
    resumed = watched(ask(data, out, options=OPTIONS, workers=workers, resume=True))
    assert resumed["best"] == straight["best"]
    same_state(dense, tmp_path / "straight" / "iter_12.pth", out / "iter_12.pth")


@pytest.mark.slow
def test_sigterm_during_a_validation_leaves_it_to_the_resumed_training(
    dense: SimpleNamespace, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from beit3_bench.backbones.beit3.mmseg_adapter.resuming import Watching

    options = {"steps": "8", "validate_epochs": "1", "save_steps": "100"}  # 8 images: 4 steps per epoch
    straight = watched(ask(data, tmp_path / "straight", options=options))
    after, out = Watching.after_val_iter, tmp_path / "out"

    def struck(self: Any, runner: Any, batch_idx: int, **more: Any) -> None:
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        after(self, runner, batch_idx, **more)

    monkeypatch.setattr(Watching, "after_val_iter", struck)
    for step, resume in ((4, False), (4, True)):  # and in the validation of step 4 again
        with pytest.raises(Terminated) as caught, heeding_sigterm():
            watched(ask(data, out, options=options, resume=resume))
        assert f"step {step} is kept" in caught.value.__notes__[0]
    monkeypatch.undo()
    assert watched(ask(data, out, options=options, resume=True))["best"] == straight["best"]
    same_state(dense, tmp_path / "straight" / "iter_8.pth", out / "iter_8.pth")


def watched(request: FinetuneRequest) -> dict[str, Any]:
    """As the command trains."""
    watcher = EngineWatcher(request, Processes())
    return watcher.watch(start_engine(request, ADE20K, find_origin(request, ADE20K), Processes(), watcher))


def same_state(dense: SimpleNamespace, first: Path, second: Path) -> None:
    """Raise unless two states hold the same weights and moments."""
    a, b = (dense.torch.load(path, weights_only=True) for path in (first, second))
    assert all(dense.torch.equal(a["state_dict"][name], value) for name, value in b["state_dict"].items())
    for moments, others in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
        assert all(dense.torch.equal(moments[name], value) for name, value in others.items())


def test_progress_is_told_with_the_loss_and_quiet_says_nothing(
    dense: SimpleNamespace, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watched(ask(data, tmp_path / "told", reporting=Reporting(interval=0)))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("ade20k-seg: ")]
    assert [line.split(",")[0] for line in lines[:2]] == [
        "ade20k-seg: 1 of 2 steps (50%)",
        "ade20k-seg: 2 of 2 steps (100%)",
    ]
    assert all(", loss " in line for line in lines[:2])
    watched(ask(data, tmp_path / "quiet", reporting=Reporting("none")))
    assert capfd.readouterr() == ("", "")
