"""What a task's numbers are called, what `score` returns, and the statistics that intervals are made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np

Formula = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Column sums of a cluster table -> values by metric name; arrays may carry a leading axis of resamples. One formula may serve
several metrics, and name metrics that only the data knows (``IoU/wall``)."""


Ratio = Callable[[Mapping[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]
"""Columns of a cluster table -> numerators and denominators of its clusters, (n,) each, with 0 <= numerator <= denominator."""


@dataclass(frozen=True)
class Metric:
    """What a number of this task is called, how it reads and how it is computed.

    unit: ``"percent"`` (0..100) or ``"fraction"`` (0..1, shown x100 in the table).
    decimals: the rounding of the paper's table.
    formula: of the value, and of the interval around it; None = computed from more than sums, and without an interval.
    ratio: of a value that is a mean, or a ratio of means, of shares of samples: the sum of the numerators over that of the denominators.
        A part of a split drawn at random estimates it then (`run --until-ci`); None = it does not, and the value is no such mean.
    no_ratio: why not, in words that follow the metric's name.
    """

    name: str
    unit: str = "percent"
    headline: bool = False
    higher_is_better: bool = True
    decimals: int = 1
    formula: Formula | None = field(default=None, compare=False, repr=False)
    ratio: Ratio | None = field(default=None, compare=False, repr=False)
    no_ratio: str = field(default="is not declared to be a mean over samples", compare=False, repr=False)


def ratio_of(numerator: str, denominator: str) -> Ratio:
    """Of two columns (n,)."""
    return partial(_two_columns, numerator, denominator)


def _two_columns(numerator: str, denominator: str, columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return columns[numerator], columns[denominator]


def ratio_in(column: str) -> Ratio:
    """Of one column (n, 2), which holds both."""
    return partial(_one_column, column)


def _one_column(column: str, columns: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return columns[column][:, 0], columns[column][:, 1]


def evaluate(metrics: Iterable[Metric], sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Values by name from column sums: every formula once."""
    values: dict[str, np.ndarray] = {}
    for formula in dict.fromkeys(metric.formula for metric in metrics):
        if formula is not None:
            values |= formula(sums)
    return values


@dataclass
class ClusterTable:
    """Additive statistics per cluster: metrics, their intervals and paired comparisons are made from column sums.

    ids: cluster names, length n.  columns: name -> float64 (n,) or (n, k).
    centred: the metrics' values depend on the number of clusters, so that intervals are centred on the value itself.
    """

    ids: list[str]
    columns: dict[str, np.ndarray]
    centred: ClassVar[bool] = False

    def sums(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Column sums; with weights (R, n), the sums of R resamples: (R,) or (R, k) per column."""
        if weights is None:
            return {name: column.sum(axis=0) for name, column in self.columns.items()}
        return {name: weights @ column for name, column in self.columns.items()}

    @classmethod
    def collect(cls, clusters: Sequence[str], columns: Mapping[str, np.ndarray]) -> ClusterTable:
        """Sum per-sample values (n_samples,) or (n_samples, k) into their clusters, in order of first appearance."""
        ids = list(dict.fromkeys(clusters))
        position = {name: i for i, name in enumerate(ids)}
        index = np.fromiter((position[c] for c in clusters), dtype=np.int64, count=len(clusters))
        summed = {}
        for name, values in columns.items():
            values = np.asarray(values, dtype=np.float64)
            total = np.zeros((len(ids), *values.shape[1:]))
            np.add.at(total, index, values)
            summed[name] = total
        return cls(ids, summed)


@dataclass
class Scores:
    """What `Task.score` returns: the aggregate, how many samples it stands on, and what intervals are made from.

    notes: one line each, shown under the result (a metric that was skipped and why, a partial coverage, ...).
    samples: optional per-sample values, name -> {example id: value}, kept in the run folder for comparisons.
    chance: what guessing without looking scores on the headline metric, in its unit; None where nothing says it.
    headline: name of the headline metric where the samples decide it; "" = the declared one.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    table: ClusterTable | None = None
    notes: list[str] = field(default_factory=list)
    samples: dict[str, dict[str, float]] = field(default_factory=dict)
    chance: float | None = None
    headline: str = ""

    @classmethod
    def of(
        cls,
        metrics: Iterable[Metric],
        table: ClusterTable,
        counts: dict[str, int],
        notes: Sequence[str] = (),
        samples: Mapping[str, dict[str, float]] | None = None,
        chance: float | None = None,
    ) -> Scores:
        """Scores whose values come from the metrics' formulas over the whole table."""
        values = {name: float(value) for name, value in evaluate(metrics, table.sums()).items()}
        return cls(values, counts, table, list(notes), dict(samples or {}), chance)
