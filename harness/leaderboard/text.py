"""The leaderboard as markdown, csv, json and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from beit3_bench.harness.leaderboard.board import ApartRow, Cell, Section, Table, TableRow, as_dict
from beit3_bench.text import visible, visible_json

LEGEND = (
    "Bold rows were measured here. Numbers are percent (caption metrics and AP x100), rounded as in the paper; "
    "[low, high] is the 95% bootstrap interval. Rows that cannot be told apart share a rank. A star marks a mean "
    "computed from published recalls."
)
APART_LEGEND = (
    "Measured on synthetic data, on a part of a split, or on other data than the released. "
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


# ---- markdown --------------------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    """The leaderboard for reading: a summary of what was measured, a table per section, and what is kept apart."""
    parts = ["# Leaderboard"]
    summary = [(section, row) for section in table.sections for row in section.rows if row.measured]
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
    if table.apart:
        parts += ["## Not comparable with published numbers", APART_LEGEND, _apart(table.apart)]
    if notes := _notes(table):
        parts += ["## Notes on what was measured", notes]
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


def _number(cell: Cell | None) -> str:
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
                lines.append([section.title, name, _number(row.cells[name]), verdict, row.variant, row.source])
    return markdown_grid(["task", "metric", "measured", "verdict", "checkpoint", "run"], lines, right=[2])


def _section(section: Section) -> str:
    rows = []
    for row in section.rows:
        numbers = [_number(row.cells.get(name)) for name in section.metrics]
        rank = "" if row.rank is None else str(row.rank)
        rows.append(
            [rank, _label(row), *numbers, row.params, row.resolution, row_protocol(row, section.regime), row.source]
        )
    header = ["#", "system", *section.metrics, "params", "resolution", "protocol", "source"]
    return markdown_grid(header, rows, right=[0, *range(2, 3 + len(section.metrics))])


def _apart(rows: Sequence[ApartRow]) -> str:
    lines = []
    for item in rows:
        row = item.row
        chance = "" if row.chance is None else f"{row.chance:.1f}"
        counts = ", ".join(f"{count} {what}" for what, count in row.counts.items())
        others = ", ".join(f"{name} {row.cells[name].text}" for name in item.also)
        value = _number(row.cells[item.headline])
        where = f"{item.task}, {item.split}, {item.regime}"
        lines.append([item.why, where, item.headline, value, chance, others, counts, _label(row), row.source])
    header = ["data", "task", "metric", "measured", "chance", "also", "samples", "model", "source"]
    return markdown_grid(header, lines, right=[3, 4])


def _notes(table: Table) -> str:
    """What a reader of the measured numbers must know, a line per run."""
    rows = [row for section in table.sections for row in section.rows] + [item.row for item in table.apart]
    noted = {row.source: row.notes for row in rows if row.measured and row.notes}
    lines = [f"{source}: {'; '.join(notes)}" for source, notes in noted.items()]
    return "\n".join(f"- {markdown_text(line)}" for line in lines)


# ---- csv, json -------------------------------------------------------------------------------------------------------


def to_csv(table: Table) -> str:
    """One line per number, at full precision, in percent."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for section in table.sections:
        for row in section.rows:
            where = {"section": section.title, "task": section.task, "split": section.split, "regime": section.regime}
            writer.writerows(_csv_line({**where, **line}) for line in _long(row))
    for item in table.apart:
        where = {
            "section": f"not comparable: {item.why}",
            "task": item.task,
            "split": item.split,
            "regime": item.regime,
        }
        writer.writerows(_csv_line({**where, **line}) for line in _long(item.row))
    return stream.getvalue()


def csv_grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A grid of texts as csv."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([csv_text(cell) for cell in row] for row in (header, *rows))
    return stream.getvalue()


def csv_text(text: str) -> str:
    """A text that a spreadsheet shows and does not compute: a formula begins with an apostrophe; numbers stay as they are."""
    shown = visible(text)
    if shown.lstrip()[:1] in ("=", "+", "-", "@") and not _NUMBER.fullmatch(shown):
        return f"'{shown}"
    return shown


def _csv_line(line: Mapping[str, object]) -> dict[str, object]:
    return {key: csv_text(value) if isinstance(value, str) else value for key, value in line.items()}


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


# ---- LaTeX -----------------------------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(_TEX.get(character, character) for character in visible(text))


def to_latex(table: Table) -> str:
    """One booktabs table per section (needs the packages booktabs and graphicx)."""
    blocks = ["% needs \\usepackage{booktabs,graphicx}"]
    for section in table.sections:
        header = ["", "System", *section.metrics, "Params", "Resolution"]
        body = []
        for row in section.rows:
            label = tex(row_label(row))
            numbers = [_tex_number(row.cells.get(name)) for name in section.metrics]
            rank = "" if row.rank is None else str(row.rank)
            body.append(
                [rank, rf"\textbf{{{label}}}" if row.measured else label, *numbers, row.params, tex(row.resolution)]
            )
        blocks.append(tex_table(section.title, header, body, f"rl{'r' * len(section.metrics)}rr"))
    if table.apart:
        header = ["Data", "Task", "Metric", "Measured", "Chance", "Model"]
        body = [
            [
                tex(item.why),
                tex(f"{item.task}, {item.split}"),
                tex(item.headline),
                _tex_number(item.row.cells[item.headline]),
                "" if item.row.chance is None else f"{item.row.chance:.1f}",
                tex(item.row.variant),
            ]
            for item in table.apart
        ]
        blocks.append(tex_table("Not comparable with published numbers", header, body, "lllrrl"))
    return "\n\n".join(blocks) + "\n"


def _tex_number(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    text = _number(cell)
    value, bracket, interval = text.partition(" [")
    return value + (rf" {{\scriptsize[{interval}}}" if bracket else "")


def tex_table(caption: str, header: Sequence[str], body: Sequence[Sequence[str]], columns: str) -> str:
    """A table in booktabs style; header and caption are escaped here, the body is LaTeX already."""
    lines = [" & ".join(row) + r" \\" for row in body]
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{tex(caption)}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(tex(name) for name in header) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
        ]
    )
