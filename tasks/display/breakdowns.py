"""Numbers by kind of sample, as tables from which intervals are made: the same sums, and the same clusters, as of the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from beit3_bench.tasks.scores import ClusterTable, Formula

LOWEST = 20
"""Kinds that are shown where there are many: those of the lowest values."""


@dataclass(frozen=True)
class Breakdown:
    """Numbers by kind.

    what: what each number is of (``"accuracy"``).
    unit: as `Metric.unit`.
    table, formula: of the numbers by kind, and of their intervals.
    counts: kind -> how many ``counted``, in the order in which kinds are shown.
    expected: kind -> the value that a calibrated model would have; makes a reliability diagram of it.
    note: a sentence on what is shown.
    """

    title: str
    what: str
    unit: str
    table: ClusterTable
    formula: Formula
    counts: Mapping[str, int]
    expected: Mapping[str, float] | None = None
    note: str = ""
    counted: str = "samples"


def ratio_breakdown(
    title: str,
    what: str,
    unit: str,
    clusters: Sequence[str],
    sums: np.ndarray,
    counts: np.ndarray,
    kinds: Sequence[str],
    expected: Mapping[str, float] | None = None,
    note: str = "",
) -> Breakdown:
    """Sum over count for each kind. sums, counts: float (samples, kinds)."""
    table = ClusterTable.collect(clusters, {"sums": sums, "counts": counts})

    def formula(totals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            values = totals["sums"] / totals["counts"]
        return {kind: values[..., k] for k, kind in enumerate(kinds)}

    samples = dict(zip(kinds, np.asarray(counts).sum(axis=0).astype(int).tolist(), strict=True))
    return Breakdown(title, what, unit, table, formula, samples, expected, note)


def by_kind(
    title: str,
    what: str,
    unit: str,
    values: Mapping[str, float],
    kinds: Mapping[str, str],
    clusters: Mapping[str, str],
    order: Sequence[str] | None = None,
    lowest: int | None = None,
) -> list[Breakdown]:
    """The mean of values of samples by their kind; nothing where there are fewer than two kinds.

    Args:
        values, kinds, clusters: by sample id.
        order: of the kinds; None = the most samples first.
        lowest: how many kinds are shown, those of the lowest mean; None = all.
    """
    ids = [name for name in values if name in kinds]
    names = [kinds[name] for name in ids]
    known = list(dict.fromkeys(names))
    if len(known) < 2:
        return []
    place = {kind: k for k, kind in enumerate(known)}
    at = np.fromiter((place[name] for name in names), dtype=np.int64, count=len(ids))
    scores = np.fromiter((values[name] for name in ids), dtype=np.float64, count=len(ids))
    number, total = np.bincount(at, minlength=len(known)), np.bincount(at, weights=scores, minlength=len(known))
    note = ""
    if lowest is not None and len(known) > lowest:
        chosen = np.argsort(total / number, kind="stable")[:lowest]
        note = f"The {lowest} lowest of {len(known):,}."
    elif order is not None:
        chosen = np.array([place[kind] for kind in order if kind in place])
    else:
        chosen = np.argsort(-number, kind="stable")
    column = np.full(len(known), -1)
    column[chosen] = np.arange(len(chosen))
    kept = np.flatnonzero(column[at] >= 0)
    sums, counts = np.zeros((2, len(ids), len(chosen)))
    sums[kept, column[at[kept]]] = scores[kept]
    counts[kept, column[at[kept]]] = 1
    columns = [known[k] for k in chosen.tolist()]
    return [ratio_breakdown(title, what, unit, [clusters[i] for i in ids], sums, counts, columns, note=note)]


def confusions(pairs: Sequence[tuple[str, str, str]], most: int = 12) -> list[Breakdown]:
    """The commonest wrong answers: of the samples of one class, the share that was taken for another.

    pairs: cluster, right class, predicted class of each sample.
    """
    wrong: dict[tuple[str, str], int] = {}
    for _, right, predicted in pairs:
        if right != predicted:
            wrong[right, predicted] = wrong.get((right, predicted), 0) + 1
    if not wrong:
        return []
    chosen = sorted(wrong, key=lambda pair: (-wrong[pair], pair))[:most]
    columns: dict[str, list[int]] = {}
    for k, (right, _) in enumerate(chosen):
        columns.setdefault(right, []).append(k)
    place = {pair: k for k, pair in enumerate(chosen)}
    sums, counts = np.zeros((2, len(pairs), len(chosen)))
    for n, (_, right, predicted) in enumerate(pairs):
        counts[n, columns.get(right, [])] = 1
        if (right, predicted) in place:
            sums[n, place[right, predicted]] = 1
    names = [f"{right} → {predicted}" for right, predicted in chosen]
    title = "Confusions" if len(wrong) <= most else "Commonest confusions"
    note = f"{sum(wrong.values()):,} of {len(pairs):,} samples are taken for another class, in {len(wrong):,} pairs of classes."
    clusters = [cluster for cluster, _, _ in pairs]
    return [ratio_breakdown(title, "share of the class", "fraction", clusters, sums, counts, names, note=note)]


def reliability(
    confidence: Sequence[float], right: Sequence[float], clusters: Sequence[str], what: str = "accuracy", bins: int = 10
) -> list[Breakdown]:
    """How often answers are right, by how sure the model was, and the expected calibration error (Guo et al. 2017, bins of equal
    width). confidence: 0 to 1.  right: 0 or 1.
    """
    sure, hits = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if not len(sure):
        return []
    at = np.minimum((sure * bins).astype(np.int64), bins - 1)
    number = np.bincount(at, minlength=bins)
    used = np.flatnonzero(number)
    column = np.full(bins, -1)
    column[used] = np.arange(len(used))
    sums, counts = np.zeros((2, len(sure), len(used)))
    rows = np.arange(len(sure))
    sums[rows, column[at]] = hits
    counts[rows, column[at]] = 1
    mean = np.bincount(at, weights=sure, minlength=bins)[used] / number[used]
    accuracy = np.bincount(at, weights=hits, minlength=bins)[used] / number[used]
    error = float((number[used] / len(sure)) @ np.abs(accuracy - mean))
    names = [f"{k / bins:.1f} to {(k + 1) / bins:.1f}" for k in used.tolist()]
    expected = dict(zip(names, mean.tolist(), strict=True))
    note = f"Expected calibration error {100 * error:.1f} %, over {len(sure):,}."
    return [
        ratio_breakdown("Reliability", what, "fraction", clusters, sums, counts, names, expected=expected, note=note)
    ]


def words_kind(count: int, edges: Iterable[int]) -> str:
    """The kind of a text by its number of words: ``"1 to 4 words"`` for the edges (4, ...), ``"more than 12 words"`` at the end."""
    first = 1
    for last in edges:
        if count <= last:
            return f"{first} to {last} words" if first < last else f"{last} words"
        first = last + 1
    return f"more than {first - 1} words"


def words_order(edges: Sequence[int]) -> list[str]:
    """All kinds of `words_kind`, in order."""
    return [words_kind(last, edges) for last in (*edges, edges[-1] + 1)]


def words_of(text: str | None) -> int:
    return len((text or "").split())
