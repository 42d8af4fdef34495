"""``beit3-bench data get``: fetch data sets from their official places."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import mirror, output, quiet
from beit3_bench.harness.console import columns, echo
from beit3_bench.text import in_words

if TYPE_CHECKING:
    from beit3_bench.harness.data.plan import Amount, Piece


@click.command("get")
@click.option(
    "--task",
    "tasks",
    required=True,
    metavar="NAME[,NAME...]",
    shell_complete=completion.tasks,
    help="Tasks whose data is fetched, or all.",
)
@output("Folder of the data set, or of several: coco, nlvr2, ... are made in it.", former="--to", required=True)
@click.option(
    "--split",
    metavar="NAME",
    shell_complete=completion.splits,
    help="Only what this split needs; all: every split [default: the task's default].",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched.")
@click.option("--keep-archives", is_flag=True, help="Leave archives in DIR/.../downloads after they are unpacked.")
@mirror
@quiet
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def get(
    tasks: str,
    output: Path,
    split: str | None,
    dry_run: bool,
    keep_archives: bool,
    base_url: str | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fetch what the data of tasks lacks from its official places, into the tree that `beit3-bench tasks NAME` shows.

    Says first how much that is. A broken or killed transfer goes on with the same command; files are verified by size and
    checksum where a source states them, and archives are unpacked and removed. For data whose owners want to be asked it prints
    the steps, unpacks the archive that was laid into the data root, and ends with exit code 2 until it is there.
    """
    from beit3_bench.harness.data.get import get as get_pieces
    from beit3_bench.harness.data.plan import amount_of, ask_sizes, pieces_of, root_of, splits_of
    from beit3_bench.harness.progress import Reporting
    from beit3_bench.tasks.registry import get_task, task_names

    named = dict.fromkeys(filter(None, map(str.strip, tasks.split(","))))
    names = [name for name in task_names() if not get_task(name).own_data] if tasks == "all" else list(named)
    if not names:
        raise click.UsageError("--task names no task (see: beit3-bench tasks)")
    pieces: list[Piece] = []
    for task in map(get_task, names):
        root = root_of(task.name, output)
        pieces = pieces_of(task, splits_of(task, split), root, base_url, pieces)
        if not any(task.name in piece.tasks for piece in pieces):
            echo(f"{task.name}: no place of its data is known; see: beit3-bench tasks {task.name}", err=True)
    try:
        ask_sizes(pieces)
    except BenchError:
        if not dry_run:
            raise
    amount = amount_of(pieces, output, keep_archives)
    if not as_json:
        echo(plan_as_text(pieces, amount))
    if not dry_run:
        if amount.disk > amount.free:
            raise BenchError(
                f"{output}: needs about {in_words(amount.disk)} with what comes out of the archives, {in_words(amount.free)} are free; "
                "free some space, name another --output, or take one --split"
            )
        get_pieces(pieces, keep_archives, Reporting.unless(quiet))
    if as_json:
        record = {"download_bytes": amount.download, "disk_bytes": amount.disk, "free_bytes": amount.free}
        echo(json.dumps(record | {"unknown_sizes": amount.unknown, "pieces": [p.to_dict() for p in pieces]}, indent=1))
    if not dry_run:
        _end(pieces, as_json)


def _end(pieces: Sequence[Piece], as_json: bool) -> None:
    asked_for = [piece for piece in pieces if piece.state == "by hand"]
    if asked_for:
        places = ", ".join(str(piece.root / target) for piece in asked_for for target in piece.missing)
        raise BenchError(
            f"{places}: handed out by the owners only; take the steps {'in the record' if as_json else 'above'}, then give the same "
            "command again"
        )
    if not as_json:
        checks = {task: piece.root for piece in pieces for task in piece.tasks}
        for task, root in checks.items():
            echo(f"{root}: whole; check it with: beit3-bench data verify --task {task} --data-root {root}")


def plan_as_text(pieces: Sequence[Piece], amount: Amount) -> str:
    """By data root: what is there, what is fetched from where, and the steps for what has to be asked for; then the total."""
    doings = {"there": "there", "unpack": "to unpack", "get": "to fetch", "by hand": "to ask for"}
    lines = []
    for root in dict.fromkeys(piece.root for piece in pieces):
        of_root = [piece for piece in pieces if piece.root == root]
        lines.append(f"{root} ({', '.join(dict.fromkeys(task for piece in of_root for task in piece.tasks))})")
        rows = [
            (f"  {doings[p.state]}", _size(p), " ".join(p.missing or p.place.members.values()), _source(p))
            for p in of_root
        ]
        lines += columns(rows)
        for piece in of_root:
            if piece.state == "by hand":
                lines.append(f"  {' '.join(piece.missing)} is handed out by its owners only:")
                lines += [f"    {number}. {step}" for number, step in enumerate(piece.steps(), 1)]
    unknown = f" and {', '.join(amount.unknown)} of unknown size" if amount.unknown else ""
    free = f"about {in_words(amount.disk)} of disk, {in_words(amount.free)} free"
    lines.append(f"total: {in_words(amount.download)}{unknown} to fetch; {free}")
    return "\n".join(lines)


def _size(piece: Piece) -> str:
    if piece.state == "there":
        return ""
    size = in_words(piece.size) if piece.size is not None else "size unknown"
    if piece.place.listed_in and piece.place.files:
        size = f"{piece.place.files:,} images"
    return f"{size} ({in_words(piece.have)} here)" if piece.state == "get" and piece.have else size


def _source(piece: Piece) -> str:
    if piece.state == "there":
        return ""
    return f"{piece.url or 'see below'} ({piece.place.licence})"
