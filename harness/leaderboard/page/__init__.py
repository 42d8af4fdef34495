"""The leaderboard as one self-contained HTML page: sortable, filterable, with diagrams; it needs no network.

``leaderboard.html`` is its template, made of ``parts.html`` and ``drawings.html`` and, as the pages of runs are, of the base of
`beit3_bench.harness.pages`. Tables and diagrams are complete without JavaScript; the script sorts, hides, folds and copies. A content
security policy in the page forbids every request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.harness.leaderboard.board import BEIT3, ApartRow, Section, Table, TableRow
from beit3_bench.harness.leaderboard.latex import apart_latex, section_latex
from beit3_bench.harness.leaderboard.page.drawing import (
    interval_text,
    metric_of,
    profiles_of,
    scatters_of,
    section_scale,
    strip_of,
)
from beit3_bench.harness.leaderboard.page.links import Links
from beit3_bench.harness.leaderboard.pareto import params_of
from beit3_bench.harness.leaderboard.robustness import ROBUSTNESS_LEGEND, ROBUSTNESS_TITLE
from beit3_bench.harness.leaderboard.text import APART_LEGEND, LEGEND, apart_csv, row_label, row_protocol, section_csv
from beit3_bench.harness.pages.rendering import render, summary_tag
from beit3_bench.harness.record.report import gflop_as_text
from beit3_bench.harness.record.results import SYSTEMS
from beit3_bench.text import visible_lines

if TYPE_CHECKING:
    from markupsafe import Markup

SIZES = ("tiny", "base", "large", "giant", "custom")
OTHERS = "other systems"
TITLE = "Leaderboard"
VERDICTS = (
    "Beside the published value of the same checkpoint: = reproduces it, ≈ is within noise of it, ≠ differs from it."
)


def to_html(table: Table, links: Mapping[str, Links] | None = None, index: str = "") -> str:
    """The whole page.

    Args:
        links: by the name of a run, see `links_of`.  index: address of an index of pages, "" where there is none.
    """
    measured = len([row for row in _rows_of(table) if row.measured])
    title = f"{measured} measured rows" if measured != 1 else "1 measured row"
    filters: list[Callable[..., Any]] = [
        apart_csv,
        apart_latex,
        cost_words,
        input_of,
        interval_text,
        label_of,
        lines,
        metric_of,
        notes_of,
        params_of,
        protocol_of,
        scatters_of,
        section_csv,
        section_latex,
        section_scale,
        side_of,
        size_of,
        strip_of,
        system_of,
        url_of,
        variant_of,
        verdicts_of,
    ]
    return render(
        "leaderboard.html",
        ["tools"],
        filters,
        Path(__file__).parent,
        table=table,
        heading=TITLE,
        title=title,
        legend=f"{LEGEND.replace('Bold rows', 'Marked rows')} {VERDICTS}",
        apart_legend=APART_LEGEND,
        robustness_title=ROBUSTNESS_TITLE,
        robustness_legend=ROBUSTNESS_LEGEND,
        choices=_choices(table),
        profiles=profiles_of(table),
        links=links or {},
        index=index,
        summary=summary_tag({"kind": "leaderboard", "name": TITLE, "title": title}),
    )


def _choices(table: Table) -> list[tuple[str, str, list[str]]]:
    """Name, label and values of each list to choose from; a list of one value is none."""
    shown: list[Section | ApartRow] = [*table.sections, *table.apart]
    rows = _rows_of(table)
    sizes = {size_of(row) for row in rows}
    lists = [
        ("task", "Task", list(dict.fromkeys(item.task for item in shown))),
        ("system", "System", sorted({system_of(row) for row in rows}, key=lambda name: (name.casefold(), name))),
        ("regime", "Setting", list(dict.fromkeys(item.regime for item in shown))),
        ("size", "Size", [size for size in (*SIZES, OTHERS) if size in sizes]),
        (
            "origin",
            "Origin",
            [o for o in ("measured", "published") if any(row.measured == (o == "measured") for row in rows)],
        ),
    ]
    return [one for one in lists if len(one[2]) > 1]


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


def lines(text: str) -> Markup:
    """A text of several lines, escaped; what hides in it is written out."""
    from markupsafe import escape

    return escape(visible_lines(text))


def variant_of(row: TableRow) -> str:
    """What the label says behind the name; "" where that is all."""
    return row_label(row).removeprefix(row.name).removeprefix(", ")


def protocol_of(row: TableRow, regime: str) -> str:
    return row_protocol(row, regime)


def notes_of(row: TableRow) -> str:
    return "; ".join(row.notes)


def url_of(row: TableRow) -> str:
    """The address of a source that is one, else ""."""
    return row.url if row.url.startswith("https://") and " " not in row.url else ""


def side_of(resolution: str) -> str:
    """``"480x480"`` -> ``"480"``, the number to sort by; "" for a text of another form."""
    first = resolution.partition("x")[0]
    return first if first.isascii() and first.isdigit() else ""


def input_of(resolution: str) -> str:
    """``"480x480"`` -> ``"480"``; any other text as it is."""
    side = side_of(resolution)
    return side if resolution == f"{side}x{side}" else resolution


def verdicts_of(row: TableRow, names: Sequence[str]) -> list[str]:
    """What is said of some metrics."""
    return [f"{name} {row.verdicts[name].text}" for name in names if name in row.verdicts]


def cost_words(row: TableRow) -> str:
    """What a row cost, with the device that it was measured on; "" where nothing is known."""
    if row.cost is None:
        return ""
    parts = [f"{gflop_as_text(value)} GFLOP per {kind}" for kind, value in row.cost.gflop.items()]
    if row.cost.speed:
        parts.append(
            f"{row.cost.speed:,.1f} samples per second" + (f" on {row.cost.device}" if row.cost.device else "")
        )
    return "; ".join(parts)
