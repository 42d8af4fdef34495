"""Intervals under continuous looking: their bound against published tables, their shape, and their coverage in simulated runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics import sequential
from beit3_bench.tasks.metrics.entailment import entailment_table
from beit3_bench.tasks.metrics.nlvr2 import nlvr2_table
from beit3_bench.tasks.metrics.sequential import LAST, look_bound, look_numbers, ratio_interval
from beit3_bench.tasks.metrics.topk import topk_table
from beit3_bench.tasks.metrics.vqa import vqa_table
from beit3_bench.tasks.registry import get_task, task_names
from beit3_bench.tasks.scores import Metric, evaluate

WITHOUT = {
    "sugarcrepe",
    "winoground",
    "aro",
    "coco-caption",
    "nocaps",
    "caption",
    "coco-det",
    "ade20k-seg",
    "flickr30k",
    "coco-retrieval",
    "retrieval",
}


# ---- looks and their bound --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "published"), [(1, 1.960), (2, 2.178), (3, 2.289), (5, 2.413), (10, 2.555)]
)  # Jennison and Turnbull 2000, table 2.1: Pocock, two-sided 0.05
def test_bound_is_pocock_s_where_looks_are_evenly_spaced(looks, published):
    correlations = np.sqrt(np.arange(1, looks) / np.arange(2, looks + 1))
    assert sequential._probability_inside(published, correlations) == pytest.approx(0.95, abs=3e-4)


def test_bound_of_drawing_without_replacement_is_that_of_simulated_draws():
    looks = look_numbers(np.ones(400))
    random = np.random.default_rng(0)
    values = random.normal(size=400)
    draws = random.permuted(np.broadcast_to(values - values.mean(), (3000, 400)), axis=1)
    numbers = np.array(looks[:-1])
    means = np.cumsum(draws, axis=1)[:, numbers - 1] / numbers
    errors = values.std(ddof=1) * np.sqrt(1 / numbers - 1 / 400)
    assert (np.abs(means / errors) <= look_bound(looks)).all(axis=1).mean() == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("total", [56, 300, 2000, 50_000])
def test_looks_ascend_and_end_with_everything(total):
    looks = look_numbers(np.ones(total))
    assert looks[0] >= 50
    assert looks[-1] == total
    assert sorted(set(looks)) == list(looks)
    assert looks[-2] < LAST * total
    assert 1.959 < look_bound(looks) < 3.2


@pytest.mark.parametrize("sizes", [[1] * 50, [1] * 999 + [1000]])
def test_few_clusters_or_one_that_outweighs_all_leave_the_last_look_alone(sizes):
    assert look_numbers(np.array(sizes)) == (len(sizes),)
    assert look_bound((len(sizes),)) == 0


def test_looks_at_nothing_are_refused():
    with pytest.raises(BenchError, match="the split is empty"):
        look_numbers(np.array([]))


# ---- the interval -------------------------------------------------------------------------------------------------------


def test_interval_of_a_share_is_agresti_and_coull_s():
    right, n, z = 180, 200, 2.5
    share = (right + z**2 / 2) / (n + z**2)
    half = z * math.sqrt(share * (1 - share) / (n + z**2 - 1))
    low, high = ratio_interval(np.arange(n) < right, np.ones(n), 10**9, z)
    assert (low, high) == pytest.approx((share - half, share + half), abs=1e-6)


@given(st.data())
def test_interval_holds_the_ratio_and_stays_between_0_and_1(data):
    sizes = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=40))
    right = [data.draw(st.integers(0, size)) for size in sizes]
    total = len(sizes) + data.draw(st.integers(0, 60))
    low, high = ratio_interval(np.array(right), np.array(sizes), total, data.draw(st.floats(1.9, 3.2)))
    if not sum(sizes):
        assert math.isnan(low)
        assert math.isnan(high)
        return
    ratio = sum(right) / sum(sizes)
    assert 0 <= low <= ratio + 1e-9
    assert ratio - 1e-9 <= high <= 1
    assert (high - low < 1e-9) == (total == len(sizes))


def test_nobody_wrong_is_no_certainty_before_the_end():
    low, high = ratio_interval(np.ones(100), np.ones(100), 1000, 2.9)
    n, z = 100 / 0.9, 2.9  # a tenth was seen: as 111 of an endless population
    share = (n + z**2 / 2) / (n + z**2)
    assert low == pytest.approx(share - z * math.sqrt(share * (1 - share) / (n + z**2)), abs=5e-4)
    assert high == 1


def test_samples_that_hang_together_widen_the_interval():
    alike = ratio_interval(np.array([4, 0] * 100), np.full(200, 4), 10_000, 2.9)
    apart = ratio_interval(np.array([2, 2] * 100), np.full(200, 4), 10_000, 2.9)
    assert alike[1] - alike[0] > 2 * (apart[1] - apart[0])


# ---- coverage -----------------------------------------------------------------------------------------------------------


def population(kind: str, share: float, clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right samples and samples of each cluster, alike within a cluster but for single ones."""
    random = np.random.default_rng(seed)
    if kind == "single":
        return (np.arange(clusters) < round(share * clusters)).astype(float), np.ones(clusters)
    sizes = random.integers(1, 7, clusters)
    return random.binomial(sizes, random.beta(3 * share, 3 * (1 - share), clusters)).astype(float), sizes.astype(float)


def simulate(kind: str, share: float, clusters: int, runs: int, width: float) -> tuple[float, float, float]:
    """Of runs in random order: the share of those whose intervals hold the truth at every look; of those whose interval holds it
    where they stop for a width; and the mean share of samples that are saved.
    """
    right, sizes = population(kind, share, clusters)
    looks = look_numbers(sizes)
    bound, truth, random = look_bound(looks), right.sum() / sizes.sum(), np.random.default_rng(1)
    always, stopped, saved = 0, 0, 0.0
    for _ in range(runs):
        order = random.permutation(clusters)
        y, m = right[order], sizes[order]
        bounds = [ratio_interval(y[:n], m[:n], clusters, bound) for n in looks[:-1]]
        inside = [low <= truth <= high for low, high in bounds]
        at = next((k for k, (low, high) in enumerate(bounds) if high - low < width), None)
        always += all(inside)
        stopped += at is None or inside[at]
        saved += 0.0 if at is None else 1 - m[: looks[at]].sum() / m.sum()
    return always / runs, stopped / runs, saved / runs


@pytest.mark.parametrize("share", [0.5, 0.75, 0.95])
@pytest.mark.parametrize("kind", ["single", "clusters"])
def test_coverage_of_runs_that_look_whenever_they_can(kind, share):
    always, stopped, saved = simulate(kind, share, 1500, 1500, 0.05)
    assert always >= 0.94
    assert stopped >= 0.98
    assert saved > 0.25


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.75, 0.95, 0.99])
@pytest.mark.parametrize(("kind", "clusters"), [("single", 400), ("single", 6967), ("clusters", 2018)])
def test_coverage_of_many_runs(kind, clusters, share):
    always, stopped, _ = simulate(kind, share, clusters, 4000, 0.02)
    assert always >= 0.94
    assert stopped >= 0.985


# ---- what the tasks declare -----------------------------------------------------------------------------------------------


def tables() -> dict[str, object]:
    random = np.random.default_rng(0)
    images = [str(n // 4) for n in range(60)]
    kinds = ["yes/no", "number", "other"]
    return {
        "nlvr2": nlvr2_table(
            random.random(60) < 0.7, list(dict.fromkeys(f"dev-{n // 3}-{n % 3}-0" for n in range(60)))
        ),
        "imagenet": topk_table(random.integers(1, 9, 60), [str(n) for n in range(60)]),
        "vqav2": vqa_table(random.random(60), [kinds[n % 3] for n in range(60)], ["what"] * 60, images),
        "snli-ve": entailment_table(random.integers(0, 3, 60), random.integers(0, 3, 60), images, 3),
    }


@pytest.mark.parametrize("task", ["nlvr2", "imagenet", "vqav2", "snli-ve"])
def test_a_declared_ratio_is_the_metric(task):
    metrics, table = get_task(task).metrics, tables()[task]
    values = evaluate(metrics, table.sums())
    for metric in metrics:
        y, m = metric.ratio(table.columns)
        assert y.shape == m.shape == (len(table.ids),)
        assert ((y >= 0) & (y <= m)).all()
        assert values[metric.name] == pytest.approx(y.sum() / m.sum() * (100 if metric.unit == "percent" else 1))


@pytest.mark.parametrize("name", task_names())
def test_a_headline_is_a_mean_over_samples_or_says_why_not(name):
    headline = next(metric for metric in get_task(name).metrics if metric.headline)
    unsaid = Metric("x").no_ratio
    if name in WITHOUT:
        assert headline.ratio is None
        assert headline.no_ratio != unsaid
    else:
        assert headline.ratio is not None
