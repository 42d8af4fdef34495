"""The leaderboard as one self-contained HTML page: sortable, filterable, with charts; it needs no network.

``leaderboard.html`` is its template, made of ``parts.html``; style and script lie beside it and are put into the page. Tables and
charts are complete without JavaScript; the script only sorts and hides rows. A content security policy in the page forbids every
request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.harness.leaderboard.board import BEIT3, ApartRow, Cell, Section, Table, TableRow
from beit3_bench.harness.leaderboard.text import APART_LEGEND, LEGEND, row_label, row_protocol
from beit3_bench.harness.pages.rendering import environment
from beit3_bench.harness.record.results import SYSTEMS

SIZES = ("tiny", "base", "large", "giant", "custom")
OTHERS = "other systems"
WHISKER = 60.0
"""Width of the scale on which a whisker beside a number is drawn."""
STEP, LEFT, WIDTH = 18, 350.0, 490.0
"""Of a chart: height of a row, where its scale begins, and how wide that is."""
MOST_TICKS = 6
LONGEST_LABEL = 52


def to_html(table: Table) -> str:
    """The whole page."""
    from markupsafe import Markup

    folder = Path(__file__).parent
    style, script = ((folder / f"leaderboard.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    shown: list[Callable[..., Any]] = [
        chart_of,
        has_protocol,
        interval_text,
        label_of,
        notes_of,
        protocol_of,
        ranges_of,
        size_of,
        system_of,
        url_of,
    ]
    page = environment([folder], [*shown, verdicts_of, whisker_of]).get_template("leaderboard.html")
    return page.render(
        table=table,
        legend=LEGEND.replace("Bold rows", "Marked rows"),
        apart_legend=APART_LEGEND,
        filters=_filters(table),
        style=Markup(style),
        script=Markup(script),
    )


def _filters(table: Table) -> list[tuple[str, str, list[str]]]:
    """Name, label and values of each list to choose from."""
    shown: list[Section | ApartRow] = [*table.sections, *table.apart]
    return [
        ("task", "Task", list(dict.fromkeys(item.task for item in shown))),
        ("system", "System", sorted({system_of(row) for row in _rows_of(table)}, key=str.casefold)),
        ("regime", "Setting", list(dict.fromkeys(item.regime for item in shown))),
        ("size", "Size", [*SIZES, OTHERS]),
        ("origin", "Origin", ["measured", "published"]),
    ]


def _rows_of(table: Table) -> list[TableRow]:
    return [row for section in table.sections for row in section.rows] + [item.row for item in table.apart]


# ---- filters of the template -----------------------------------------------------------------------------------------


def size_of(row: TableRow) -> str:
    """Preset of a BEiT-3 row, measured or published; ``other systems`` for the rest."""
    if not row.name.startswith(BEIT3):
        return OTHERS
    words = f"{row.name} {row.variant}".replace("_", " ").split()
    return next((size for size in SIZES if size in words), "custom")


def system_of(row: TableRow) -> str:
    """The system of a published row; the family of a measured one, as the published tables write it."""
    if not row.measured:
        return row.name
    return next((name for name in SYSTEMS.values() if row.name.startswith(f"{name} ")), row.name.partition(" ")[0])


def label_of(row: TableRow) -> str:
    return row_label(row)


def protocol_of(row: TableRow, regime: str) -> str:
    return row_protocol(row, regime)


def has_protocol(rows: Section | Sequence[ApartRow]) -> bool:
    """Whether a table needs a column for it."""
    items = (
        [(row, rows.regime) for row in rows.rows] if isinstance(rows, Section) else [(i.row, i.regime) for i in rows]
    )
    return any(row_protocol(row, regime) for row, regime in items)


def notes_of(row: TableRow) -> str:
    return "; ".join(row.notes)


def url_of(row: TableRow) -> str:
    """The address of a source that is one, else ""."""
    return row.url if row.url.startswith("https://") and " " not in row.url else ""


def verdicts_of(row: TableRow, section: Section) -> list[str]:
    """What is said of the metrics that order the section."""
    return [f"{name}: {row.verdicts[name].text}" for name in section.order_by if name in row.verdicts]


def interval_text(cell: Cell) -> str:
    """``[low, high]`` at the rounding of the number; "" without an interval."""
    if cell.low is None or cell.high is None:
        return ""
    digits = len(cell.text.partition(".")[2])
    return f"[{cell.low:.{digits}f}, {cell.high:.{digits}f}]"


def ranges_of(section: Section) -> dict[str, tuple[float, float]]:
    """Smallest and largest number of each column, intervals included."""
    return {name: _range(row.cells[name] for row in section.rows if name in row.cells) for name in section.metrics}


def whisker_of(cell: Cell, ends: tuple[float, float]) -> tuple[float, float, float]:
    """Low, value and high of a number with an interval on the scale of its column, 0 to `WHISKER`."""
    low, high = (cell.value if end is None else end for end in (cell.low, cell.high))
    return _scaled(low, ends, WHISKER), _scaled(cell.value, ends, WHISKER), _scaled(high, ends, WHISKER)


@dataclass(frozen=True)
class Dot:
    """A row of a chart.  x, low, high: the score and its interval, from the left of the drawing.  y: of its middle."""

    row: TableRow
    label: str
    y: int
    x: float
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """Measured against published: a dot per row on the scale of the ordering metric, with whiskers for intervals.

    ticks: place and text of round values.  bottom: where the rows end.  left: where the scale begins.
    """

    caption: str
    ticks: list[tuple[float, str]]
    dots: list[Dot]
    bottom: int
    left: float = LEFT


def chart_of(section: Section) -> Chart | None:
    """None for a section in which no row has a score."""
    scores = [(row, row.score) for row in section.rows if row.score is not None]
    if not scores:
        return None
    low = min(score - row.half_width for row, score in scores)
    high = max(score + row.half_width for row, score in scores)
    pad = max(0.05 * (high - low), 0.5)
    ends = (low - pad, high + pad)
    what = " and ".join(section.order_by)
    return Chart(
        caption=f"mean of {what}" if len(section.order_by) > 1 else what,
        ticks=[(LEFT + _scaled(value, ends, WIDTH), f"{value:g}") for value in _round_values(ends)],
        dots=list(_dots(scores, ends)),
        bottom=STEP * len(scores) + 8,
    )


def _dots(scores: Iterable[tuple[TableRow, float]], ends: tuple[float, float]) -> Iterator[Dot]:
    for number, (row, score) in enumerate(scores):
        label = row_label(row)
        label = label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"
        x, low, high = (LEFT + _scaled(score + d, ends, WIDTH) for d in (0.0, -row.half_width, row.half_width))
        yield Dot(row, label, STEP * number + 12, x, low, high)


def _round_values(ends: tuple[float, float]) -> list[float]:
    """At most `MOST_TICKS` multiples of 1, 2 or 5 times a power of ten between two values."""
    span = ends[1] - ends[0]
    power = 10.0 ** math.floor(math.log10(span / MOST_TICKS))
    step = next(size * power for size in (1, 2, 5, 10) if span / (size * power) <= MOST_TICKS)
    first, last = math.ceil(ends[0] / step), math.floor(ends[1] / step)
    return [round(number * step, 9) for number in range(first, last + 1)][:MOST_TICKS]


def _scaled(value: float, ends: tuple[float, float], width: float) -> float:
    low, high = ends
    return width / 2 if high <= low else width * (value - low) / (high - low)


def _range(cells: Iterable[Cell]) -> tuple[float, float]:
    ends = [x for cell in cells for x in (cell.value, cell.low, cell.high) if x is not None]
    return (min(ends), max(ends)) if ends else (0.0, 0.0)
