"""The leaderboard as markdown, csv and json; `terminal` has it as plain text."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from beit3_bench.harness.leaderboard.board import ApartRow, Cell, Section, Table, TableRow, as_dict
from beit3_bench.harness.leaderboard.robustness import ROBUSTNESS_LEGEND, ROBUSTNESS_TITLE
from beit3_bench.text import visible, visible_json

LEGEND = (
    "Bold rows were measured here. Numbers are percent (caption metrics and AP x100), rounded as in the paper; "
    "[low, high] is the 95% bootstrap interval. Rows that cannot be told apart share a rank. A star marks a mean "
    "computed from published recalls."
)
APART_LEGEND = (
    "Measured on synthetic data, on a part of a split, on other data than the released, or on corrupted images. "
    "These numbers say nothing about the published ones."
)

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
CSV_COLUMNS = (
    "section",
    "task",
    "split",
    "regime",
    "rank",
    "measured",
    "system",
    "variant",
    "params",
    "resolution",
    "metric",
    "value",
    "low",
    "high",
    "verdict",
    "reference",
    "protocol",
    "source",
    "url",
    "source_kind",
    "published_id",
)
"""Columns of the csv form."""


# ---- markdown --------------------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """The leaderboard for reading: a summary of what was measured, a table per section, and what is kept apart."""
    parts = ["# Leaderboard"]
    summary = [(section, row) for section in table.sections for row in section.rows if row.verdicts]
    if summary or table.sections:
        parts.append(LEGEND)
    if summary:
        parts += ["## Measured against published", _summary(summary)]
    for section in table.sections:
        parts += [f"## {markdown_text(section.title)}", _section(section)]
        if section.hidden:
            parts.append(
                f"{section.hidden} more published rows: `beit3-bench table --tasks {section.task} --systems all`"
            )
    if apart := table.listed_apart:
        parts += ["## Not comparable with published numbers", APART_LEGEND, _apart(apart)]
    if table.robustness:
        parts += [f"## {ROBUSTNESS_TITLE}", ROBUSTNESS_LEGEND]
    for one in table.robustness:
        grid = markdown_grid(one.header, one.lines(), right=range(1, len(one.header)))
        told = "\n".join(f"- {markdown_text(line)}" for line in one.told)
        parts += [f"### {markdown_text(one.title)}", grid, told]
    if notes := notes_lines(table):
        parts += ["## Notes on what was measured", "\n".join(f"- {markdown_text(line)}" for line in notes)]
    if table.pending:
        parts += ["## Without a score of their own", "\n".join(f"- {markdown_text(line)}" for line in table.pending)]
    if len(parts) == 1:
        parts.append("Nothing to show: no result and no published row fits.")
    return "\n\n".join(parts) + "\n"


def markdown_text(text: str) -> str:
    """Text without HTML, links or pictures of its own when it is rendered; control characters are written out."""
    return re.sub(r"\](?=[\[(])", r"]\\", visible(text)).replace("<", "&lt;")


def markdown_grid(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A markdown table whose columns also line up as plain text."""
    lines = [[markdown_text(cell).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    to_right = set(right)

    def line(cells: Sequence[str]) -> str:
        padded = (
            c.rjust(w) if i in to_right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if i in to_right else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([line(lines[0]), rule, *(line(row) for row in lines[1:])])


def number_text(cell: Cell | None) -> str:
    """A number, and its interval where there is one."""
    if cell is None:
        return ""
    if cell.low is None or cell.high is None:
        return cell.text
    digits = len(cell.text.partition(".")[2])
    return f"{cell.text} [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"


def row_label(row: TableRow) -> str:
    """System and variant, the latter where it says something."""
    return f"{row.name}, {row.variant}" if row.variant not in ("", row.name, "as listed") else row.name


def _label(row: TableRow) -> str:
    return f"**{row_label(row)}**" if row.measured else row_label(row)


def row_protocol(row: TableRow, regime: str) -> str:
    """The protocol of a row, less what the heading of its section says already."""
    return "" if row.protocol == regime else row.protocol.removeprefix(f"{regime}; ")


def _summary(rows: Sequence[tuple[Section, TableRow]]) -> str:
    lines = []
    for section, row in rows:
        for name in dict.fromkeys([section.metrics[0], *section.order_by]):
            if name in row.cells:
                verdict = row.verdicts[name].text if name in row.verdicts else ""
                lines.append([section.title, name, number_text(row.cells[name]), verdict, row.variant, row.source])
    return markdown_grid(["task", "metric", "measured", "verdict", "checkpoint", "run"], lines, right=[2])


def _section(section: Section) -> str:
    rows = []
    for row in section.rows:
        numbers = [number_text(row.cells.get(name)) for name in section.metrics]
        rank = "" if row.rank is None else str(row.rank)
        rows.append(
            [rank, _label(row), *numbers, row.params, row.resolution, row_protocol(row, section.regime), row.source]
        )
    header = ["#", "system", *section.metrics, "params", "resolution", "protocol", "source"]
    return markdown_grid(*without_blank(len(header) - 2, header, rows), right=[0, *range(2, 3 + len(section.metrics))])


def without_blank(at: int, header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """A grid less its column ``at`` where every row leaves it blank."""
    if any(row[at] for row in rows):
        return header, rows
    return [*header[:at], *header[at + 1 :]], [[*row[:at], *row[at + 1 :]] for row in rows]


def _apart(rows: Sequence[ApartRow]) -> str:
    lines = []
    for item in rows:
        row = item.row
        chance = "" if row.chance is None else f"{row.chance:.1f}"
        counts = ", ".join(f"{count} {what}" for what, count in row.counts.items())
        others = ", ".join(f"{name} {row.cells[name].text}" for name in item.also)
        value = number_text(row.cells[item.headline])
        where, protocol = f"{item.task}, {item.split}, {item.regime}", row_protocol(row, item.regime)
        lines.append([item.why, where, item.headline, value, chance, others, counts, _label(row), protocol, row.source])
    header = ["data", "task", "metric", "measured", "chance", "also", "samples", "model", "protocol", "source"]
    return markdown_grid(*without_blank(len(header) - 2, header, lines), right=[3, 4])


def notes_lines(table: Table) -> list[str]:
    """What a reader of the measured numbers must know, a line per run."""
    rows = [row for section in table.sections for row in section.rows] + [item.row for item in table.listed_apart]
    noted = {row.source: row.notes for row in rows if row.measured and row.notes}
    return [f"{source}: {'; '.join(notes)}" for source, notes in noted.items()]


# ---- csv, json -------------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """One line per number, at full precision, in percent."""
    return _csv_lines(_long_lines(table))


def section_csv(section: Section) -> str:
    """The lines of a section, as in `to_csv`, of the metrics that it has a column for."""
    return _csv_lines(line for line in _long_lines(Table([section], [], [])) if line["metric"] in section.metrics)


def apart_csv(items: list[ApartRow]) -> str:
    """The lines of rows that are not comparable with published ones, as in `to_csv`, of the metrics that are shown."""
    tables = ((Table([], [item], []), {item.headline, *item.also}) for item in items)
    return _csv_lines(line for table, shown in tables for line in _long_lines(table) if line["metric"] in shown)


def _csv_lines(lines: Iterable[dict[str, object]]) -> str:
    return csv_grid(
        CSV_COLUMNS, (["" if line[name] is None else str(line[name]) for name in CSV_COLUMNS] for line in lines)
    )


def _long_lines(table: Table) -> Iterator[dict[str, object]]:
    tables: list[tuple[str, Section | ApartRow, list[TableRow]]] = [(s.title, s, s.rows) for s in table.sections]
    tables += [(f"not comparable: {item.why}", item, [item.row]) for item in table.apart]
    for title, where, rows in tables:
        for row in rows:
            for line in _long(row):
                yield {"section": title, "task": where.task, "split": where.split, "regime": where.regime, **line}


def csv_grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A grid of texts as csv."""
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([csv_text(cell) for cell in row] for row in (header, *rows))
    return file.getvalue()


def csv_text(text: str) -> str:
    """A text that a spreadsheet shows and does not compute: a formula begins with an apostrophe; numbers stay as they are."""
    shown = visible(text)
    if shown.lstrip()[:1] in ("=", "+", "-", "@") and not _NUMBER.fullmatch(shown):
        return f"'{shown}"
    return shown


def _long(row: TableRow) -> Iterable[dict[str, object]]:
    for metric, cell in row.cells.items():
        verdict = row.verdicts.get(metric)
        reference = verdict.reference.printed if verdict and verdict.reference else ""
        yield {
            "rank": row.rank,
            "measured": int(row.measured),
            "system": row.name,
            "variant": row.variant,
            "params": row.params,
            "resolution": row.resolution,
            "metric": metric,
            "value": cell.text if cell.published_id else repr(cell.value),
            "low": cell.low,
            "high": cell.high,
            "verdict": verdict.kind if verdict else "",
            "reference": reference,
            "protocol": row.protocol,
            "source": row.source,
            "url": row.url,
            "source_kind": row.source_kind,
            "published_id": cell.published_id,
        }


def to_json(table: Table) -> str:
    """Everything the other forms are made of."""
    return visible_json(json.dumps(as_dict(table), indent=1, ensure_ascii=False)) + "\n"
