"""``beit3-bench run --config``: the runs of a file, one after the other."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beit3_bench.errors import BenchError, DeviceFailed
from beit3_bench.harness.commands.run import Job, shared
from beit3_bench.harness.console import Toned, columns, echo, headed
from beit3_bench.harness.settings.choices import Choices
from beit3_bench.harness.settings.runs import NumberedRun, choose, read_runs, typed_words

if TYPE_CHECKING:
    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.request import RunRequest
    from beit3_bench.tasks.contract import Task

NOT_IN_ALL = {"tasks": "--task", "output": "--output"}
"""Options that the runs of a file do not share, so that the command line cannot say them for all."""


@dataclasses.dataclass
class Done:
    """What became of one run of a file, task by task: headline or why not, and the folder."""

    number: int
    task: str
    status: str
    said: str
    folder: str = ""


def run_file(context: click.Context, file: Path, index: int | None, as_json: bool) -> None:
    """Do the runs of a file one after the other: finished ones are skipped, a failed one stops no other.

    Raises:
        BenchError: the file or one of its runs is not what it should be, before any starts; some failed, after all are done.
    """
    typed = [
        name
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        and name not in ("config", "index", "as_json")
    ]
    for name, option in NOT_IN_ALL.items():
        if name in typed:
            raise click.UsageError(f"{option} and --config exclude each other; write it into {file}", context)
    more = typed_words(context, typed)
    runs = read_runs(file)
    jobs = [(run, _job_of(run, more, typed, context)) for run in choose(runs, index, file)]
    processes = jobs[0][1].start()
    done: list[Done] = []
    results: list[dict[str, Any]] = []
    for run, job in jobs:
        if processes.first:
            echo(Toned(f"run {run.number} of {len(runs)} ({run.place})", "heading"), err=True)
        job.say(processes)
        for request, task_class in job.plan.requests:
            one = _done(run.number, request, task_class, processes, results, as_json, job.all_tasks)
            if processes.first and one.status != "done":
                echo(f"run {run.number}: {one.task}: {one.status}{': ' * bool(one.said)}{one.said}", err=True)
            done.append(one)
    if processes.first:
        _summary(done, results, as_json)
    failed = list(dict.fromkeys(f"{one.number} ({one.task})" for one in done if one.status == "failed"))
    if failed:
        raise shared(
            f"{file}: {len(failed)} of {len(done)} failed: run {', '.join(failed)}; mend them and give the same command again"
        )


def _job_of(run: NumberedRun, more: Sequence[str], typed: Sequence[str], context: click.Context) -> Job:
    """A run of a file, read as a command line of its own. more: what the command line says for all of them."""
    words = [*run.words(without=typed), *more]
    try:
        inner = context.command.make_context(context.info_name, words, parent=context.parent)
    except click.UsageError as error:
        raise BenchError(f"{run.place}: run {run.number}: {error.format_message()}") from error
    origins = {name: run.place for name in inner.params if name not in typed}
    parameters = {k: v for k, v in inner.params.items() if k not in ("config", "index", "as_json")}
    try:
        return Job.of(parameters, Choices.of(inner, origins))
    except BenchError as error:
        raise BenchError(f"{run.place}: run {run.number}: {error}") from error


def _done(
    number: int,
    request: RunRequest,
    task_class: type[Task],
    processes: Processes,
    results: list[dict[str, Any]],
    as_json: bool,
    all_tasks: bool,
) -> Done:
    """Do one task of one run; a failure is what became of it."""
    from beit3_bench.harness.cli import explain
    from beit3_bench.harness.record.report import result_as_text
    from beit3_bench.harness.session import is_not_installed, not_installed, run_task

    try:
        with redirect_stdout(sys.stderr):  # what libraries print; stdout is for results
            outcome = run_task(request, task_class, processes)
    except DeviceFailed:  # and would fail for the other runs, too
        raise
    except BenchError as error:
        failure = error
        if all_tasks and is_not_installed(failure):
            processes.on_first(lambda: not_installed(request, task_class, failure))
            return Done(number, request.named, "not installed", str(error))
        return Done(number, request.named, "failed", str(error))
    except Exception as error:
        if processes.world > 1:  # the others wait for this one
            raise
        return Done(number, request.named, "failed", explain(error)[0].removeprefix("error: "))
    if not processes.first:
        return Done(number, request.named, "done", "")
    results.append(outcome.result)
    folder = str(outcome.folder)
    headline = _headline(outcome.result)
    if outcome.was_finished:
        return Done(number, request.named, "was finished, skipped", headline, folder)
    if not as_json:
        echo(*headed(result_as_text(outcome.result, outcome.folder, False)))
    return Done(number, request.named, "done", headline, folder)


def _headline(result: Mapping[str, Any]) -> str:
    """The number that a task's table shows first, or what there is in its place."""
    from beit3_bench.harness.scoring import shown

    for name, metric in result["metrics"].items():
        if metric["headline"]:
            return f"{name} {shown(metric['value'], metric['unit'], metric['decimals'])}"
    return str(result["status"])


def _summary(done: Sequence[Done], results: Sequence[dict[str, Any]], as_json: bool) -> None:
    import json

    if as_json:
        echo(json.dumps(results, indent=2))
        return
    rows = [(str(one.number), one.task, one.status, one.said, one.folder) for one in done]
    echo(*headed("\n".join(columns([("run", "task", "state", "result", "folder"), *rows]))))
