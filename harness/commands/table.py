"""``beit3-bench table``: the leaderboard, from result files and published numbers alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import runs_folder
from beit3_bench.harness.console import echo, sections
from beit3_bench.spelling import did_you_mean

if TYPE_CHECKING:
    from beit3_bench.harness.leaderboard.board import Table
    from beit3_bench.harness.record.results import Run

FORMATS = {"text": ".txt", "markdown": ".md", "csv": ".csv", "json": ".json", "latex": ".tex", "html": ".html"}


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


USUAL_WIDTH = 120
"""Columns of text where nobody knows how wide the terminal is."""
MEASURED = "measured"
"""The word of ``--systems`` for a table without published rows."""


@click.command("table")
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("results/runs"),
    show_default=True,
    help="Folder of run folders.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(list(FORMATS)),
    help="What is printed [default: text fitted to a terminal; markdown into a file or a pipe].",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write FILE, in the format of its suffix: .html .md .csv .json .tex .txt; without one FILE.md and FILE.csv (and FORMAT).",
)
@click.option(
    "--tasks",
    callback=_names,
    metavar="T,...",
    shell_complete=completion.tasks,
    help="Tasks to show [default: those measured, or all].",
)
@click.option(
    "--systems",
    callback=_names,
    metavar="S,...",
    help="Published systems; all; or measured: none of them [default: BEiT-3 and the best].",
)
@click.option("--setting", type=click.Choice(["fine-tuned", "zero-shot", "linear-probe"]), help="Show only these rows.")
@click.option("--cost", is_flag=True, help="What the runs cost instead: GFLOP, speed, energy (markdown or csv).")
@click.option("--paper-table", type=click.Choice(["1"]), help="The overview table of the paper, our columns added.")
@click.pass_context
def command(
    context: click.Context,
    runs: Path,
    form: str | None,
    output: Path | None,
    tasks: list[str] | None,
    systems: list[str] | None,
    setting: str | None,
    cost: bool,
    paper_table: str | None,
) -> None:
    """Print the leaderboard: measured rows beside published ones.

    Rows measured on the tiny world, with --limit, on other data than the released split or on corrupted images are labelled and kept
    apart. Exit code 2 where results are damaged; the others are in the table nevertheless.
    """
    from beit3_bench.harness.leaderboard.board import build_table
    from beit3_bench.harness.record.results import find_results
    from beit3_bench.results.published.values import load_published

    files = _files(output, form)
    printed = form or ("text" if sys.stdout.isatty() else "markdown")
    forms = dict.fromkeys([printed, *files.values()])
    published = load_published()
    root = runs_folder(context, "runs")
    results, damaged = find_results(root)
    if cost:
        from beit3_bench.harness.leaderboard.cost import cost_table

        if paper_table:
            raise BenchError("--cost and --paper-table are two tables; leave one of them out")
        _check_forms("--cost", forms, ("markdown", "csv"))
        chosen = [run for run in results if not tasks or run.result["task"] in tasks]
        texts = {kind: cost_table(chosen, _plain(kind)) for kind in forms}
    elif paper_table:
        from beit3_bench.harness.leaderboard.overview import build_overview, render_overview

        _check_forms("--paper-table", forms, ("markdown", "csv", "latex"))
        overview = build_overview(results, published)
        texts = {kind: render_overview(overview, _plain(kind)) for kind in forms}
    else:
        _check_names(tasks, systems, [run.result["task"] for run in results], [value.system for value in published])
        table = build_table(results, published, tasks, systems, setting)
        page = next((path for path, kind in files.items() if kind == "html"), Path("leaderboard.html"))
        texts = {kind: _render(table, kind, results, root, page) for kind in forms}
    for path, kind in files.items():
        _write(path, texts[kind])
    if not files or printed != "html":
        echo(*_toned(texts[printed], printed), nl=False)
    if len(damaged) == 1:
        raise BenchError(f"{next(iter(damaged.values()))} (all other runs are in the table)")
    for error in damaged.values():
        echo(f"error: {error}", err=True)
    if damaged:
        raise BenchError(f"{len(damaged)} runs cannot be read; the other {len(results)} are in the table")


def _toned(text: str, form: str) -> list[object]:
    """A table as it is printed: with headings that stand out, and with rows that were measured here."""
    if form == "text":
        from beit3_bench.harness.leaderboard.terminal import toned

        return toned(text)
    return sections(text) if form == "markdown" else [text]


def _files(output: Path | None, form: str | None) -> dict[Path, str]:
    """What is to be written, and in which format.

    Raises:
        BenchError: a suffix of no format, or of another one than ``--format``.
    """
    if output is None:
        return {}
    kinds = {suffix: kind for kind, suffix in FORMATS.items()} | {".htm": "html"}
    suffix = output.suffix.lower()
    if not suffix:
        return {
            output.with_name(output.name + FORMATS[kind]): kind
            for kind in dict.fromkeys(["markdown", "csv", form])
            if kind
        }
    if suffix not in kinds:
        raise BenchError(
            f"{output}: no table is written as {suffix}; --output takes {', '.join(FORMATS.values())}, or no suffix"
        )
    return {output: kinds[suffix]}


def _check_forms(option: str, forms: Iterable[str], known: Sequence[str]) -> None:
    for form in forms:
        if _plain(form) not in known:
            raise BenchError(f"{option} prints and writes {', '.join(known[:-1])} or {known[-1]}, not {form}")


def _plain(form: str) -> str:
    """Of tables that are not fitted to a terminal, markdown is the text."""
    return "markdown" if form == "text" else form


def _render(table: Table, form: str, runs: Sequence[Run], root: Path, page: Path) -> str:
    """page: where the HTML form will lie; its links start there."""
    if form == "html":
        from beit3_bench.harness.leaderboard.page import to_html
        from beit3_bench.harness.leaderboard.page.links import index_beside, links_of

        return to_html(table, links_of(runs, root, page.parent), index_beside(page.parent))
    if form == "latex":
        from beit3_bench.harness.leaderboard.latex import to_latex

        return to_latex(table)
    if form == "text":
        from shutil import get_terminal_size

        from beit3_bench.harness.leaderboard.terminal import to_text

        return to_text(table, get_terminal_size((USUAL_WIDTH, 24)).columns)
    from beit3_bench.harness.leaderboard.text import to_csv, to_json, to_markdown

    return {"markdown": to_markdown, "csv": to_csv, "json": to_json}[form](table)


def _check_names(tasks: list[str] | None, systems: list[str] | None, measured: list[str], published: list[str]) -> None:
    from beit3_bench.tasks.facts import published_names

    known_tasks, known_systems = {*published_names(), *measured}, {"all", MEASURED, *published}
    lower = {name.casefold() for name in known_systems}
    checks = [("task", name, sorted(known_tasks)) for name in tasks or () if name not in known_tasks]
    checks += [("system", name, sorted(known_systems)) for name in systems or () if name.casefold() not in lower]
    for what, name, known in checks:
        raise BenchError(f"no {what} {name!r} in the table; {did_you_mean(name, known)}")


def _write(path: Path, text: str) -> None:
    from beit3_bench.files import make_folder, write_atomic

    make_folder(path.parent)
    index = path.suffix.lower() in (".html", ".htm") and _index_of(path)
    write_atomic(path, text.encode())
    echo(f"wrote {path}", err=True)
    if index:
        from beit3_bench.harness.pages.index import write_index

        echo(f"wrote {write_index(path.parent)}", err=True)


def _index_of(page: Path) -> bool:
    """Whether an index of pages lies beside a page, in which it has to be named.

    Raises:
        BenchError: the page would take the index's place.
    """
    from beit3_bench.harness.leaderboard.page.links import index_beside

    index = index_beside(page.parent)
    if index == page.name:
        raise BenchError(f"{page}: is the index of the pages there, which beit3-bench show writes; choose another name")
    return bool(index)
