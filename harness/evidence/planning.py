"""How much measuring is enough: the clusters that it takes to see a difference, and p values of several comparisons at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from beit3_bench.errors import BenchError
from beit3_bench.harness.scoring import CONFIDENCE

if TYPE_CHECKING:
    from beit3_bench.harness.evidence.compare import Comparison, MetricComparison

POWER = 0.8
"""How often a difference of the planned size is seen."""


@dataclass(frozen=True)
class Plan:
    """What it takes to see a difference of a metric between two models like those that were compared.

    difference: in the metric's unit.  clusters: needed (images; sentences for NLVR2); None where both runs agree on every sample.
    smallest: difference that as many clusters as the runs have show with this power.  measured: clusters of the runs.
    """

    metric: str
    unit: str
    difference: float
    power: float
    clusters: int | None
    smallest: float
    measured: int


def plan(comparison: Comparison, points: float) -> list[Plan]:
    """For every metric with an interval: how many clusters a difference takes that is tested in pairs, two-sided at 5%.

    The standard error of the paired difference is that of the interval, and falls with the root of the number of clusters:
    n = n0 * (se * (z_0.975 + z_power) / difference)^2 (normal approximation; Cohen, 1988, section 2.4). What it does not know is
    whether the models to come differ as these two do: their errors may be less alike.

    Args:
        points: the difference, in points of a percentage as the table shows it.

    Raises:
        BenchError: no positive number.
    """
    if not math.isfinite(points) or points <= 0:
        raise BenchError(f"a difference of {points} points cannot be planned for; give a number above 0")
    normal = NormalDist()
    reach = normal.inv_cdf(0.5 + CONFIDENCE / 2) + normal.inv_cdf(POWER)
    plans = []
    for one in comparison.metrics:
        if one.ci95 is None:
            continue
        error = (one.ci95[1] - one.ci95[0]) / 2 / normal.inv_cdf(0.5 + CONFIDENCE / 2)
        difference = points if one.unit == "percent" else points / 100
        needed = math.ceil(comparison.clusters * (error * reach / difference) ** 2)
        plans.append(Plan(one.metric, one.unit, difference, POWER, needed or None, error * reach, comparison.clusters))
    return plans


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values of several tests, corrected so that one false finding in all of them is as rare as in one (Holm, 1979).

    What has no p value keeps none, and counts for nothing.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[place] = least
    return corrected


def careful_p(one: MetricComparison) -> float | None:
    """The greater of a comparison's p values, which its verdict goes by."""
    known = [p for p in (one.p_value, one.p_bootstrap) if p is not None]
    return max(known) if known else None


def corrected(comparisons: Sequence[Comparison]) -> dict[str, list[float | None]]:
    """Holm's p values by metric, one per comparison; metrics that all of them have."""
    by_run = [{one.metric: one for one in comparison.metrics} for comparison in comparisons]
    shared = [name for name in by_run[0] if all(name in metrics for metrics in by_run)]
    return {name: holm([careful_p(metrics[name]) for metrics in by_run]) for name in shared}
