"""``beit3-bench download``: fetch released weights, verified and resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import mirror, output, quiet
from beit3_bench.harness.console import echo

if TYPE_CHECKING:
    from beit3_bench.backbones.released import ReleasedFile


@click.command("download")
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=completion.released)
@click.option(
    "--task",
    "tasks",
    metavar="NAME[,NAME...]",
    shell_complete=completion.tasks,
    help="The released file of these tasks, and its tokenizer; or all.",
)
@click.option(
    "--preset",
    metavar="NAME",
    shell_complete=completion.presets,
    help="With --task: of this size [default: the family's first, base].",
)
@click.option("--family", metavar="NAME", help="With --task: of this family [default: beit3].")
@output("Folder [default: .].", former="--to", default=Path("."))
@mirror
@quiet
@click.option("--sha256", metavar="HEX", help="Expected hash, where you know it (one NAME only).")
def command(
    names: tuple[str, ...],
    tasks: str | None,
    preset: str | None,
    family: str | None,
    output: Path,
    base_url: str | None,
    quiet: bool,
    sha256: str | None,
) -> None:
    """Download released files by name (see: beit3-bench models), or those of a task.

    A broken transfer continues where it stopped. The sha256 is pinned at the first download on this machine, and every
    later download or run is compared with it.

    \b
    beit3-bench download --task vqav2 --output weights
    beit3-bench download beit3_large_patch16_480_vqa beit3.spm --output weights
    """
    from beit3_bench.backbones.pins import pin_or_check, read_pins
    from beit3_bench.backbones.released import get_released
    from beit3_bench.download import download
    from beit3_bench.harness.progress import Reporting

    if not names and tasks is None:
        raise click.UsageError("give a NAME (see: beit3-bench models) or --task")
    if tasks is None and (preset or family):
        raise click.UsageError("--preset and --family go with --task")
    if sha256 is not None and (len(names) != 1 or tasks is not None):
        raise click.UsageError("--sha256 goes with one NAME")
    weights = [get_released(name) for name in names]
    weights += [weight for task in _split(tasks) for weight in _of_task(task, family, preset)]
    pins, reporting = read_pins(), Reporting.unless(quiet)
    for weight in dict.fromkeys(weights):
        url = f"{base_url.rstrip('/')}/{weight.file}" if base_url else weight.url
        with reporting.meter(weight.file, "B") as meter:
            path = download(
                url, output / weight.file, sha256 or weight.sha256 or pins.get(weight.name), progress=meter.reach
            )
        digest = pin_or_check(path, weight.name)
        echo(f"{path}  sha256 {digest}")


def _split(tasks: str | None) -> list[str]:
    """The tasks that an option names; ``all``: those that have released files."""
    from beit3_bench.backbones.released import released_files
    from beit3_bench.tasks.registry import task_names

    if tasks == "all":
        return [task for task in task_names() if any(file.answers(task) for file in released_files())]
    return list(filter(None, map(str.strip, (tasks or "").split(","))))


def _of_task(task: str, family: str | None, preset: str | None) -> list[ReleasedFile]:
    """The released file of a task, and its tokenizer.

    Raises:
        BenchError: there is none.
    """
    from beit3_bench.backbones.released import find_of_task, get_released
    from beit3_bench.tasks.registry import get_task

    weight = find_of_task(get_task(task).name, family, preset)
    return [weight, *([get_released(weight.tokenizer)] if weight.tokenizer else [])]
