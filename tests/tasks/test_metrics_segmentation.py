"""Mean IoU from histograms, as mmsegmentation computes it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from goldens import metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.segmentation import (
    IGNORE,
    class_histograms,
    estimate_segmentation,
    per_class,
    reduce_zero_label,
    segmentation_metrics,
    segmentation_table,
)


def test_mean_iou_equals_the_golden_per_class_too():
    folder = metrics_golden("segmentation")
    expected = json.loads((folder / "expected.json").read_text())
    histograms = []
    for path in sorted((folder / "annotations").glob("*.png")):
        label = reduce_zero_label(np.asarray(Image.open(path)))
        histograms.append(class_histograms(np.asarray(Image.open(folder / "predictions" / path.name)), label, 150))
    values = segmentation_metrics(histograms)
    assert values == pytest.approx({k: expected[k] for k in ("mIoU", "mAcc", "aAcc")}, abs=1e-9)
    assert sum(h[3].sum() for h in histograms) == expected["pixels_evaluated"]
    table = segmentation_table(histograms, [str(i) for i in range(len(histograms))])
    classes = per_class(table.sums())
    for name in ("IoU", "Acc"):
        wanted = np.array([np.nan if v is None else v for v in expected["per_class"][name]])
        np.testing.assert_allclose(classes[name], wanted, atol=1e-9, equal_nan=True)


def slow_mean_iou(pairs, classes):
    """Pixel by pixel with python sets of the union."""
    counts = np.zeros((classes, classes), dtype=int)
    for prediction, label in pairs:
        for p, t in zip(prediction.ravel(), label.ravel(), strict=True):
            if t != IGNORE:
                counts[t, p] += 1
    iou, acc = [], []
    for c in range(classes):
        union = counts[c].sum() + counts[:, c].sum() - counts[c, c]
        iou += [counts[c, c] / union] if union else []
        acc += [counts[c, c] / counts[c].sum()] if counts[c].sum() else []
    return {"mIoU": np.mean(iou), "mAcc": np.mean(acc), "aAcc": np.trace(counts) / counts.sum()}


def made_up(seed, images=4, classes=5):
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        shape = tuple(random.integers(1, 7, 2))
        label = random.integers(0, classes - 1, shape)
        label[random.random(shape) < 0.2] = IGNORE
        label.ravel()[0] = 0
        pairs.append((random.integers(0, classes, shape), label.astype(np.uint8)))
    return pairs


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_mean_iou_equals_counting_pixel_by_pixel(seed):
    pairs = made_up(seed)
    values = segmentation_metrics([class_histograms(p, t, 5) for p, t in pairs])
    assert values == pytest.approx(slow_mean_iou(pairs, 5), abs=1e-12)


def test_resampled_images_equal_repeating_them():
    pairs = made_up(3)
    histograms = [class_histograms(p, t, 5) for p, t in pairs]
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 1], [0, 0, 0, 4]])
    resampled = estimate_segmentation(segmentation_table(histograms, list("abcd")).sums(weights.astype(float)))
    for row, weight in enumerate(weights):
        repeated = [histograms[i] for i in np.repeat(np.arange(4), weight)]
        values = segmentation_metrics(repeated)
        assert {k: v[row] for k, v in resampled.items()} == pytest.approx(values, abs=1e-12)


def test_absent_classes_are_left_out_and_predicted_only_ones_count_as_zero_iou():
    values = segmentation_metrics([class_histograms(np.array([[0, 1]]), np.array([[0, 0]]), 4)])
    assert values == pytest.approx({"mIoU": (0.5 + 0) / 2, "mAcc": 0.5, "aAcc": 0.5})


def test_ignored_pixels_count_nowhere_whatever_is_predicted_there():
    label = np.array([[0, IGNORE, 1]])
    first = class_histograms(np.array([[0, 0, 1]]), label, 2)
    assert (first == class_histograms(np.array([[0, 77, 1]]), label, 2)).all()
    assert first.dtype == np.int64
    assert first.tolist() == [[1, 1], [1, 1], [1, 1], [1, 1]]


def test_a_resample_without_any_pixel_is_nan_and_silent(recwarn):
    histogram = class_histograms(np.zeros((1, 2), int), np.full((1, 2), IGNORE), 3)
    values = estimate_segmentation(segmentation_table([histogram], ["a"]).sums())
    assert all(np.isnan(v) for v in values.values())
    assert not recwarn.list


def test_zero_label_is_reduced_as_ade20k_needs():
    reduced = reduce_zero_label(np.array([[0, 1, 150, 255]], dtype=np.uint8))
    assert reduced.tolist() == [[255, 0, 149, 255]]
    assert reduced.dtype == np.uint8


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "one size"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "prediction map is float64"),
        (np.zeros((2, 2, 3), int), np.zeros((2, 2), int), "prediction map"),
        (np.array([[7]]), np.array([[0]]), "prediction map holds class 7"),
        (np.array([[0]]), np.array([[151]]), "label map holds class 151"),
        (np.array([[0]]), np.array([[-1]]), "label map holds class -1"),
    ],
)
def test_bad_maps_are_named(prediction, label, message):
    with pytest.raises(BenchError, match=message):
        class_histograms(prediction, label, 5)


@pytest.mark.parametrize(
    ("histograms", "message"), [([], "empty"), ([np.zeros((4, 3), dtype=np.int64)], "no pixel to evaluate")]
)
def test_nothing_to_evaluate_is_refused(histograms, message):
    with pytest.raises(BenchError, match=message):
        segmentation_metrics(histograms)
