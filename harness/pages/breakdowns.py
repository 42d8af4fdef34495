"""Numbers by kind with their intervals, as the page draws them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from beit3_bench.harness.record.schema import MetricValue
from beit3_bench.harness.scoring import CONFIDENCE, RESAMPLES, shown
from beit3_bench.tasks.display.breakdowns import Breakdown

LONG = 18
"""Characters of a kind that stands in one line beside its bar."""


@dataclass(frozen=True)
class Bar:
    """A number of one kind. start, low, high, share: on the scale of the drawing, 0 to 100; low and high None without interval.

    expected: where a calibrated model would be, on the same scale.
    """

    kind: str
    text: str
    interval: str
    count: int | None
    share: float
    low: float | None
    high: float | None
    expected: float | None = None


@dataclass(frozen=True)
class Panel:
    """A breakdown ready to be drawn. form: ``"bars"`` or ``"reliability"``."""

    title: str
    what: str
    counted: str
    bars: list[Bar]
    note: str = ""
    form: str = "bars"

    @property
    def long_names(self) -> bool:
        """Whether kinds need more room than their bars."""
        return max((len(bar.kind) for bar in self.bars), default=0) > LONG


def panel_of(breakdown: Breakdown, seed: int = 0) -> Panel:
    """Values and 95% intervals of a breakdown, by the bootstrap of the metrics."""
    from beit3_bench.tasks.metrics.bootstrap import bootstrap_intervals

    values = {kind: float(value) for kind, value in breakdown.formula(breakdown.table.sums()).items()}
    bounds = bootstrap_intervals(breakdown.table, breakdown.formula, RESAMPLES, CONFIDENCE, seed)
    numbers = {kind: (values[kind], *bounds[kind]) for kind in breakdown.counts if math.isfinite(values[kind])}
    bars = _bars(numbers, breakdown.unit, 1, breakdown.counts, breakdown.expected)
    form = "bars" if breakdown.expected is None else "reliability"
    return Panel(breakdown.title, breakdown.what, breakdown.counted, bars, breakdown.note, form)


def panels_of_metrics(
    metrics: Mapping[str, MetricValue], groups: Mapping[str, str], lowest_first: int = 12
) -> list[Panel]:
    """The metrics of a result whose names begin alike, as panels; their numbers and intervals are those of the result.

    groups: prefix -> title; a metric belongs to its longest prefix.
    lowest_first: of more kinds than these, the lowest come first.
    """
    panels = []
    for prefix, title in groups.items():
        longer = [other for other in groups if other != prefix and other.startswith(prefix)]
        names = [n for n in metrics if n.startswith(prefix) and not any(n.startswith(other) for other in longer)]
        if len(names) < 2:
            continue
        if len(names) > lowest_first:
            names.sort(key=lambda name: metrics[name]["value"])
        first = metrics[names[0]]
        numbers = {}
        for name in names:
            value, interval = metrics[name]["value"], metrics[name]["ci95"] or [math.nan, math.nan]
            numbers[name.removeprefix(prefix)] = (value, interval[0], interval[1])
        panels.append(Panel(title, prefix.rstrip("/_"), "", _bars(numbers, first["unit"], first["decimals"])))
    return panels


def _bars(
    numbers: Mapping[str, Sequence[float]],
    unit: str,
    decimals: int,
    counts: Mapping[str, int] | None = None,
    expected: Mapping[str, float] | None = None,
) -> list[Bar]:
    """numbers: kind -> value, low and high (NaN without interval)."""
    top = 100.0 if unit == "percent" else 1.0
    top = max(top, *(part for number in numbers.values() for part in number if math.isfinite(part)), 0.0)  # CIDEr

    def place(value: float) -> float | None:
        return max(100 * value / top, 0.0) if math.isfinite(value) else None

    bars = []
    for kind, (value, low, high) in numbers.items():
        both = math.isfinite(low) and math.isfinite(high)
        interval = f"[{shown(low, unit, decimals)}, {shown(high, unit, decimals)}]" if both else ""
        count = None if counts is None else counts[kind]
        sure = None if expected is None else place(expected[kind])
        ends = (place(low), place(high)) if both else (None, None)
        bars.append(Bar(kind, shown(value, unit, decimals), interval, count, place(value) or 0.0, *ends, sure))
    return bars
