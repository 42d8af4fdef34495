"""The leaderboard for a terminal: columns fitted to its width, what was measured marked and explained below its row."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from beit3_bench.harness.console import Toned
from beit3_bench.harness.leaderboard.board import ApartRow, Section, Table, TableRow
from beit3_bench.harness.leaderboard.robustness import ROBUSTNESS_LEGEND, ROBUSTNESS_TITLE, Robustness
from beit3_bench.harness.leaderboard.text import APART_LEGEND, LEGEND, notes_lines, number_text, row_label, row_protocol
from beit3_bench.text import visible

LEAST = 40
"""Columns of the narrowest terminal that is written for."""
SYSTEM = (22, 52)
"""Least and greatest width of the names of systems."""
NARROWEST = 8
"""Columns that names of systems have at least, broken into lines."""
GAP = 2
MARK = ">"
"""Before a row that was measured here."""


@dataclass
class _Line:
    """cells: by column.  below: what is told of the row in whole sentences."""

    cells: list[str]
    measured: bool
    below: list[str] = field(default_factory=list)


def to_text(table: Table, width: int) -> str:
    """The leaderboard in lines of ``width`` columns at most, `LEAST` at least.

    Columns that have no room are left out, the last first, and named below; nothing is cut short.
    """
    width = max(width, LEAST)
    parts: list[str] = []
    if table.sections:
        parts.append(_prose(LEGEND.replace("Bold rows", f"Rows marked {MARK}"), width))
    parts += [_section(section, width) for section in table.sections]
    if apart := table.listed_apart:
        parts.append(f"{_title('Not comparable with published numbers', width)}\n{_prose(APART_LEGEND, width)}")
        parts.append(_apart(apart, width))
    if table.robustness:
        parts.append(f"{_title(ROBUSTNESS_TITLE, width)}\n{_prose(ROBUSTNESS_LEGEND, width)}")
    parts += [_robustness(one, width) for one in table.robustness]
    for title, lines in (
        ("Notes on what was measured", notes_lines(table)),
        ("Without a score of their own", table.pending),
    ):
        if lines:
            parts.append("\n".join([_title(title, width), *(_prose(f"- {line}", width, "  ") for line in lines)]))
    return "\n\n".join(parts or ["Nothing to show: no result and no published row fits."]) + "\n"


def toned(text: str) -> list[object]:
    """The parts of such a text (see `console.echo`): titles and measured rows stand out."""
    lines = text.splitlines(keepends=True)
    under = [*lines[1:], ""]
    return [
        Toned(line, "heading") if line.startswith(MARK) or below.startswith("---") else line
        for line, below in zip(lines, under, strict=True)
    ]


def _section(section: Section, width: int) -> str:
    ordering = [name for name in section.order_by if name in section.metrics]
    metrics = [*ordering, *(name for name in section.metrics if name not in ordering)]
    lines = []
    for row in section.rows:
        numbers = [row.cells[name].text if name in row.cells else "" for name in metrics]
        rank = "" if row.rank is None else str(row.rank)
        cells = [rank, row_label(row), *numbers, row.params, row.resolution]
        lines.append(_Line(cells, row.measured, _measured(row, ordering, row_protocol(row, section.regime))))
    header = ["#", "system", *metrics, "params", "input"]
    text = _grid(header, lines, width, least=2 + len(ordering))
    more = f"{section.hidden} more published rows: beit3-bench table --tasks {section.task} --systems all"
    hidden = ["", _prose(more, width)] if section.hidden else []
    return "\n".join([_title(section.title, width), text, *hidden])


def _measured(row: TableRow, names: Sequence[str], protocol: str) -> list[str]:
    """What is told of a measured row: its numbers with intervals and verdicts, where it comes from, how it was asked."""
    if not row.measured:
        return []
    told = []
    for name in names:
        if name in row.cells:
            verdict = row.verdicts[name].text if name in row.verdicts else ""
            told.append(f"{name} {number_text(row.cells[name])}" + (f", {verdict}" if verdict else ""))
    return ["; ".join([*told, *([protocol] if protocol else []), row.source])]


def _apart(items: Sequence[ApartRow], width: int) -> str:
    lines = []
    for item in items:
        row = item.row
        chance = "" if row.chance is None else f"{row.chance:.1f}"
        counts = [f"{count:,} {what}" for what, count in row.counts.items()]
        others = [f"{name} {row.cells[name].text}" for name in item.also]
        protocol = row_protocol(row, item.regime)
        below = [row.source, item.why, row_label(row), *([protocol] if protocol else []), *counts, *others]
        where = f"{item.task}, {item.split}, {item.regime}"
        cells = ["", where, item.headline, row.cells[item.headline].text, chance, _interval(row, item.headline)]
        lines.append(_Line(cells, False, ["; ".join(below)]))
    return _grid(["", "task", "metric", "measured", "chance", "95% interval"], lines, width, least=3, left=(2, 5))


def _robustness(one: Robustness, width: int) -> str:
    body = [_Line(["", *line], False) for line in one.lines()]
    grid = _grid(["", *one.header], body, width, least=3 + len(one.severities))
    return "\n".join([_title(one.title, width), grid, *(_prose(f"- {line}", width, "  ") for line in one.told)])


def _interval(row: TableRow, name: str) -> str:
    return number_text(row.cells[name]).partition(" ")[2]


# ---- lines of a width ------------------------------------------------------------------------------------------------


def _grid(header: list[str], lines: Sequence[_Line], width: int, least: int, left: Sequence[int] = ()) -> str:
    """Columns under their names, those of numbers flush right; column 1 is wrapped, and the last ones give way to it.

    least: how many columns are there on a narrow terminal; three where they leave column 1 no room.
    left: columns of words behind the first two.
    """
    grid = [header, *(line.cells for line in lines)]
    grid = [[visible(cell) for cell in row] for row in grid]
    kept = [at for at in range(len(header)) if at == 1 or any(row[at] for row in grid[1:])]
    widths = {at: max(columns_of(row[at]) for row in grid) for at in kept}
    wanted = min(max(widths[1], SYSTEM[0]), SYSTEM[1])
    dropped: list[int] = []

    def room() -> int:
        return width - 2 - sum(widths[at] + GAP for at in kept if at != 1)

    while room() < min(wanted, SYSTEM[0] + 12) and len(kept) > (least if room() >= NARROWEST else 3):
        dropped.insert(0, kept.pop())
    widths[1] = max(min(wanted, room()), NARROWEST)
    text = []
    for number, row in enumerate(grid):
        line = lines[number - 1] if number else None
        names = wrapped(row[1], widths[1])
        mark = MARK if line and line.measured else " "
        for part, name in enumerate(names):
            cells = [
                _padded(name if at == 1 else row[at] if part == 0 else "", widths[at], at == 1 or at in left)
                for at in kept
            ]
            text.append(f"{mark if part == 0 else ' '} {(' ' * GAP).join(cells)}".rstrip())
        indent = " " * (4 + (widths[0] if 0 in kept else 0))
        for sentence in line.below if line else ():
            text.append(_prose(sentence, width, indent, indent))
    if dropped:
        without = ", ".join(header[at] for at in dropped)
        text += ["", _prose(f"No room at {width} columns for {without}; --format markdown has all.", width)]
    return "\n".join(text)


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: East Asian letters take two, those that join the one before take none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines of a width in columns, broken at spaces and, where there are none, behind ``_``, ``-``, ``/`` or anywhere."""
    lines = [""]
    for word in _pieces(text):
        while columns_of(lines[-1] + word.rstrip()) > width:
            if lines[-1]:
                lines.append("")
                continue
            fitting = next(n for n in range(len(word), 0, -1) if columns_of(word[:n]) <= width or n == 1)
            lines[-1], word = word[:fitting], word[fitting:]
            lines.append("")
        lines[-1] += word
    return [line.rstrip() for line in lines if line.strip()] or [""]


def _pieces(text: str) -> list[str]:
    pieces = [""]
    for letter in text:
        pieces[-1] += letter
        if letter in " _-/":
            pieces.append("")
    return pieces


def _padded(text: str, width: int, to_left: bool) -> str:
    blank = " " * (width - columns_of(text))
    return text + blank if to_left else blank + text


def _prose(text: str, width: int, indent: str = "", first: str = "") -> str:
    lines = textwrap.wrap(
        visible(text),
        width,
        initial_indent=first,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return "\n".join(lines)


def _title(text: str, width: int) -> str:
    title = _prose(text, width)
    return f"{title}\n{'-' * min(width, max(map(columns_of, title.splitlines())))}"
