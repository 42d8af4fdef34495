"""Confidence intervals by resampling clusters, and paired comparisons of two systems.

Clusters (images; sentences for NLVR2) are drawn with replacement; a metric of a resample is computed from weighted
sums, never from the samples again. The intervals are BCa (bias-corrected and accelerated; Efron 1987, section 14.3 of
Efron and Tibshirani 1993) and not plain percentiles: shares near 100 % are skewed, and mean IoU, mean AP and other
means over classes are biased downwards in a resample, because rare classes vanish from it; BCa corrects both and, like
percentiles, never leaves the metric's range. The acceleration comes from a delete-a-group jackknife. Where rare classes
make the spread of resamples too small (its standard error is below the jackknife's), the normal quantiles of the
interval are widened by that ratio; simulated coverage of 95 % intervals is then 94 to 96 % for shares and for mean IoU,
which without it is 93 %.

AP needs another treatment (`ClusterTable.centred`). It is biased upwards on small sets (few objects of a class, and the
best precision at or after each recall): on made-up sets of 500 images and 80 classes it lies 0.05 above that of 20,000 images,
for every detector and with the official tools. A resample, whose images repeat, adds some of that bias once more, and BCa would
take it off from a value that is only ever compared with values of sets of this size. What the interval covers is therefore the
expected AP of a set of as many images: resamples are shifted until their mean is the value, and stretched by the widening. In
that simulation (200 sets) intervals cover it in 96 to 97.5 % for AP, AP50, AP75 and AP by size, and in 94 to 96.5 % for recalls.

A metric that takes one value in all resamples (nobody wrong, say) has an interval of no width: resampling cannot see
errors that did not happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import erf, sqrt
from statistics import NormalDist

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.scores import ClusterTable

Estimate = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Weights (R, n) float64 of R resamples of n clusters -> metric name -> (R,)."""

_JACKKNIFE_GROUPS = 200
_BLOCK_VALUES = 4_000_000
_WIDENED_AT_MOST = 1.5
_NORMAL = NormalDist()


@dataclass(frozen=True)
class PairedDifference:
    """System B minus system A, in the metric's unit; p_value is two-sided, of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class _Replicates:
    point: float
    resampled: np.ndarray
    jackknife: np.ndarray


def bootstrap_intervals(
    table: ClusterTable, estimate: Estimate, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """BCa interval (low, high) of every metric, in the metric's unit; of a centred table, the interval described above.

    Args:
        table: additive statistics per cluster; any object with ``ids`` and ``sums(weights)`` will do.
        estimate: column sums -> metrics, for leading axes of resamples too (`Task.estimate`).
        resamples, confidence, seed: number of resamples, coverage in (0, 1), seed of the resampling.

    Returns:
        (nan, nan) for a metric that is not defined on the full sample or on no resample.

    Raises:
        BenchError: no clusters, fewer than 2 resamples, a confidence outside (0, 1).
    """
    replicates = _replicate(table_statistic(table, estimate), len(table.ids), resamples, confidence, seed)
    interval = _centred_interval if getattr(table, "centred", False) else _interval
    return {name: interval(values, confidence) for name, values in replicates.items()}


def paired_bootstrap(
    table_a: ClusterTable,
    table_b: ClusterTable,
    estimate: Estimate,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """Compare two systems on the same clusters: B minus A for every metric that both have.

    The same clusters are drawn for both, so that what is hard for both cancels. The p value is that of the BCa
    interval: the smallest 1 - confidence at which zero is outside; at least 1 / (resamples + 1).

    Raises:
        BenchError: the tables do not hold the same clusters; see also `bootstrap_intervals`.
    """
    order = _same_clusters(table_a.ids, table_b.ids)
    statistic_a, statistic_b = table_statistic(table_a, estimate), table_statistic(table_b, estimate)

    def difference(weights: np.ndarray) -> dict[str, np.ndarray]:
        of_a, of_b = statistic_a(weights), statistic_b(weights[:, order])
        return {name: np.asarray(of_b[name]) - np.asarray(of_a[name]) for name in of_a if name in of_b}

    replicates = _replicate(difference, len(table_a.ids), resamples, confidence, seed)
    return {
        name: PairedDifference(values.point, *_interval(values, confidence), _p_value(values))
        for name, values in replicates.items()
    }


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar p value from the samples that only A, and only B, has right (binomial, one half)."""
    if only_a < 0 or only_b < 0:
        raise BenchError(f"discordant counts cannot be negative: {only_a}, {only_b}")
    total, fewer = only_a + only_b, min(only_a, only_b)
    term = tail = 1
    for k in range(fewer):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total)


def table_statistic(table: ClusterTable, estimate: Estimate) -> Statistic:
    """The metrics as a function of weights (R, n); all columns go through one matrix product."""
    if getattr(type(table), "sums", None) is not ClusterTable.sums:
        return lambda weights: estimate(table.sums(weights))
    shapes = {name: np.asarray(column).shape[1:] for name, column in table.columns.items()}
    n = len(table.ids)
    if not n:
        raise BenchError("an interval of no clusters; the split is empty")
    matrix = np.concatenate(
        [np.asarray(column, dtype=np.float64).reshape(n, -1) for column in table.columns.values()], axis=1
    )
    bounds = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes.values())])

    def statistic(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        sums = weights @ matrix
        parts = zip(shapes.items(), bounds[:-1], bounds[1:], strict=True)
        return estimate({name: sums[:, a:b].reshape(len(weights), *shape) for (name, shape), a, b in parts})

    return statistic


def resample_weights(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn: float64 blocks (r, clusters), r adding up to ``resamples``, rows to clusters."""
    random = np.random.default_rng(seed)
    block = max(1, min(resamples, _BLOCK_VALUES // clusters))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = random.integers(0, clusters, size=(rows, clusters), dtype=np.int64)
        drawn += np.arange(rows)[:, None] * clusters
        counts = np.bincount(drawn.ravel(), minlength=rows * clusters)
        yield counts.reshape(rows, clusters).astype(np.float64)


def _jackknife_weights(clusters: int, seed: int) -> Iterator[np.ndarray]:
    """Weights that leave out one group of clusters each; groups are drawn at random and differ by one in size."""
    groups = min(clusters, _JACKKNIFE_GROUPS)
    group = np.random.default_rng([seed, 1]).permutation(clusters) % groups
    block = max(1, min(groups, _BLOCK_VALUES // clusters))
    for start in range(0, groups, block):
        yield (group != np.arange(start, min(start + block, groups))[:, None]).astype(np.float64)


def _replicate(
    statistic: Statistic, clusters: int, resamples: int, confidence: float, seed: int
) -> dict[str, _Replicates]:
    if clusters < 1:
        raise BenchError("an interval of no clusters; the split is empty")
    if resamples < 2 or not 0 < confidence < 1:
        raise BenchError(f"{resamples} resamples at confidence {confidence}: give 2 or more, and one between 0 and 1")

    def collect(blocks: Iterator[np.ndarray]) -> dict[str, np.ndarray]:
        replicates: dict[str, list[np.ndarray]] = {}
        for weights in blocks:
            for name, values in statistic(weights).items():
                replicates.setdefault(name, []).append(np.asarray(values, dtype=np.float64).reshape(len(weights)))
        return {name: np.concatenate(parts) for name, parts in replicates.items()}

    with np.errstate(invalid="ignore", divide="ignore"):
        point = collect(iter([np.ones((1, clusters))]))
        resampled = collect(resample_weights(clusters, resamples, seed))
        jackknife = collect(_jackknife_weights(clusters, seed)) if clusters > 1 else point
    return {
        name: _Replicates(float(point[name][0]), np.sort(values[np.isfinite(values)]), jackknife[name])
        for name, values in resampled.items()
    }


def _corrections(values: _Replicates) -> tuple[float, float, float]:
    """Bias correction, acceleration, and the factor by which normal quantiles are widened."""
    bias = _NORMAL.inv_cdf(_share_below(values.resampled, values.point))
    pull = values.jackknife[np.isfinite(values.jackknife)]
    pull = pull.mean() - pull if pull.size else np.zeros(1)
    squares, error = float((pull**2).sum()), float(values.resampled.std())
    if squares == 0 or error == 0:
        return bias, 0.0, 1.0
    widening = sqrt(squares * (len(pull) - 1) / len(pull)) / error
    return bias, float((pull**3).sum()) / (6 * squares**1.5), min(max(1.0, widening), _WIDENED_AT_MOST)


def _share_below(resampled: np.ndarray, value: float) -> float:
    """Share of resamples below a value, ties counting half, kept off 0 and 1 by half a resample."""
    slack = 1e-12 * max(1.0, abs(value))
    first, last = np.searchsorted(resampled, [value - slack, value + slack])
    edge = 0.5 / len(resampled)
    return float(np.clip((first + last) / (2 * len(resampled)), edge, 1 - edge))


def _interval(values: _Replicates, confidence: float) -> tuple[float, float]:
    if not np.isfinite(values.point) or not values.resampled.size:
        return float("nan"), float("nan")
    bias, acceleration, widening = _corrections(values)

    def bound(share: float) -> float:
        shift = bias + widening * _NORMAL.inv_cdf(share)
        corrected = _phi(bias + shift / (1 - acceleration * shift)) if acceleration * shift < 1 else float(shift > 0)
        return float(np.quantile(values.resampled, corrected))

    return bound((1 - confidence) / 2), bound((1 + confidence) / 2)


def _centred_interval(values: _Replicates, confidence: float) -> tuple[float, float]:
    """Quantiles of resamples whose mean is moved to the value, for metrics between 0 and 1."""
    if not np.isfinite(values.point) or not values.resampled.size:
        return float("nan"), float("nan")
    _, _, widening = _corrections(values)
    shares = [(1 - confidence) / 2, (1 + confidence) / 2]
    apart = np.quantile(values.resampled, shares) - values.resampled.mean()
    low, high = np.clip(values.point + widening * apart, 0.0, 1.0)
    return float(low), float(high)


def _p_value(values: _Replicates) -> float:
    """Two-sided p value of zero: the interval's formula solved for the level at which its end is zero."""
    if not np.isfinite(values.point) or not values.resampled.size:
        return float("nan")
    if values.point == 0 and values.resampled[0] == values.resampled[-1] == 0:
        return 1.0
    bias, acceleration, widening = _corrections(values)

    def below(share: float) -> float:
        edge = 0.5 / len(values.resampled)
        distance = _NORMAL.inv_cdf(min(max(share, edge), 1 - edge)) - bias
        denominator = 1 + acceleration * distance
        shift = distance / denominator if denominator > 0 else float("inf") * np.sign(distance)
        return _phi((shift - bias) / widening)

    # resamples without a difference (few samples differ) speak against one, whichever its sign
    first, last = np.searchsorted(values.resampled, [-1e-12, 1e-12]) / len(values.resampled)
    one_sided = min(below(last), 1 - below(first))
    return float(np.clip(2 * one_sided, 1 / (len(values.resampled) + 1), 1.0))


def _phi(value: float) -> float:
    return 0.5 * (1 + erf(value / sqrt(2)))


def _same_clusters(ids_a: list[str], ids_b: list[str]) -> np.ndarray:
    """Position in A of each cluster of B."""
    position = {name: i for i, name in enumerate(ids_a)}
    strangers = [name for name in ids_b if name not in position]
    lost = len(set(ids_a) - set(ids_b))
    if strangers or lost or len(ids_a) != len(ids_b) or len(position) != len(ids_a):
        example = f", such as {strangers[0]!r}" if strangers else ""
        raise BenchError(
            f"the two runs cover different clusters: {lost} only in the first, {len(strangers)} only in the second"
            f"{example}; compare runs over the same data and split"
        )
    return np.fromiter((position[name] for name in ids_b), dtype=np.int64, count=len(ids_b))
