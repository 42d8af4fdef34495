"""``beit3-bench data``: write the tiny world, verify a data set; `data_get` fetches one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.data_get import get
from beit3_bench.harness.commands.options import data_root, output, quiet, seed, settle
from beit3_bench.harness.console import HelpGroup, echo, headed
from beit3_bench.text import visible

if TYPE_CHECKING:
    from beit3_bench.harness.evidence.findings import Verification


@click.group("data", cls=HelpGroup)
def command() -> None:
    """Data sets."""


command.add_command(get)


@command.command("tiny")
@output("New or empty folder.", former="--out", required=True)
@seed("Same seed, same bytes.")
@click.option(
    "--size",
    type=click.Choice(["tiny", "mini"]),
    default="tiny",
    show_default=True,
    help="mini: a second, for trying out.",
)
def tiny(output: Path, seed: int, size: str) -> None:
    """Write a small world of coloured shapes that is the ground truth of every task, in the original layouts."""
    from beit3_bench.harness.progress import Reporting
    from beit3_bench.tasks.tinyworld import write_tiny_world

    with Reporting().meter("tiny world", "step", leave=False) as meter:

        def progress(folder: str, done: int, total: int) -> None:
            meter.total = total
            meter.advance(done - meter.done, folder=folder)

        manifest = write_tiny_world(output, seed=seed, progress=progress, size=size)
    echo(f"{output}: {manifest['files']:,} files, {manifest['bytes'] / 2**20:.1f} MiB", err=True)
    echo(output)


@command.command("verify")
@click.option(
    "--task", required=True, metavar="NAME", shell_complete=completion.tasks, help="Task whose data is checked."
)
@data_root("Folder of the data")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="FILE.jsonl", help="Data of your own, for a task that reads it."
)
@click.option(
    "--split",
    metavar="NAME",
    shell_complete=completion.splits,
    help="[default: the task's default split, and all others that are there]",
)
@click.option("--all", "all_images", is_flag=True, help="Decode every image.")
@click.option(
    "--sample",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    metavar="N",
    help="Images per split to decode without --all.",
)
@quiet
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def verify(
    context: click.Context,
    task: str,
    data_root: Path | None,
    data: Path | None,
    split: str | None,
    all_images: bool,
    sample: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check files, checksums, counts, splits, captions and images of a data set against the released one.

    Annotation files without an official checksum are pinned when they are first seen, and compared from then on.
    Exit code 2 if anything is found; every finding is one line with its mend.
    """
    import json

    from beit3_bench.harness.evidence.verify import verify as check
    from beit3_bench.harness.progress import Reporting
    from beit3_bench.tasks.registry import get_task

    settings = {"data_root": data_root}
    settle(context, get_task(task).name, settings)
    root = settings["data_root"]
    assert root is not None
    reporting = Reporting.unless(quiet)
    with reporting.meter(f"{task}: decoding", "image", leave=False) as meter:
        verification = check(get_task(task), root, split, all_images, sample, meter.reach)
    if as_json:
        echo(json.dumps(verification.to_dict(), indent=1))
    else:
        echo(*headed(verification_as_text(verification), "good" if verification.whole else "error"))
    if not verification.whole:
        raise BenchError(f"{root}: {len(verification.findings)} findings for task {task}; see the lines above")


def verification_as_text(verification: Verification) -> str:
    """What was checked, then every finding on a line of its own."""
    world = ", tiny world" if verification.world == "tiny" else ""
    lines = [f"{verification.task} · {verification.data_root}{world}"]
    lines += [f"  {file.path}  sha256 {file.sha256[:12]}  {file.checksum}" for file in verification.files]
    for split in verification.splits:
        if not split.there:
            lines.append(f"  {split.name}: not there")
            continue
        counts = {
            "samples": split.samples,
            "images": split.images,
            "texts": split.texts,
            "references": split.references,
        }
        counted = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
        lines.append(f"  {split.name}: {counted}; {split.decoded:,} images decoded")
    lines += [f"  note: {note}" for note in verification.notes]
    lines += [f"finding ({finding.check}): {finding.line}" for finding in verification.findings]
    lines += [f"to get: {line}" for line in verification.to_get]
    lines += [] if verification.findings else ["whole: nothing found"]
    return "\n".join(map(visible, lines))
