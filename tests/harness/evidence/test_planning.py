"""How many images a difference takes, and p values of several comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.compare import BOOTSTRAP, Comparison, MetricComparison
from beit3_bench.harness.evidence.planning import POWER, corrected, holm, plan


def comparison(error, clusters=400, unit="percent", p=0.03, metric="m"):
    half = 1.959964 * error
    one = MetricComparison(metric, unit, 1, True, 50.0, 51.0, 1.0, (1.0 - half, 1.0 + half), p, BOOTSTRAP, p)
    return Comparison("a", "b", "t", "test", clusters, [one], [])


def test_a_plan_follows_the_textbook():
    (one,) = plan(comparison(error=1.0), points=1.0)
    assert one.clusters == pytest.approx(400 * (1.959964 + 0.841621) ** 2, rel=1e-2)
    assert one.smallest == pytest.approx(2.8016, abs=1e-3)
    (fraction,) = plan(comparison(error=0.01, unit="fraction"), points=1.0)
    assert fraction.clusters == one.clusters
    (halved,) = plan(comparison(error=1.0), points=0.5)
    assert halved.clusters == pytest.approx(4 * one.clusters, abs=4)


def test_what_is_planned_for_is_seen_as_often_as_said():
    """Right or wrong answers of two models in pairs: 12 % of samples only B has right, 10 % only A."""
    rng, seen, trials = np.random.default_rng(0), 0, 2000
    variance = 0.12 + 0.10 - 0.02**2
    pilot = 400
    (one,) = plan(comparison(100 * (variance / pilot) ** 0.5, pilot), points=2.0)
    for _ in range(trials):
        difference = rng.choice([1.0, -1.0, 0.0], size=one.clusters, p=[0.12, 0.10, 0.78])
        error = difference.std() / one.clusters**0.5
        seen += abs(difference.mean()) > 1.959964 * error
    assert seen / trials == pytest.approx(POWER, abs=0.03)


@pytest.mark.parametrize("points", [0.0, -1.0, float("nan"), float("inf")])
def test_only_a_positive_difference_can_be_planned_for(points):
    with pytest.raises(BenchError, match="give a number above 0"):
        plan(comparison(1.0), points)


def test_runs_that_agree_everywhere_give_nothing_to_go_by():
    assert plan(comparison(0.0), 1.0)[0].clusters is None


def test_holm_is_the_published_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as R's p.adjust
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_corrected_values_keep_their_order_and_never_fall(values):
    after = holm(values)
    assert all(b >= a for a, b in zip(values, after, strict=True))
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(np.array(after)[order]) >= 0)


def test_only_metrics_that_all_comparisons_have_are_corrected():
    several = [comparison(1.0, p=0.02), comparison(1.0, p=0.04)]
    several[1].metrics.append(comparison(1.0, metric="other").metrics[0])
    assert corrected(several) == {"m": pytest.approx([0.04, 0.04])}
