"""Intervals that hold however often one looks, around a mean or a ratio of means over clusters that are drawn in random order.

Repeated confidence intervals (Jennison and Turnbull 1989, J. R. Statist. Soc. B 51, 305-361; chapter 9 of their book of 2000): a value
stays in the interval of a look while its standardised statistic is below a bound, and the bound, the same at every look (Pocock 1977,
Biometrika 64), is such that the statistics of all looks together stay below it with the confidence that is asked for. Its recursion is
that of Armitage, McPherson and Rowe (1969). All looks at once are covered, so that it does not matter why somebody stops, nor whether
he goes on afterwards with another width in mind. (A width for which one stops leaves the coverage of the interval that is reported
near 99.5 %.)

Clusters are drawn without replacement. Of n out of N the variance of a mean is S^2 (1/n - 1/N), and those of two looks correlate as the
square root of the ratio of their variances (their covariance is the variance of the later one), as in a trial whose information is
n / (1 - n / N). Looks are spaced by a constant ratio of that.

A ratio of means is linearised (Cochran 1977, section 6.4). Near 0 and 100 %, where a standard error says little, half a squared bound of
clusters of value 0, and as many of value 1, are added, as Agresti and Coull (1998) do for a share; an interval has a width, then, where
nobody was wrong. The first look has as many clusters as normal quantiles need for their skewness (after Cochran's rule, section 2.15).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from beit3_bench.errors import BenchError

CONFIDENCE = 0.95
SPACING = 1.25
"""Information of a look over that of the one before. 1.1 to 1.5 cost the same: closer looks need a larger bound, others come late."""
LAST = 0.95
"""Share of the clusters after which the whole is waited for."""
_PER_SKEWNESS = 50
"""Clusters of the first look where all are of one size (skewness 1 at most). Cochran has 25, for intervals of 95 % at a single look."""
_NODES = 128


def look_numbers(sizes: np.ndarray) -> tuple[int, ...]:
    """After how many clusters to look, ascending; the last one is all of them.

    Args:
        sizes: samples of each cluster of the population, (N,). Few clusters, or some that outweigh the others, leave the last look alone.

    Raises:
        BenchError: there are none.
    """
    sizes = np.asarray(sizes, dtype=np.float64)
    total = len(sizes)
    if not total:
        raise BenchError("looks at no clusters; the split is empty")
    skewness = (sizes**3).mean() / (sizes**2).mean() ** 1.5
    first = int(np.ceil(_PER_SKEWNESS * skewness**2))
    if first >= LAST * total:
        return (total,)
    information = first / (1 - first / total) * SPACING ** np.arange(np.ceil(np.log(total**2) / np.log(SPACING)) + 1)
    numbers = np.ceil(information / (1 + information / total)).astype(int)
    return (*np.unique(numbers[numbers < LAST * total]).tolist(), total)


@lru_cache(maxsize=64)
def look_bound(looks: Sequence[int], confidence: float = CONFIDENCE) -> float:
    """The bound of the standardised statistics of all looks but the last, which is exact.

    Args:
        looks: as of `look_numbers`, a tuple.
    """
    from scipy.optimize import brentq

    numbers = np.asarray(looks[:-1], dtype=np.float64)
    if not numbers.size:
        return 0.0
    information = numbers / (1 - numbers / looks[-1])
    correlations = np.sqrt(information[:-1] / information[1:])
    return float(brentq(lambda bound: _probability_inside(bound, correlations) - confidence, 1.0, 8.0, xtol=1e-6))


def _probability_inside(bound: float, correlations: np.ndarray) -> float:
    """That no statistic of a Markov chain of standard normal ones leaves -bound..bound (Gauss-Legendre quadrature)."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    nodes, weights = nodes * bound, weights * bound
    density = np.exp(-(nodes**2) / 2) / np.sqrt(2 * np.pi)
    for correlation in correlations:
        spread = np.sqrt(1 - correlation**2)
        steps = (nodes[:, None] - correlation * nodes) / spread
        density = np.exp(-(steps**2) / 2) / (spread * np.sqrt(2 * np.pi)) @ (density * weights)
    return float(density @ weights)


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, total: int, bound: float) -> tuple[float, float]:
    """Interval of the ratio of the sums over all clusters, as fractions; it holds the ratio of those that were drawn.

    Args:
        numerators, denominators: of the clusters that were drawn, (n,), with 0 <= numerator <= denominator.
        total: clusters that there are.
        bound: of `look_bound`.

    Returns:
        (nan, nan) where all denominators are 0; the ratio twice where all clusters were drawn.
    """
    y, m = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    sum_y, sum_m, sum_mm = y.sum(), m.sum(), m @ m
    if sum_m == 0:
        return float("nan"), float("nan")
    left = 1 - len(y) / total
    added, size = (
        left * bound**2 / 2,
        sum_mm / sum_m,
    )  # clusters of each kind; of the size in which a sample finds itself
    whole = sum_m + 2 * added * size
    centre = (sum_y + added * size) / whole
    squares = ((y - centre * m) ** 2).sum() + added * size**2 * (centre**2 + (1 - centre) ** 2)
    clusters = sum_m / size + 2 * added
    few = clusters / (clusters - 1) if clusters > 1 else 1.0
    half = bound * np.sqrt(left * squares * few) / whole
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))
