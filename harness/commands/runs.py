"""``beit3-bench runs``: list run folders, or delete some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.options import runs_folder
from beit3_bench.harness.console import columns, echo, headed
from beit3_bench.text import visible

if TYPE_CHECKING:
    from beit3_bench.harness.record.runs import RunFolder

_ROOT = click.option(
    "--runs",
    "root",
    type=click.Path(path_type=Path),
    default=Path("results/runs"),
    show_default=True,
    metavar="DIR",
    help="Folder that holds the runs.",
)


@click.group("runs", invoke_without_command=True)
@_ROOT
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, root: Path, as_json: bool) -> None:
    """List the run folders, finished or not; `runs rm` deletes some."""
    root = context.obj = runs_folder(context, "root")
    if context.invoked_subcommand is not None:
        return
    import json

    from beit3_bench.harness.record.runs import list_runs

    runs = list_runs(root)
    if as_json:
        echo(json.dumps([run.to_dict() for run in runs], indent=1))
    elif runs:
        echo(*headed(_table(runs)))
    else:
        echo(f"no runs in {visible(str(root))}", err=True)


@command.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(root: Path, names: tuple[str, ...], yes: bool) -> None:
    """Delete runs, by folder or by the name that `beit3-bench runs` lists.

    Only what a run writes is deleted; a folder with other files in it stays. Runs that a process is writing to are
    refused, and then none is deleted.
    """
    import sys

    from beit3_bench.harness.record.folder import is_running
    from beit3_bench.harness.record.runs import find_run, remove_run

    folders = list(dict.fromkeys(find_run(name, root) for name in names))
    for folder in folders:
        if is_running(folder):
            raise BenchError(f"{folder}: a process is writing to this run; stop it first (nothing was deleted)")
    if not yes:
        if not sys.stdin.isatty():
            raise BenchError(f"deleting {len(folders)} runs needs a yes; add --yes")
        click.confirm(visible(f"Delete {', '.join(map(str, folders))}?"), abort=True, err=True)
    for folder in folders:
        strangers = remove_run(folder)
        kept = f"; the folder stays, it holds {', '.join(strangers[:3])}" if strangers else ""
        echo(f"deleted {folder}{kept}")


def _table(runs: list[RunFolder]) -> str:
    from beit3_bench.harness.record.released import part_of_split
    from beit3_bench.harness.scoring import shown

    lines = [("run", "task", "split", "status", "headline", "rows", "MiB", "date")]
    for run in runs:
        head = run.headline
        value = f"{head['metric']} {shown(head['value'], head['unit'], head['decimals'])}" if head else ""
        marks = [part] if (part := part_of_split(run.subset)) else []
        marks += ["tiny world"] if run.world == "tiny" else []
        marks += [f"corrupted {run.corrupt}"] if run.corrupt else []
        marks += [run.other_data] if run.other_data else []
        lines.append(
            (
                run.name,
                run.task,
                run.split,
                run.status,
                value + (f" ({', '.join(marks)})" if marks else ""),
                f"{run.rows:,}" if run.rows else "",
                f"{run.bytes / 2**20:.1f}",
                run.time[:16].replace("T", " "),
            )
        )
    text = columns(lines)
    text += [f"{visible(run.name)}: {visible(run.problem)}" for run in runs if run.problem]
    return "\n".join(text)
