"""Places of what the page draws, in percent of a width that only the reader's screen knows; drawn by ``drawings.html``."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise, product

from beit3_bench.harness.leaderboard.board import ApartRow, Cell, Section, Table, TableRow
from beit3_bench.harness.leaderboard.pareto import Tradeoff, tradeoffs
from beit3_bench.harness.leaderboard.text import row_label
from beit3_bench.harness.scales import bounds, log_ticks, ticks

HEIGHT = 230.0
"""Of a scatter, in pixels."""
USUAL_WIDTH, LETTER, LINE = 380.0, 6.4, 12.0
"""Of a scatter, of a letter in it and of a line, in pixels: as far as labels have to keep off each other."""
LOG_FROM = 6.0
"""Ratio of the dearest to the cheapest from which a scale of costs is logarithmic."""
LONGEST_LABEL = 30


@dataclass(frozen=True)
class Scale:
    """ticks: place in percent and text of round values."""

    low: float
    high: float
    ticks: list[tuple[float, str]]

    def place(self, value: float) -> float:
        """Percent of the width, 0 to 100."""
        return 100.0 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def scale_of(values: Iterable[float], most: int = 6) -> Scale:
    """A scale of percent with a little room at both ends, but none beyond 0 and 100 where no value is; of one value, 0 to 100."""
    known = list(values)
    if min(known) == max(known) and 0 <= known[0] <= 100:
        return scale_between(0.0, 100.0, most)
    low, high = bounds(known)
    room = max(0.05 * (high - low), 0.1)
    return scale_between(
        max(low - room, 0.0) if low >= 0 else low - room, min(high + room, 100.0) if high <= 100 else high + room, most
    )


def scale_between(low: float, high: float, most: int = 4) -> Scale:
    return Scale(low, high, [(100.0 * (v - low) / (high - low), f"{round(v, 9):g}") for v in ticks(low, high, most)])


@dataclass(frozen=True)
class Strip:
    """A score on the scale of its section. low, high: ends of its interval, at its place where there is none."""

    at: float
    low: float
    high: float


def strip_of(row: TableRow, scale: Scale) -> Strip | None:
    """None for a row without a score."""
    if row.score is None:
        return None
    return Strip(*(scale.place(row.score + d) for d in (0.0, -row.half_width, row.half_width)))


def section_scale(section: Section) -> Scale | None:
    """The scale of all scores of a section, intervals included; None where no row has a score."""
    scored = [(row, row.score) for row in section.rows if row.score is not None]
    if len(scored) == 1 and 0 <= scored[0][1] <= 100:
        return scale_between(0.0, 100.0)
    return scale_of(score + d for row, score in scored for d in (-row.half_width, row.half_width)) if scored else None


# ---- one model across tasks --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A task of a model. run: its name, where several are of that task; others: places of published rows; chance: its place;
    note: how it stands, in words."""

    title: str
    metric: str
    text: str
    interval: str
    note: str
    strip: Strip
    scale: Scale
    others: list[tuple[float, str]] = field(default_factory=list)
    chance: float | None = None
    run: str = ""


@dataclass(frozen=True)
class Profile:
    """One model across tasks. why: what sets its numbers apart from published ones; "" for whole released splits."""

    model: str
    why: str
    lines: list[Line]


def profiles_of(table: Table) -> list[Profile]:
    """Every model that was measured on two tasks or more, first where it stands beside published numbers."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for section in (section for section in table.sections if not section.view):
        scale = section_scale(section)
        for row in section.rows:
            if row.measured and scale is not None and (strip := strip_of(row, scale)) is not None:
                groups.setdefault((row.name, ""), []).append(_line(section, row, scale, strip))
    for item in table.listed_apart:
        groups.setdefault((item.row.name, item.why), []).append(_line_apart(item))
    return [
        Profile(*key, _told_apart(lines)) for key, lines in groups.items() if len({line.title for line in lines}) > 1
    ]


def _told_apart(lines: Sequence[Line]) -> list[Line]:
    counts = Counter(line.title for line in lines)
    return [line if counts[line.title] > 1 else replace(line, run="") for line in lines]


def _line(section: Section, row: TableRow, scale: Scale, strip: Strip) -> Line:
    one = row.cells[section.order_by[0]] if len(section.order_by) == 1 else Cell(row.score or 0.0, f"{row.score:.1f}")
    published = [r for r in section.rows if not r.measured and r.score is not None]
    verdict = row.verdicts.get(section.order_by[0])
    note = verdict.text if verdict and verdict.reference else _behind(row, published, section.higher_is_better)
    others = [(scale.place(r.score or 0.0), f"{row_label(r)}: {r.score:.2f}") for r in published]
    return Line(
        section.title, metric_of(section), one.text, interval_text(one), note, strip, scale, others, None, row.run
    )


def _behind(row: TableRow, published: Sequence[TableRow], higher_is_better: bool) -> str:
    """How far the best published row is away."""
    if not published or row.score is None:
        return ""
    best = (max if higher_is_better else min)(published, key=lambda other: other.score or 0.0)
    return f"{row.score - (best.score or 0.0):+.1f} to {best.name}"


def _line_apart(item: ApartRow) -> Line:
    cell = item.row.cells[item.headline]
    low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
    scale = scale_between(min(0.0, low), max(100.0, high))
    chance = None if item.row.chance is None else scale.place(item.row.chance)
    note = "" if item.row.chance is None else f"chance {item.row.chance:.1f}"
    strip = Strip(*map(scale.place, (cell.value, low, high)))
    title = f"{item.task}, {item.split}, {item.regime}"
    return Line(title, item.headline, cell.text, interval_text(cell), note, strip, scale, [], chance, item.row.run)


def metric_of(section: Section) -> str:
    """What the score of a section is."""
    what = " and ".join(section.order_by)
    return f"mean of {what}" if len(section.order_by) > 1 else what


def interval_text(cell: Cell) -> str:
    """``[low, high]`` at the rounding of the number; "" without an interval."""
    if cell.low is None or cell.high is None:
        return ""
    digits = len(cell.text.partition(".")[2])
    return f"[{cell.low:.{digits}f}, {cell.high:.{digits}f}]"


def short_name(row: TableRow) -> str:
    """The name of a row where there is little room: of a BEiT-3 checkpoint, system and size."""
    if row.measured or row.variant in ("", row.name, "as listed"):
        return row.name
    words = row.variant.replace("_", " ").split()
    size = next((word for word in words if word in ("tiny", "base", "large", "giant", "huge")), "")
    return f"{row.name} {size or row.variant}"


# ---- score against cost ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dot:
    """A row of a scatter.  x: percent of its width; y, low, high: pixels from above.  label: "" where there is no room for it."""

    row: TableRow
    title: str
    x: float
    y: float
    low: float
    high: float
    best: bool
    label: str = ""
    end: bool = False
    text_y: float = 0.0


@dataclass(frozen=True)
class Scatter:
    """x: of costs, in percent; y: of scores, in pixels.  steps: the front, as lines (x1, y1, x2, y2).  words: the same, told."""

    cost: str
    metric: str
    words: str
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    dots: list[Dot]
    steps: list[tuple[float, float, float, float]]
    height: float = HEIGHT


def scatters_of(section: Section) -> list[Scatter]:
    """Score against each cost that two rows of the section have."""
    return [_scatter(section, one) for one in tradeoffs(section.rows, section.higher_is_better)]


def _scatter(section: Section, one: Tradeoff) -> Scatter:
    scores = scale_of(p.score + d for p in one.points for d in (-p.row.half_width, p.row.half_width))
    costs, place = _costs([p.cost for p in one.points])

    def height(score: float) -> float:
        return HEIGHT * (1 - scores.place(score) / 100)

    best = {id(point.row) for point in one.front}
    dots = [
        Dot(
            p.row,
            f"{row_label(p.row)}: {p.score:.2f}, {cost_text(p.cost)} {one.cost}",
            place(p.cost),
            height(p.score),
            height(p.score - p.row.half_width),
            height(p.score + p.row.half_width),
            id(p.row) in best,
        )
        for p in sorted(one.points, key=lambda point: point.row.measured)  # ours above the others
    ]
    names = ", ".join(f"{row_label(p.row)} ({p.score:.1f})" for p in one.front)
    return Scatter(
        one.cost,
        metric_of(section),
        f"{metric_of(section)} against {one.cost}, {len(one.points)} rows; no other row is better and cheaper than {names}",
        costs,
        [(HEIGHT * (1 - x / 100), text) for x, text in scores.ticks],
        _labelled(dots),
        _steps([(place(p.cost), height(p.score)) for p in one.front]),
    )


def _costs(values: Sequence[float]) -> tuple[list[tuple[float, str]], Callable[[float], float]]:
    """Ticks of a scale of costs, and where a cost stands on it."""
    low, high = bounds(values)
    if high / low < LOG_FROM:
        room = 0.08 * (high - low)
        linear = scale_between(low - room, high + room)
        return [(x, cost_text(float(text))) for x, text in linear.ticks], linear.place
    ends = (low / 1.3, high * 1.3)
    scale = Scale(math.log(ends[0]), math.log(ends[1]), [])

    def place(value: float) -> float:
        return scale.place(math.log(value))

    return [(place(value), cost_text(value)) for value in log_ticks(*ends)], place


def cost_text(value: float) -> str:
    """Three digits: ``222M``, ``1.9B``, ``35.1``."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _steps(front: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """From each point of the front level to the cost of the next one, then up to it."""
    lines = []
    for (x, y), (next_x, next_y) in pairwise(front):
        lines += [(x, y, next_x, y), (next_x, y, next_x, next_y)]
    return lines


def _labelled(dots: Sequence[Dot]) -> list[Dot]:
    """Names beside measured dots and those of the front, where they cover no other name and no other such dot."""
    wanted = [dot for dot in dots if dot.row.measured or dot.best]
    taken = _Taken(_box(dot.x / 100 * USUAL_WIDTH - 5, dot.y, 10) for dot in wanted)
    named: dict[int, Dot] = {}
    for dot in sorted(wanted, key=lambda dot: not dot.row.measured):
        name = short_name(dot.row)
        label = name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…"
        x, width = dot.x / 100 * USUAL_WIDTH, LETTER * len(label)
        for end, down in _places(dot):
            left = x - 9 - width if end else x + 9
            box = _box(left, dot.y + down - 4, width)
            if left >= -30 and left + width <= USUAL_WIDTH + 10 and taken.free(box):
                taken.add(box)
                named[id(dot)] = replace(dot, label=label, end=end, text_y=dot.y + down)
                break
    return [named.get(id(dot), dot) for dot in dots]


def _places(dot: Dot) -> list[tuple[bool, float]]:
    """Where a name may stand: whether it ends at its dot, and how far below its middle. A front is kept free: it rises or falls there."""
    ends = (True, False) if dot.x > 50 else (False, True)
    level = [(end, 4.0) for end in ends]
    off = [(end, down) for down in (-7.0, 16.0) for end in ends]
    return [*off, *level] if dot.best else [*level, *off]


_Box = tuple[float, float, float, float]
"""left, top, right, bottom."""


def _box(left: float, middle: float, width: float) -> _Box:
    return left, middle - LINE / 2, left + width, middle + LINE / 2


class _Taken:
    """Boxes by the squares that they touch: a box meets those nearby alone, however many there are."""

    def __init__(self, boxes: Iterable[_Box]):
        self._at: dict[tuple[int, int], list[_Box]] = {}
        for box in boxes:
            self.add(box)

    def add(self, box: _Box) -> None:
        for square in self._squares(box):
            self._at.setdefault(square, []).append(box)

    def free(self, box: _Box) -> bool:
        """Whether a box overlaps none of them."""
        return not any(_overlap(box, other) for square in self._squares(box) for other in self._at.get(square, ()))

    @staticmethod
    def _squares(box: _Box) -> Iterator[tuple[int, int]]:
        left, top, right, bottom = (int(end // LINE) for end in box)
        return product(range(left, right + 1), range(top, bottom + 1))


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
