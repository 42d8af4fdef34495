"""Score against cost: what rows of a section cost, and which of them no other beats in both.

Speed belongs to the device, number type and compilation that it was measured with: rows of different ones share no diagram and no
front.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from beit3_bench.harness.record.schema import Result

if TYPE_CHECKING:
    from beit3_bench.harness.leaderboard.board import TableRow

_PARAMS = re.compile(r"([\d.]+)([KMB])")
_SIZES = {"K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True)
class Cost:
    """What a measured row cost.

    gflop: per sample, by kind of sample.  speed: samples per second, None where nothing was computed.  device: its name, number type
    and whether it ran compiled.
    """

    gflop: dict[str, float] = field(default_factory=dict)
    speed: float | None = None
    device: str = ""


def cost_of(result: Result) -> Cost:
    """What a result says of its cost; results of earlier versions say less."""
    timing: Mapping[str, Any] = result["timing"]
    made_with = result["provenance"]
    names = [
        device_of(made_with),
        str(made_with.get("dtype", "")),
        "compiled" if made_with.get("compile") is True else "",
    ]
    gflop = {kind: value for kind, value in (timing.get("gflop_per_sample") or {}).items() if value > 0}
    return Cost(gflop, timing.get("samples_per_second") or None, ", ".join(name for name in names if name))


def device_of(made_with: Mapping[str, Any]) -> str:
    """The name of the card or the processor of a run, as far as it is known."""
    device, hardware = str(made_with.get("device", "")), made_with.get("hardware")
    known = hardware if isinstance(hardware, dict) else {}
    if device.startswith("cuda"):
        cards = known.get("gpus")
        names = [str(card) for card in cards] if isinstance(cards, list) else []
        return (f"{len(names)} x {names[0]}" if len(names) > 1 else names[0]) if names else device
    return str(known.get("cpu") or device)


@dataclass(frozen=True)
class Point:
    """A row at its cost, above 0, and score."""

    row: TableRow
    cost: float
    score: float


@dataclass(frozen=True)
class Tradeoff:
    """Points of one diagram. cost: what it is, with its unit.  cheap_is_low: false for speed.  front: see `pareto_front`."""

    cost: str
    cheap_is_low: bool
    points: list[Point]
    front: list[Point]


def tradeoffs(rows: Sequence[TableRow], higher_is_better: bool) -> list[Tradeoff]:
    """The diagrams of a section, each of two points at least; a row without a score or that cost is in none."""
    scored = [(row, row.score) for row in rows if row.score is not None]
    groups: dict[tuple[str, bool], list[Point]] = {("parameters", True): []}
    for row, score in scored:
        if count := params_of(row.params):
            groups["parameters", True].append(Point(row, count, score))
        if row.cost is None:
            continue
        for kind, gflop in row.cost.gflop.items():
            groups.setdefault((f"GFLOP per {kind}", True), []).append(Point(row, gflop, score))
        if row.cost.speed:
            where = f" on {row.cost.device}" if row.cost.device else ""
            groups.setdefault((f"samples per second{where}", False), []).append(Point(row, row.cost.speed, score))
    return [
        Tradeoff(cost, low, points, pareto_front(points, low, higher_is_better))
        for (cost, low), points in groups.items()
        if len(points) > 1
    ]


def params_of(text: str) -> float | None:
    """``"222M"`` -> 222e6; None for a text that is no single number."""
    match = _PARAMS.fullmatch(text)
    return float(match[1]) * _SIZES[match[2]] or None if match and match[1].count(".") < 2 and match[1] != "." else None


def pareto_front(points: Sequence[Point], cheap_is_low: bool, higher_is_better: bool) -> list[Point]:
    """Points that no other beats in one of cost and score and matches in the other, the cheapest first.

    Points of the same cost and score are all there. Scores count as printed; intervals play no part.
    """
    cheap, good = (1 if cheap_is_low else -1), (1 if higher_is_better else -1)
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (cheap * p.cost, -good * p.score)):
        last = front[-1] if front else None
        same = last is not None and (last.cost, last.score) == (point.cost, point.score)
        if last is None or same or good * (point.score - last.score) > 0:
            front.append(point)
    return front
