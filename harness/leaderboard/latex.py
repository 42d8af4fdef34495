"""The leaderboard as LaTeX, in booktabs style."""

from __future__ import annotations

from collections.abc import Sequence

from beit3_bench.harness.leaderboard.board import ApartRow, Cell, Section, Table
from beit3_bench.harness.leaderboard.text import number_text, row_label, row_protocol, without_blank
from beit3_bench.text import visible

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
    blocks = ["% needs \\usepackage{booktabs,graphicx}", *map(section_latex, table.sections)]
    if table.apart:
        blocks.append(apart_latex(table.apart))
    return "\n\n".join(blocks) + "\n"


def section_latex(section: Section) -> str:
    """The table of a section."""
    header = ["", "System", *section.metrics, "Params", "Resolution", "Protocol"]
    body = []
    for row in section.rows:
        label = tex(row_label(row))
        numbers = [_tex_number(row.cells.get(name)) for name in section.metrics]
        rank = "" if row.rank is None else str(row.rank)
        system = rf"\textbf{{{label}}}" if row.measured else label
        body.append([rank, system, *numbers, row.params, tex(row.resolution), tex(row_protocol(row, section.regime))])
    if not any(row.measured and row_protocol(row, section.regime) for row in section.rows):
        header, body = header[:-1], [line[:-1] for line in body]  # those of published rows alone are long and many
    return tex_table(section.title, header, body, _columns(f"rl{'r' * len(section.metrics)}rrl", header))


def apart_latex(items: Sequence[ApartRow]) -> str:
    """The table of rows that are not comparable with published ones."""
    header = ["Data", "Task", "Metric", "Measured", "Chance", "Model", "Protocol"]
    body = [
        [
            tex(item.why),
            tex(f"{item.task}, {item.split}"),
            tex(item.headline),
            _tex_number(item.row.cells[item.headline]),
            "" if item.row.chance is None else f"{item.row.chance:.1f}",
            tex(item.row.variant),
            tex(row_protocol(item.row, item.regime)),
        ]
        for item in items
    ]
    header, body = without_blank(len(header) - 1, header, body)
    return tex_table("Not comparable with published numbers", header, body, _columns("lllrrll", header))


def _columns(columns: str, header: Sequence[str]) -> str:
    """The alignment of as many columns as the table has."""
    return columns[: len(header)]


def _tex_number(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    text = number_text(cell)
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
