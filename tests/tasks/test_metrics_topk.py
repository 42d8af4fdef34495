"""Top-k accuracy and the zero-shot prompt ensemble."""

from __future__ import annotations

import json

import numpy as np
import pytest
from goldens import metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.topk import (
    accuracy_of_ranks,
    class_ranks,
    estimate_topk,
    topk_accuracy,
    topk_classes,
    topk_table,
    zero_shot_scores,
    zero_shot_weights,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_prompt_ensemble_equals_the_clip_notebook(dtype):
    folder = metrics_golden("imagenet")
    expected = json.loads((folder / "expected.json").read_text())["zeroshot_toy"]
    toy = np.load(folder / "zeroshot_toy.npz")
    weights = zero_shot_weights(toy["text_features"].astype(dtype))
    tolerance = 1e-6 if dtype is np.float32 else 1e-9
    np.testing.assert_allclose(weights.T, expected["zeroshot_weights_dim_by_class"], atol=tolerance)
    ranks = class_ranks(zero_shot_scores(toy["image_features"].astype(dtype), weights), toy["labels"])
    assert int((ranks <= 1).sum()) == expected["top1_correct"]
    assert int((ranks <= 5).sum()) == expected["top5_correct"]
    assert 100 * accuracy_of_ranks(ranks)["top5"] == pytest.approx(expected["top5_percent"], abs=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_ranks_equal_a_stable_sort_ties_included(seed, classes, levels):
    random = np.random.default_rng(seed)
    scores, labels = random.integers(0, levels, (20, classes)).astype(np.float32), random.integers(0, classes, 20)
    ranks = class_ranks(scores, labels)
    best = topk_classes(scores, classes)
    for row in range(20):
        ordered = sorted(range(classes), key=lambda c: -scores[row, c])
        assert ranks[row] == 1 + ordered.index(labels[row])
        assert best[row].tolist() == ordered


def test_a_constant_output_scores_at_chance():
    assert topk_accuracy(np.zeros((100, 10)), np.repeat(np.arange(10), 10)) == {"top1": 0.1, "top5": 0.5}


def test_fewer_than_five_classes_works():
    assert topk_accuracy(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([0, 1])) == {"top1": 0.5, "top5": 1.0}


def test_accuracy_is_recovered_from_the_cluster_table():
    random = np.random.default_rng(2)
    ranks = class_ranks(random.normal(size=(50, 12)), random.integers(0, 12, 50))
    estimated = estimate_topk(topk_table(ranks, [str(i) for i in range(50)]).sums())
    assert {k: float(v) for k, v in estimated.items()} == accuracy_of_ranks(ranks)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((3, 4)), np.array([0, 1, 4]), r"labels\[2\] is 4"),
        (np.zeros((3, 4)), np.array([0, -1, 2]), r"labels\[1\] is -1"),
        (np.zeros((3, 4)), np.array([0, 1]), "do not fit"),
        (np.zeros((3, 4)), np.array([0.0, 1.0, 2.0]), "do not fit"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), np.array([0, 1]), "row 1"),
    ],
)
def test_bad_scores_are_named(scores, labels, message):
    with pytest.raises(BenchError, match=message):
        class_ranks(scores, labels)


def test_a_text_feature_without_direction_is_named():
    features = np.ones((3, 2, 4), dtype=np.float32)
    features[1, 1] = 0
    with pytest.raises(BenchError, match=r"\(1, 1\)"):
        zero_shot_weights(features)
    with pytest.raises(BenchError, match="expected float"):
        zero_shot_weights(features[0])
