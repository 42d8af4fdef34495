"""Soft-NMS against the goldens and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from goldens import metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.soft_nms import box_iou, soft_nms


@pytest.mark.parametrize("case", range(6))
@pytest.mark.parametrize("kind", ["class_agnostic", "per_class", "class_agnostic_with_plus_one_pixel_widths"])
def test_kept_boxes_and_scores_equal_the_golden(case, kind):
    folder = metrics_golden("soft_nms")
    expected = json.loads((folder / "expected.json").read_text())[case]
    data, params = np.load(folder / "boxes.npz"), expected["params"]
    keep, scores = soft_nms(
        data["boxes_xyxy"],
        data["scores"],
        data["labels"] if kind == "per_class" else None,
        method=params["method"],
        iou_threshold=params["Nt"],
        sigma=params["sigma"],
        min_score=params["min_score"],
        plus_one=kind.endswith("widths"),
    )
    assert keep.tolist() == expected[kind]["keep"]
    np.testing.assert_allclose(scores, expected[kind]["scores"], rtol=0, atol=1e-9)


# IoU of the first two boxes is 1/3; the third is apart
BOXES = np.array([[0, 0, 10, 10], [0, 5, 10, 15], [100, 100, 110, 110]], dtype=float)


@pytest.mark.parametrize(
    ("options", "keep", "scores"),
    [
        ({"method": "linear", "iou_threshold": 0.3}, [0, 2, 1], [0.9, 0.7, 0.8 * 2 / 3]),
        ({"method": "linear", "iou_threshold": 0.4}, [0, 1, 2], [0.9, 0.8, 0.7]),
        ({"method": "gaussian", "sigma": 0.5}, [0, 2, 1], [0.9, 0.7, 0.8 * np.exp(-2 / 9)]),
        ({"method": "linear", "min_score": 0.6}, [0, 2], [0.9, 0.7]),
        ({"method": "linear", "labels": [0, 1, 0]}, [0, 1, 2], [0.9, 0.8, 0.7]),
    ],
)
def test_decay_by_hand(options, keep, scores):
    found, decayed = soft_nms(BOXES, np.array([0.9, 0.8, 0.7]), **options)
    assert found.tolist() == keep
    assert decayed.tolist() == pytest.approx(scores, abs=1e-12)


@given(st.integers(0, 1000), st.sampled_from(["linear", "gaussian"]))
@settings(max_examples=40, deadline=None)
def test_classes_far_apart_equal_classes_by_label(seed, method):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 40, (25, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 30, (25, 2))], axis=1)
    scores, labels = random.permutation(25) / 25 + 0.01, random.integers(0, 3, 25)
    keep, decayed = soft_nms(boxes, scores, labels, method=method)
    shifted, shifted_scores = soft_nms(boxes + 1000 * labels[:, None], scores, method=method)
    assert sorted(keep) == sorted(shifted)
    np.testing.assert_allclose(decayed, shifted_scores, rtol=1e-9)


def test_empty_boxes_overlap_nothing_and_no_boxes_keep_nothing():
    assert box_iou(np.zeros(4), np.zeros((2, 4))).tolist() == [0, 0]
    keep, scores = soft_nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    assert keep.shape == scores.shape == (0,)


@pytest.mark.parametrize(
    ("boxes", "options", "message"),
    [
        (np.zeros((2, 4)), {}, "do not fit"),
        (np.full((3, 4), np.nan), {}, "not finite"),
        (np.zeros((3, 4)), {"method": "hard"}, "hard"),
        (np.zeros((3, 4)), {"method": "gaussian", "sigma": 0}, "sigma 0"),
        (np.zeros((3, 4)), {"labels": [1]}, "do not fit"),
    ],
)
def test_bad_input_is_named(boxes, options, message):
    with pytest.raises(BenchError, match=message):
        soft_nms(boxes, np.array([0.9, 0.8, 0.7]), **options)
