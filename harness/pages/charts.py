"""Lines over steps as SVG: places computed here, drawn by charts.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from beit3_bench.harness.scales import bounds, ticks
from beit3_bench.harness.training.curves import Line

WIDTH, HEIGHT = 520.0, 240.0
MOST_POINTS = 600
"""Of a drawn line; of more, the least and the greatest of each stretch are kept."""
LABELLED = 3
"""Values of a line that are few enough to stand beside their dots."""


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    text: str
    labelled: bool


@dataclass(frozen=True)
class Drawn:
    """A line. last: its last value in words.  path: "" where there is nothing to connect.  dots: where it has few values."""

    name: str
    last: str
    path: str
    dots: list[Dot]


@dataclass(frozen=True)
class Chart:
    """title: what the values are.  x, y: places and texts of round values.  lines: in the order of their colours."""

    title: str
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    lines: list[Drawn]
    width: float = WIDTH
    height: float = HEIGHT


def chart(title: str, lines: Sequence[Line], steps: Sequence[float] = ()) -> Chart | None:
    """None where no line has a finite value. steps: that the scale covers, too."""
    known = [
        (name, [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)])
        for name, xs, ys in lines
    ]
    known = [(name, points) for name, points in known if points]
    if not known:
        return None
    x_ends = bounds([*steps, *(x for _, points in known for x, _ in points)])
    low, high = bounds([y for _, points in known for _, y in points])
    margin = 0.06 * (high - low)
    y_ends = (low - margin, high + margin)

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_ends[0]) / (x_ends[1] - x_ends[0]), (y - y_ends[0]) / (y_ends[1] - y_ends[0])
        return round(across * WIDTH, 1), round((1 - up) * HEIGHT, 1)

    drawn = []
    for name, points in known:
        places = [place(x, y) for x, y in thinned(points)]
        path = "M" + "L".join(f"{x} {y}" for x, y in places) if len(places) > 1 else ""
        few = len(points) <= 30
        dots = [Dot(*place(x, y), f"step {x:,.0f}: {y:.4g}", len(points) <= LABELLED) for x, y in points] if few else []
        drawn.append(Drawn(name, f"{points[-1][1]:.4g}", path, dots))
    return Chart(
        title,
        [(place(x, y_ends[0])[0], f"{x:,g}") for x in ticks(*x_ends)],
        [(place(x_ends[0], y)[1], f"{y:.4g}") for y in ticks(*y_ends)],
        drawn,
    )


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points, in order: the least and the greatest of each stretch."""
    if len(points) <= most:
        return list(points)
    stretch = -(-len(points) // (most // 2))
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept
