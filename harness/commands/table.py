"""``beit3-bench table``: the leaderboard, from result files and published numbers alone."""

from __future__ import annotations

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

FORMATS = {"markdown": ".md", "csv": ".csv", "json": ".json", "latex": ".tex", "html": ".html"}


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    return None if value is None else [name.strip() for name in value.split(",") if name.strip()]


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
@click.option("--format", "form", type=click.Choice(list(FORMATS)), default="markdown", show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Also write FILE.md and FILE.csv (and FORMAT)."
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
@click.option("--setting", type=click.Choice(["fine-tuned", "zero-shot"]), help="Show only these rows.")
@click.option("--cost", is_flag=True, help="What the runs cost instead: GFLOP, speed, energy (markdown or csv).")
@click.option("--paper-table", type=click.Choice(["1"]), help="The overview table of the paper, our columns added.")
@click.pass_context
def command(
    context: click.Context,
    runs: Path,
    form: str,
    output: Path | None,
    tasks: list[str] | None,
    systems: list[str] | None,
    setting: str | None,
    cost: bool,
    paper_table: str | None,
) -> None:
    """Print the leaderboard: measured rows beside published ones.

    Rows measured on the tiny world, with --limit or on other data than the released split are labelled and kept apart. Exit
    code 2 where results are damaged; the others are in the table nevertheless.
    """
    from beit3_bench.harness.leaderboard.board import build_table
    from beit3_bench.harness.record.results import find_results
    from beit3_bench.results.published.values import load_published

    published = load_published()
    results, damaged = find_results(runs_folder(context, "runs"))
    if cost:
        from beit3_bench.harness.leaderboard.cost import cost_table

        if form not in ("markdown", "csv") or paper_table:
            raise BenchError("--cost prints markdown or csv, and no other table; leave the other option out")
        chosen = [run for run in results if not tasks or run.result["task"] in tasks]
        texts = {kind: cost_table(chosen, kind) for kind in dict.fromkeys(["markdown", "csv", form])}
    elif paper_table:
        from beit3_bench.harness.leaderboard.overview import build_overview, render_overview

        if form in ("json", "html"):
            raise BenchError(f"--paper-table prints markdown, csv or latex, not {form}")
        overview = build_overview(results, published)
        texts = {kind: render_overview(overview, kind) for kind in dict.fromkeys(["markdown", "csv", form])}
    else:
        _check_names(tasks, systems, [run.result["task"] for run in results], [value.system for value in published])
        table = build_table(results, published, tasks, systems, setting)
        texts = {kind: _render(table, kind) for kind in dict.fromkeys(["markdown", "csv", form] if output else [form])}
    if output is None or form != "html":
        echo(*(sections(texts[form]) if form == "markdown" else [texts[form]]), nl=False)
    if output is not None:
        _write(output, texts)
    if len(damaged) == 1:
        raise BenchError(f"{next(iter(damaged.values()))} (all other runs are in the table)")
    for error in damaged.values():
        echo(f"error: {error}", err=True)
    if damaged:
        raise BenchError(f"{len(damaged)} runs cannot be read; the other {len(results)} are in the table")


def _render(table: Table, form: str) -> str:
    if form == "html":
        from beit3_bench.harness.leaderboard.page import to_html

        return to_html(table)
    if form == "latex":
        from beit3_bench.harness.leaderboard.latex import to_latex

        return to_latex(table)
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


def _write(output: Path, texts: dict[str, str]) -> None:
    from beit3_bench.files import make_folder, write_atomic

    stem = output.with_suffix("") if output.suffix in FORMATS.values() else output
    make_folder(stem.parent)
    for form, text in texts.items():
        path = stem.with_name(stem.name + FORMATS[form])
        write_atomic(path, text.encode())
        echo(f"wrote {path}", err=True)
