"""Intervals that cover, paired comparisons, and their speed."""

from __future__ import annotations

import time
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.bootstrap import (
    bootstrap_intervals,
    mcnemar_exact,
    paired_bootstrap,
    resample_weights,
    table_statistic,
)
from beit3_bench.tasks.metrics.coco_matches import estimate_ap
from beit3_bench.tasks.metrics.segmentation import estimate_segmentation
from beit3_bench.tasks.scores import ClusterTable


def estimate_share(sums):
    return {"share": sums["right"] / sums["all"]}


def answers(random, clusters, share, spread=4):
    """1 to 5 answers per cluster, whose difficulty they have in common."""
    size = random.integers(1, 6, clusters)
    ease = random.beta(spread * share, spread * (1 - share), clusters)
    return ClusterTable(
        [str(i) for i in range(clusters)],
        {"all": size.astype(float), "right": random.binomial(size, ease).astype(float)},
    )


def coverage(draw, estimate, truth, trials, resamples):
    covered = 0
    for trial in range(trials):
        low, high = bootstrap_intervals(draw(np.random.default_rng(trial)), estimate, resamples=resamples, seed=trial)[
            "metric"
        ]
        covered += low <= truth <= high
    return covered / trials


def renamed(estimate, name):
    return lambda sums: {"metric": estimate(sums)[name]}


@pytest.mark.parametrize(("clusters", "share"), [(200, 0.5), (200, 0.8), (200, 0.95)])
def test_intervals_of_a_share_cover_the_truth_in_95_percent(clusters, share):
    covered = coverage(lambda r: answers(r, clusters, share), renamed(estimate_share, "share"), share, 400, 400)
    # 0.93..0.97, plus two standard errors of 400 simulated studies
    assert 0.91 <= covered <= 0.985


def draw_maps(random, images, classes=30):
    """Areas of made-up label maps; classes occur in 90 % down to 3 % of the images."""
    frequency, quality = np.geomspace(0.9, 0.03, classes), np.linspace(0.9, 0.3, classes)
    label = np.floor(np.where(random.random((images, classes)) < frequency, random.gamma(2, 50, (images, classes)), 0))
    intersect = np.floor(label * random.beta(5 * quality, 5 * (1 - quality), (images, classes)))
    false = np.where(random.random((images, classes)) < 0.3 * frequency, random.gamma(2, 20, (images, classes)), 0)
    columns = {"intersect": intersect, "union": label + np.floor(false), "label": label}
    return ClusterTable([str(i) for i in range(images)], columns)


@pytest.mark.slow
@pytest.mark.parametrize("clusters", [200, 1000])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_coverage_of_a_share_is_within_93_to_97_percent(clusters, share):
    covered = coverage(lambda r: answers(r, clusters, share), renamed(estimate_share, "share"), share, 2000, 1000)
    assert 0.93 <= covered <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("name", "images"), [("mIoU", 200), ("mAcc", 200), ("aAcc", 200), ("mIoU", 1000)])
def test_coverage_of_mean_iou_is_within_93_to_97_percent(name, images):
    truth = float(estimate_segmentation(draw_maps(np.random.default_rng(10**6), 400_000).sums())[name])
    covered = coverage(lambda r: draw_maps(r, images), renamed(estimate_segmentation, name), truth, 600, 1000)
    assert 0.93 <= covered <= 0.97


def ap_studies(images, trials, resamples):
    """Intervals and values of box AP on made-up sets of so many images."""
    from beit3_bench.tasks.madeup.coco_boxes import made_up_coco
    from beit3_bench.tasks.metrics.coco_ap import coco_ap

    intervals, points = [], []
    for trial in range(trials):
        scores = coco_ap(*made_up_coco(images, seed=trial), "bbox")
        points.append(scores.metrics)
        intervals.append(bootstrap_intervals(scores.table, estimate_ap, resamples=resamples, seed=trial))
    return intervals, points


@pytest.mark.slow
def test_coverage_of_ap_is_within_93_to_97_percent():
    """What is covered is the mean AP of sets of this size, here of the simulated ones."""
    intervals, points = ap_studies(images=100, trials=80, resamples=300)
    for name in ("bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/AR_maxdets100"):
        expected = np.mean([p[name] for p in points])
        covered = np.mean([i[name][0] <= expected <= i[name][1] for i in intervals])
        # 0.93..0.97, plus two standard errors of 80 simulated studies
        assert 0.88 <= covered <= 0.99, (name, covered)


def test_intervals_of_ap_hold_the_value_and_stay_in_its_range():
    ((intervals,), (points,)) = ap_studies(images=40, trials=1, resamples=100)
    for name, value in points.items():
        low, high = intervals[name]
        assert 0 <= low < value < high <= 1, name


def test_intervals_repeat_with_the_seed_and_move_with_it():
    table = answers(np.random.default_rng(0), 100, 0.7)
    first = bootstrap_intervals(table, estimate_share, seed=3)
    assert bootstrap_intervals(table, estimate_share, seed=3) == first
    assert bootstrap_intervals(table, estimate_share, seed=4) != first


def test_wider_confidence_makes_a_wider_interval_around_the_value():
    table = answers(np.random.default_rng(0), 100, 0.7)
    value = float(estimate_share(table.sums())["share"])
    (low, high), (wider_low, wider_high) = (
        bootstrap_intervals(table, estimate_share, confidence=c)["share"] for c in (0.8, 0.99)
    )
    assert wider_low < low < value < high < wider_high


def test_the_cluster_and_not_the_sample_is_resampled():
    """Ten copies of every answer in the same cluster carry no information; in clusters of their own they would."""
    random = np.random.default_rng(1)
    right = random.integers(0, 2, 100).astype(float)
    ids = [str(i) for i in range(100)]
    single = bootstrap_intervals(ClusterTable(ids, {"all": np.ones(100), "right": right}), estimate_share)["share"]
    copied = ClusterTable(ids, {"all": np.full(100, 10.0), "right": 10 * right})
    assert bootstrap_intervals(copied, estimate_share)["share"] == pytest.approx(single)
    spread = ClusterTable([str(i) for i in range(1000)], {"all": np.ones(1000), "right": np.repeat(right, 10)})
    low, high = bootstrap_intervals(spread, estimate_share)["share"]
    assert (high - low) == pytest.approx((single[1] - single[0]) / np.sqrt(10), rel=0.15)


def test_resamples_draw_as_many_clusters_as_there_are_whatever_the_block():
    blocks = list(resample_weights(4_000, 1_100, seed=0))
    assert len(blocks) > 1
    weights = np.concatenate(blocks)
    assert weights.shape == (1_100, 4_000)
    assert (weights.sum(axis=1) == 4_000).all()
    # a cluster's count is nearly Poisson(1)
    assert weights.var() == pytest.approx(1, abs=0.01)


def test_matrix_valued_columns_are_resampled_like_repeated_rows():
    random = np.random.default_rng(2)
    table = ClusterTable(list("abcde"), {"m": random.random((5, 2, 3)), "v": random.random(5)})
    weights = np.array([[2.0, 0, 1, 1, 1], [0, 0, 5, 0, 0]])
    seen = table_statistic(table, lambda sums: sums)(weights)
    repeated = np.repeat(np.arange(5), weights[0].astype(int))
    np.testing.assert_allclose(seen["m"][0], table.columns["m"][repeated].sum(axis=0))
    np.testing.assert_allclose(seen["v"][1], 5 * table.columns["v"][2])


def test_another_kind_of_table_is_resampled_through_its_own_sums():
    class Squares:
        ids = ("a", "b", "c", "d")

        def sums(self, weights=None):
            return {"metric": (np.ones((1, 4)) if weights is None else weights) @ np.array([1.0, 4.0, 9.0, 16.0])}

    low, high = bootstrap_intervals(Squares(), dict, resamples=300)["metric"]
    assert 4 <= low < 30 < high <= 64


def test_undefined_metrics_are_nan_and_rare_ones_use_the_resamples_that_have_them():
    right, number = np.array([1.0, 0, 1, 1]), np.array([0.0, 0, 0, 1])
    table = ClusterTable(list("abcd"), {"right": right, "n": np.ones(4), "number": number, "none": np.zeros(4)})

    def estimate(sums):
        return {"rare": sums["number"] / sums["number"], "never": sums["right"] / sums["none"]}

    values = bootstrap_intervals(table, estimate)
    assert values["rare"] == (1.0, 1.0)
    assert np.isnan(values["never"]).all()


def test_a_metric_without_variation_has_no_width():
    table = ClusterTable(list("abc"), {"all": np.ones(3), "right": np.ones(3)})
    assert bootstrap_intervals(table, estimate_share)["share"] == (1.0, 1.0)


def test_one_cluster_has_no_width():
    assert bootstrap_intervals(ClusterTable(["a"], {"all": np.full(1, 4.0), "right": np.ones(1)}), estimate_share) == {
        "share": (0.25, 0.25)
    }


def test_a_paired_comparison_finds_a_small_gain_that_intervals_alone_do_not():
    random = np.random.default_rng(0)
    n = 2000
    right = random.random(n) < 0.7
    better = right | (random.random(n) < 0.02)
    ids = [str(i) for i in range(n)]
    a, b = (ClusterTable(ids, {"all": np.ones(n), "right": r.astype(float)}) for r in (right, better))
    alone_a, alone_b = (bootstrap_intervals(t, estimate_share)["share"] for t in (a, b))
    assert alone_a[1] > alone_b[0]
    paired = paired_bootstrap(a, b, estimate_share)["share"]
    assert paired.difference == pytest.approx(better.mean() - right.mean())
    assert 0 < paired.low < paired.difference < paired.high
    assert paired.p_value < 0.01
    back = paired_bootstrap(b, a, estimate_share)["share"]
    assert back.difference == pytest.approx(-paired.difference)
    assert back.p_value < 0.01


def test_clusters_are_paired_by_name_and_not_by_place():
    table = answers(np.random.default_rng(5), 50, 0.6)
    order = np.random.default_rng(6).permutation(50)
    shuffled = ClusterTable([table.ids[i] for i in order], {k: v[order] for k, v in table.columns.items()})
    paired = paired_bootstrap(table, shuffled, estimate_share)["share"]
    assert (paired.low, paired.high, paired.p_value) == (
        pytest.approx(0, abs=1e-12),
        pytest.approx(0, abs=1e-12),
        1.0,
    )


def test_p_values_are_uniform_without_a_difference():
    p_values = []
    for trial in range(200):
        random = np.random.default_rng(trial)
        tables = [
            ClusterTable([str(i) for i in range(200)], {"all": np.ones(200), "right": random.binomial(1, 0.6, 200)})
            for _ in range(2)
        ]
        p_values.append(paired_bootstrap(*tables, estimate_share, resamples=300, seed=trial)["share"].p_value)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.1
    assert 0.4 <= np.mean(p_values) <= 0.6


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_interval_excludes_zero_exactly_when_p_is_below_five_percent(seed):
    random = np.random.default_rng(seed)
    ids = [str(i) for i in range(60)]
    tables = [
        ClusterTable(ids, {"all": np.ones(60), "right": random.normal(m, 1, 60)}) for m in (0, random.uniform(0, 0.7))
    ]
    paired = paired_bootstrap(*tables, estimate_share, resamples=500)["share"]
    if paired.p_value < 0.045:
        assert not paired.low <= 0 <= paired.high
    if paired.p_value > 0.055:
        assert paired.low <= 0 <= paired.high


def test_different_clusters_are_refused_and_named():
    a, b = answers(np.random.default_rng(0), 5, 0.5), answers(np.random.default_rng(0), 6, 0.5)
    with pytest.raises(BenchError, match="0 only in the first, 1 only in the second, such as '5'"):
        paired_bootstrap(a, b, estimate_share)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 1), (3, 9), (25, 25), (200, 150)])
def test_mcnemar_equals_the_binomial_sum(b, c):
    n, k = b + c, min(b, c)
    expected = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_takes_real_sizes_at_once():
    started = time.perf_counter()
    assert 0 < mcnemar_exact(9_000, 9_400) < 0.01
    assert mcnemar_exact(0, 5_000) < 1e-300
    assert time.perf_counter() - started < 2


@pytest.mark.slow
def test_a_thousand_resamples_of_vqa_v2_val_take_under_ten_seconds():
    random = np.random.default_rng(0)
    columns = {f"metric{i}": random.random((40_504, 2)) for i in range(75)}
    table = ClusterTable([str(i) for i in range(40_504)], columns)
    started = time.perf_counter()
    bootstrap_intervals(table, lambda sums: {k: v[..., 0] / v[..., 1] for k, v in sums.items()})
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: bootstrap_intervals(ClusterTable([], {"all": np.zeros(0)}), estimate_share), "empty"),
        (lambda t: bootstrap_intervals(t, estimate_share, resamples=1), "1 resamples"),
        (lambda t: bootstrap_intervals(t, estimate_share, confidence=95), "confidence 95"),
        (lambda t: mcnemar_exact(-1, 3), "negative"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(BenchError, match=message):
        call(answers(np.random.default_rng(0), 5, 0.5))


def test_one_sample_that_differs_is_no_evidence():
    """A third of the resamples do not hold it at all; its sign says nothing about the others."""
    ids = [str(i) for i in range(200)]
    right = np.tile([1.0, 0.0], 100)
    changed = right.copy()
    changed[1] = 1.0
    tables = [ClusterTable(ids, {"all": np.ones(200), "right": r}) for r in (right, changed)]
    for a, b in (tables, tables[::-1]):
        assert paired_bootstrap(a, b, estimate_share)["share"].p_value > 0.3
