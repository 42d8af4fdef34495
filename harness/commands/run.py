"""``beit3-bench run``: evaluate a checkpoint on one task, several, or all."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.options import (
    compile_mode,
    compute_of,
    device,
    dtype,
    features,
    image_cache,
    quiet,
    seed,
    workers,
)
from beit3_bench.harness.console import echo

if TYPE_CHECKING:
    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.request import RunRequest
    from beit3_bench.harness.session import Outcome
    from beit3_bench.tasks.contract import Task


class BatchSize(click.ParamType):
    """``auto`` or a number of examples."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto" or isinstance(value, int):
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is neither 'auto' nor a number of examples above 0", param, ctx)
        return int(value)


@click.command("run")
@click.option("--task", "tasks", required=True, metavar="T[,T2]|all", help="Task name, a comma list, or all.")
@click.option(
    "--checkpoint",
    "checkpoints",
    required=True,
    multiple=True,
    metavar="[T=][FAMILY:]FILE",
    help="Checkpoint, or the folder of one in several files; T=FILE for one task of a list; FAMILY: where files do not say it.",
)
@click.option(
    "--data-root",
    "data_roots",
    required=True,
    multiple=True,
    metavar="[T=]DIR",
    help="Folder of the data; T=DIR for one task.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Tokenizer of the model [default: beside the checkpoint: beit3.spm, VLMo's vocab.txt].",
)
@click.option("--split", metavar="NAME", help="Split [default: the task's own].")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the first N examples; the result is labelled a subset.",
)
@click.option(
    "--batch-size",
    type=BatchSize(),
    default="auto",
    show_default=True,
    help="Examples per batch; halved when memory runs out.",
)
@device
@dtype()
@compile_mode
@workers
@seed("Seed of the bootstrap and of missing weights.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Run folder [default: below results/runs]."
)
@click.option("--preset", metavar="NAME", help="Architecture, where the checkpoint does not show it.")
@click.option(
    "--image-size", type=click.IntRange(min=1), metavar="S", help="Input side in pixels [default: the checkpoint's]."
)
@click.option(
    "--allow-missing",
    multiple=True,
    metavar="PATTERN",
    help="Tensors that may be missing or misshapen: they keep random values, and the result says so.",
)
@click.option(
    "--setting", type=click.Choice(["fine-tuned", "zero-shot"]), help="Label of the row [default: from the checkpoint]."
)
@click.option("--overwrite", is_flag=True, help="Discard an earlier run in the same folder.")
@click.option(
    "-o", "options", multiple=True, metavar="KEY=VALUE", help="Option of the task (see: beit3-bench tasks NAME)."
)
@image_cache
@features
@quiet
@click.option("--json", "as_json", is_flag=True, help="Print result.json and nothing else on stdout.")
def command(
    tasks: str,
    checkpoints: Sequence[str],
    data_roots: Sequence[str],
    options: Sequence[str],
    as_json: bool,
    **settings: Any,
) -> None:
    """Evaluate a checkpoint. The same command on an unfinished run folder goes on where it stopped.

    Exit code 2 if any task failed; the others of a list are evaluated nevertheless.
    """
    import json

    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.progress import Reporting
    from beit3_bench.harness.record.report import result_as_text

    compute = compute_of(settings)
    settings |= {"compute": compute, "reporting": Reporting.unless(settings.pop("quiet"))}
    requests, skipped = plan(tasks, checkpoints, data_roots, options, settings)
    processes = Processes.start(compute.device)
    for name in skipped:
        echo(f"{name}: skipped, no --checkpoint or --data-root is given for it", err=True)
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    for request, task_class in requests:
        outcome = _one(request, task_class, processes, failed, alone=len(requests) == 1, all_tasks=tasks == "all")
        if outcome is None or not processes.first:
            continue
        results.append(outcome.result)
        if not as_json:
            echo(result_as_text(outcome.result, outcome.folder, outcome.was_finished))
        elif outcome.was_finished:
            echo(f"{outcome.folder}: was finished already; --overwrite runs it again", err=True)
    if as_json and processes.first and results:
        echo(json.dumps(results[0] if len(requests) == 1 else results, indent=2))
    if failed:
        error = BenchError(f"{len(failed)} of {len(requests)} tasks failed: {', '.join(failed)}")
        error.shared = True  # type: ignore[attr-defined]
        raise error


def _one(
    request: RunRequest, task_class: type[Task], processes: Processes, failed: list[str], alone: bool, all_tasks: bool
) -> Outcome | None:
    """Run one task of the list; a failure is printed and noted in ``failed``, or raised where the task is alone."""
    from beit3_bench.harness.session import is_not_installed, not_installed, run_task

    try:
        with redirect_stdout(sys.stderr):  # what libraries print; stdout is for results
            return run_task(request, task_class, processes)
    except BenchError as error:
        failure = error
    missing = is_not_installed(failure)
    outcome = processes.on_first(lambda: not_installed(request, task_class, failure)) if missing else None
    if alone:
        raise failure
    if processes.first:
        echo(f"error: {request.task}: {failure}", err=True)
    if not (missing and all_tasks):
        failed.append(request.task)
    return outcome


# ---- from words to requests --------------------------------------------------------------------------------


def plan(
    tasks: str, checkpoints: Sequence[str], data_roots: Sequence[str], options: Sequence[str], settings: dict[str, Any]
) -> tuple[list[tuple[RunRequest, type[Task]]], list[str]]:
    """One request per task, and the tasks of ``all`` for which no checkpoint or data is given.

    Raises:
        BenchError: unknown task or option, or a task of a comma list without checkpoint or data.
    """
    from beit3_bench.harness.request import RunRequest
    from beit3_bench.tasks.registry import get_task, task_names

    names = (
        task_names()
        if tasks == "all"
        else list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    )
    if not names:
        raise BenchError("--task: no task is named; see: beit3-bench tasks")
    classes = {name: get_task(name) for name in names}
    files = _per_task(checkpoints, names, "--checkpoint")
    roots = _per_task(data_roots, names, "--data-root")
    given = _task_options(options, classes)
    output = settings.pop("output")
    requests, skipped = [], []
    for name, task_class in classes.items():
        if name not in files or name not in roots:
            if tasks != "all":
                raise BenchError(
                    f"task {name}: no {'--checkpoint' if name not in files else '--data-root'} is given for it; "
                    f"add {name}=PATH"
                )
            skipped.append(name)
            continue
        split = settings["split"]
        if split is not None and tasks == "all" and split not in task_class.splits:
            split = None
        folder = output if output is None or len(names) == 1 else output / f"{name}-{split or task_class.default_split}"
        request = RunRequest(
            **{**settings, "split": split},
            task=name,
            checkpoint=files[name],
            data_root=Path(roots[name]),
            output=folder,
            options=given[name],
        )
        requests.append((request, task_class))
    if not requests:
        raise BenchError("--task all: no task has both a --checkpoint and a --data-root")
    return requests, skipped


def _per_task(values: Sequence[str], names: Sequence[str], option: str) -> dict[str, Path | str]:
    """``FILE`` for every task, ``task=FILE`` for one; the latter wins."""
    from beit3_bench.tasks.registry import task_names

    general: list[str] = []
    special: dict[str, Path | str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if equals and name in {*names, *task_names()}:
            special[name] = _expanded(path)
        else:
            general.append(value)
    if len(general) > 1:
        raise BenchError(
            f"{option} is given {len(general)} times for all tasks ({', '.join(general)}); "
            "write TASK=PATH to tell them apart"
        )
    for_all = {name: _expanded(general[0]) for name in names} if general else {}
    return {**for_all, **{name: path for name, path in special.items() if name in names}}


def _expanded(path: str) -> Path | str:
    """A path with its home folder; ``FAMILY:SOURCE`` as it is."""
    if not path.startswith("~"):
        return path
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise BenchError(f"{path}: no such home folder is known; write the path out, or set HOME") from error


def _task_options(options: Sequence[str], classes: dict[str, type[Task]]) -> dict[str, dict[str, str]]:
    """``key=value`` for each task that knows the key; a single task gets all, so that it can name the unknown one."""
    given: dict[str, dict[str, str]] = {name: {} for name in classes}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BenchError(f"-o {text!r}: write KEY=VALUE")
        takers = [
            name
            for name, cls in classes.items()
            if key.replace("-", "_") in {f.name for f in dataclasses.fields(cls.Options)}
        ]
        for name in takers or classes:
            given[name][key] = value
    return given
