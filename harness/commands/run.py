"""``beit3-bench run``: evaluate a checkpoint on one task, several, or all."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beit3_bench.errors import BenchError, DeviceFailed
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import (
    compile_mode,
    compute_of,
    device,
    dtype,
    features,
    image_cache,
    log_to,
    quiet,
    seed,
    workers,
)
from beit3_bench.harness.console import echo, headed

if TYPE_CHECKING:
    from beit3_bench.backbones.corruptions import Corruption
    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.request import RunRequest
    from beit3_bench.harness.session import Outcome
    from beit3_bench.harness.settings.choices import Choices
    from beit3_bench.harness.settings.plan import Plan
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
@click.option(
    "--task", "tasks", metavar="T[,T2]|all", shell_complete=completion.tasks, help="Task name, a comma list, or all."
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    metavar="[T=][FAMILY:]FILE",
    help="Checkpoint, or the folder of one in several files; T=FILE for one task of a list; FAMILY: where files do not say it; "
    "a folder of several: found by released names, TASK.pth or TASK/best.pth [default: $BEIT3_BENCH_CHECKPOINT, beit3-bench.toml].",
)
@click.option(
    "--data-root",
    "data_roots",
    multiple=True,
    metavar="[T=]DIR",
    help="Folder of the data, or of several data sets under their usual names; T=DIR for one task "
    "[default: $BEIT3_BENCH_DATA_ROOT, beit3-bench.toml].",
)
@click.option(
    "--data",
    multiple=True,
    metavar="[T=]FILE.jsonl",
    help="Data of your own for classify, retrieval, caption or vqa, a JSON object a line (see: beit3-bench tasks NAME) "
    "[default: $BEIT3_BENCH_DATA, beit3-bench.toml].",
)
@click.option(
    "--data-name", metavar="NAME", help="What your own data is called in tables [default: the name of its file]."
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    envvar="BEIT3_BENCH_TOKENIZER",
    metavar="FILE",
    help="Tokenizer of the model [default: beside the checkpoint: beit3.spm, VLMo's vocab.txt].",
)
@click.option("--split", metavar="NAME", shell_complete=completion.splits, help="Split [default: the task's own].")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only the first N examples; the result is labelled a subset.",
)
@click.option(
    "--until-ci",
    type=click.FloatRange(min=0, max=100, min_open=True),
    metavar="W",
    help="Sample in random order, and stop when the headline's 95% interval is narrower than W points from end to end; the result is "
    "labelled an estimate. Without it the same command goes on to the whole split.",
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
@click.option(
    "--preset",
    metavar="NAME",
    shell_complete=completion.presets,
    help="Architecture, where the checkpoint does not show it.",
)
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
@click.option(
    "--corrupt",
    metavar="C[:S],...",
    help="Corrupt all images, one run for each: the 15 of ImageNet-C (jpeg:2, all:1-5) at severities 1 to 5 [severity: 3].",
)
@click.option("--overwrite", is_flag=True, help="Discard an earlier run in the same folder.")
@click.option(
    "-o", "options", multiple=True, metavar="KEY=VALUE", help="Option of the task (see: beit3-bench tasks NAME)."
)
@image_cache
@features
@log_to
@quiet
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Do all runs of a TOML file: [[run]] tables whose keys are the options of this verb.",
)
@click.option("--index", type=int, metavar="N", help="Only run N of --config, from 1, as the tasks of a job array do.")
@click.option("--json", "as_json", is_flag=True, help="Print result.json and nothing else on stdout.")
@click.pass_context
def command(
    context: click.Context,
    as_json: bool,
    config: Path | None,
    index: int | None,
    **parameters: Any,
) -> None:
    """Evaluate a checkpoint. The same command on an unfinished run folder goes on where it stopped.

    What is not said here is taken from environment variables, then from beit3-bench.toml (see: beit3-bench init). Exit code 2
    if any task failed; the others of a list are evaluated nevertheless.
    """
    import json

    from beit3_bench.harness.settings.choices import Choices
    from beit3_bench.harness.settings.files import NAME

    if config is not None:
        from beit3_bench.harness.commands.run_file import run_file

        run_file(context, config, index, as_json)
        return
    if index is not None:
        raise click.UsageError("--index belongs to --config FILE", context)
    if parameters["tasks"] is None:
        raise click.UsageError(
            f"run: no task is named; give --task NAME, --checkpoint FILE and --data-root DIR, write the places into {NAME} "
            "(beit3-bench init) and name the task alone, or try it out without any of one's own: beit3-bench demo",
            context,
        )
    job = Job.of(parameters, Choices.of(context))
    processes = job.start()
    job.say(processes)
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    requests = job.plan.requests
    for request, task_class in requests:
        outcome = _one(request, task_class, processes, failed, len(requests) == 1, job.all_tasks)
        if outcome is None or not processes.first:
            continue
        results.append(outcome.result)
        if not as_json:
            from beit3_bench.harness.record.report import result_as_text

            echo(*headed(result_as_text(outcome.result, outcome.folder, outcome.was_finished)))
        elif outcome.was_finished:
            echo(f"{outcome.folder}: was finished already; --overwrite runs it again", err=True)
    if as_json and processes.first and results:
        echo(json.dumps(results[0] if len(requests) == 1 else results, indent=2))
    if failed:
        raise shared(f"{len(failed)} of {len(requests)} tasks failed: {', '.join(failed)}")


def shared(line: str) -> BenchError:
    """An error that every process knows, and the first one tells."""
    error = BenchError(line)
    error.shared = True  # type: ignore[attr-defined]
    return error


PLANNED = ("tasks", "checkpoints", "data_roots", "data", "options", "corrupt")
"""Parameters from which the requests are made; the others are fields of each."""


def _corruptions(text: str | None) -> Sequence[Corruption]:
    """What ``--corrupt`` says, once its library is there: before anything is read."""
    if text is None:
        return ()
    from beit3_bench.backbones.corruptions import library, parse_corruptions

    corruptions = parse_corruptions(text)
    library()
    return corruptions


@dataclasses.dataclass
class Job:
    """What one command line of `run` amounts to. lines: where its places come from."""

    plan: Plan
    device: str
    lines: Sequence[str]
    all_tasks: bool

    @classmethod
    def of(cls, parameters: Mapping[str, Any], choices: Choices) -> Job:
        """The job of a command's parameters.

        Raises:
            BenchError: see `settings.plan.plan`.
        """
        from beit3_bench.harness.progress import Reporting
        from beit3_bench.harness.settings.plan import ALL, plan
        from beit3_bench.harness.tracking import check_trackers

        check_trackers(parameters["log_to"])
        corruptions = _corruptions(parameters["corrupt"])
        settings = {k: v for k, v in parameters.items() if k not in PLANNED}
        origins = choices.settle(settings)
        compute = compute_of(settings)
        settings |= {
            "compute": compute,
            "corruptions": corruptions,
            "reporting": Reporting.unless(settings.pop("quiet")),
            "resolved_from": origins,
        }
        tasks = parameters["tasks"]
        planned = plan(tasks, parameters["options"], settings, choices)
        return cls(planned, compute.device, choices.spoken, tasks == ALL)

    def start(self) -> Processes:
        from beit3_bench.harness.engine.processes import Processes

        return Processes.start(self.device)

    def say(self, processes: Processes) -> None:
        """Print where places come from, and what is skipped."""
        if processes.first:
            for line in self.lines:
                echo(line, err=True)
            for name, why in self.plan.skipped.items():
                echo(f"{name}: skipped, {why.removeprefix(f'task {name}: ')}", err=True)


def _one(
    request: RunRequest, task_class: type[Task], processes: Processes, failed: list[str], alone: bool, all_tasks: bool
) -> Outcome | None:
    """Run one task of the list; a failure is printed and noted in ``failed``, or raised where the task is alone."""
    from beit3_bench.harness.session import is_not_installed, not_installed, run_task

    try:
        with redirect_stdout(sys.stderr):  # what libraries print; stdout is for results
            return run_task(request, task_class, processes)
    except DeviceFailed:  # and would fail for the other tasks, too
        raise
    except BenchError as error:
        failure = error
    missing = is_not_installed(failure)
    outcome = processes.on_first(lambda: not_installed(request, task_class, failure)) if missing else None
    if alone:
        raise failure
    if processes.first:
        echo(f"error: {request.named}: {failure}", err=True)
    if not (missing and all_tasks):
        failed.append(request.named)
    return outcome
