"""Does a measured number reproduce the published one, and which rows are statistically tied?"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Literal

from beit3_bench.backbones.released import find_released
from beit3_bench.harness.record.released import apart
from beit3_bench.harness.record.schema import MetricValue, Result
from beit3_bench.results.published.values import SOURCE_KINDS, PublishedValue

Kind = Literal["reproduces", "within noise", "differs", "no published value"]


@dataclass(frozen=True)
class Reproduction:
    """How a measured value stands to the published one of the same checkpoint, split, regime and resolution.

    difference: measured minus published, in percent points; None without a published value.
    reason: why there is nothing to compare with, or what kind of source the reference is.
    """

    kind: Kind
    difference: float | None = None
    reference: PublishedValue | None = None
    reason: str = ""

    @property
    def text(self) -> str:
        """As the table shows it."""
        if self.reference is None or self.difference is None:
            return self.kind + (f" ({self.reason})" if self.reason else "")
        origin = f" ({self.reason})" if self.reason else ""
        if self.kind == "reproduces":
            return f"reproduces {self.reference.printed}{origin}"
        digits = max(self.reference.decimals, 2)
        if self.kind == "within noise":
            return f"within noise of {self.reference.printed} ({self.difference:+.{digits}f}){origin}"
        return f"differs by {self.difference:+.{digits}f} from {self.reference.printed}{origin}"


def _other_protocol(weight: str, result: Result) -> str:
    """What a released file was published with, where options have asked for something else; else empty."""
    released, protocol = find_released(weight), result["model"].get("protocol", "")
    if released is None or result["task"] != released.task or released.protocol in ("", protocol):
        return ""
    return f"published {released.protocol}, measured {protocol}"


def percent(metric: MetricValue, number: float) -> float:
    """A number in the unit of a metric as percent."""
    return 100.0 * number if metric["unit"] == "fraction" else number


def judge(result: Result, metric: MetricValue, references: Iterable[PublishedValue]) -> Reproduction:
    """Compare a measured value with the published ones of its split, metric and regime.

    Only values of the same released checkpoint at the same resolution count; of several, the one nearest to its
    origin, then the one printed with most digits. A result over anything but the whole released split is not judged.

    *reproduces*: equal at the printed rounding. *within noise*: the printed value, give or take its rounding, lies in
    the 95% interval. *differs*: anything else, also when there is no interval.
    """
    if why := apart(result):
        return Reproduction("no published value", reason=", ".join(why))
    weight = result["model"]["weight"]
    if weight is None:
        return Reproduction("no published value", reason="not a released checkpoint")
    if result["model"]["allow_missing"]:
        return Reproduction("no published value", reason="tensors were missing from the checkpoint")
    if other := _other_protocol(weight, result):
        return Reproduction("no published value", reason=other)
    same = [r for r in references if r.checkpoint == weight]
    if not same:
        return Reproduction("no published value")
    fitting = [r for r in same if r.image_size == result["model"]["image_size"]]
    if not fitting:
        sizes = ", ".join(sorted({r.resolution for r in same}))
        return Reproduction("no published value", reason=f"published at {sizes}")
    reference = min(fitting, key=lambda r: (SOURCE_KINDS.index(r.source_kind), -r.decimals))
    reason = "" if reference.source_kind == "primary" else reference.source_kind
    value = percent(metric, metric["value"])
    half_unit = 0.5 * 10.0**-reference.decimals
    difference = value - reference.value
    if abs(difference) <= half_unit + 1e-9:
        return Reproduction("reproduces", difference, reference, reason)
    interval = metric["ci95"]
    if interval is not None:
        low, high = (percent(metric, end) for end in interval)
        if low - half_unit <= reference.value <= high + half_unit:
            return Reproduction("within noise", difference, reference, reason)
    return Reproduction("differs", difference, reference, reason)


@dataclass(frozen=True)
class Standing:
    """What ranking needs of a row.

    value: in percent.  half_width: of its 95% interval; 0 where there is none.  half_unit: half of the last printed
    digit of a published value; 0 for a measured one.
    """

    value: float
    half_width: float = 0.0
    half_unit: float = 0.0


def tied(a: Standing, b: Standing) -> bool:
    """Whether two values cannot be told apart.

    Two measured values: their difference lies within the 95% interval of a difference of independent estimates (a
    paired comparison of runs over the same samples is sharper). A measured and a published one: the published value,
    give or take its rounding, lies in the interval. Two published ones: they agree at the coarser rounding.
    """
    margin = math.hypot(a.half_width, b.half_width) + max(a.half_unit, b.half_unit)
    return abs(a.value - b.value) <= margin + 1e-9


def ranks(rows: Sequence[Standing | None], higher_is_better: bool = True) -> list[int | None]:
    """Rank of each row: one more than the number of rows that are better and not tied with it; None where no value.

    Rows that cannot be told apart from any better row share its rank.
    """
    sign = 1.0 if higher_is_better else -1.0
    best_first = sorted((row for row in rows if row is not None), key=lambda row: -sign * row.value)
    widest = max((row.half_width for row in best_first), default=0.0)
    coarsest = max((row.half_unit for row in best_first), default=0.0)

    def rank(row: Standing) -> int:
        # What lies ahead by more than any margin is counted, not compared: of a thousand runs of a task that is most of them.
        margin = 1e-6 + (1 + 1e-9) * (math.hypot(widest, row.half_width) + max(coarsest, row.half_unit))
        clear = bisect_left(best_first, -margin, key=lambda other: sign * (row.value - other.value))
        near = takewhile(lambda other: sign * (other.value - row.value) > 0, islice(best_first, clear, None))
        return 1 + clear + sum(not tied(other, row) for other in near)

    return [None if row is None else rank(row) for row in rows]
