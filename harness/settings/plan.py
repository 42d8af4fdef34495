"""From the words of ``beit3-bench run`` to the requests that it amounts to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beit3_bench.backbones.corruptions import Corruption
from beit3_bench.errors import BenchError
from beit3_bench.harness.request import RUNS, RunRequest, data_option
from beit3_bench.harness.settings.choices import Choice, Choices, three_ways
from beit3_bench.harness.settings.places import NotThere
from beit3_bench.tasks import registry
from beit3_bench.tasks.contract import Task

ALL = "all"


@dataclasses.dataclass
class Plan:
    """What one command runs.

    skipped: tasks of ``all`` that lack a checkpoint or data, and why.
    """

    requests: list[tuple[RunRequest, type[Task]]] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)


def plan(tasks: str, options: Sequence[str], settings: Mapping[str, Any], choices: Choices) -> Plan:
    """One request per task and corruption.

    Args:
        tasks: a name, names with commas between, or ``all``.
        options: ``KEY=VALUE`` of the tasks.
        settings: ``corruptions``, each a run of its own, and the other fields of `RunRequest`, after `Choices.settle`;
            ``resolved_from`` holds their origins.

    Raises:
        BenchError: unknown task or option, a task that was named without checkpoint or data, or several checkpoints for one; what
            belongs to data of one's own with a task that reads none, or the other way round.
    """
    settings = dict(settings)
    classes = {name: registry.get_task(name) for name in names_of(tasks)}
    data_name, corruptions = settings.pop("data_name", None), settings.pop("corruptions", ()) or (None,)
    if tasks == ALL:
        classes = {name: cls for name, cls in classes.items() if not cls.own_data or choices.names_data_of(name)}
    _check_names(classes, settings["split"] if tasks != ALL else None, data_name)
    choices.check_data(classes)
    given = task_options(options, classes)
    output, origins = settings.pop("output"), settings.pop("resolved_from", {})
    below = choices.runs_folder() if output is None else None
    planned = Plan()
    for name, task_class in classes.items():
        places = _places(name, choices, planned.skipped if tasks == ALL else None)
        if places is None:
            continue
        checkpoint, data_root = places
        split = data_name if task_class.own_data else settings["split"]
        if tasks == ALL and not task_class.own_data and split not in task_class.splits:
            split = None
        folder = output
        if output is not None and len(classes) > 1:
            folder = output / f"{name}-{split or task_class.split_of(None, Path(data_root.value))}"
        resolved = {"checkpoint": checkpoint.origin, "data_root": data_root.origin, **origins}
        request = RunRequest(
            **{**settings, "split": split},
            task=name,
            checkpoint=checkpoint.value,
            data_root=Path(data_root.value),
            output=folder,
            options=given[name],
            runs=RUNS if below is None else below.value,
            resolved_from=resolved if below is None else {**resolved, "output": below.origin},
        )
        planned.requests += [(one, task_class) for one in _corrupted(request, corruptions)]
    if not planned.requests:
        raise BenchError(
            f"--task all: no task has both a --checkpoint and a --data-root; {next(iter(planned.skipped.values()))}"
        )
    return planned


def _corrupted(request: RunRequest, corruptions: Sequence[Corruption | None]) -> list[RunRequest]:
    """The request once for each corruption; of several, each in a folder of its own below the one that was named."""
    apart = request.output is not None and len(corruptions) > 1
    return [
        dataclasses.replace(
            request,
            corruption=one,
            output=request.output / one.slug if apart and request.output and one else request.output,
        )
        for one in corruptions
    ]


def _check_names(classes: Mapping[str, type[Task]], split: str | None, data_name: str | None) -> None:
    """Raise for a split of data of one's own, which has none, and for a name of other data, which has one."""
    own = [name for name, cls in classes.items() if cls.own_data]
    if split is not None and len(own) == len(classes):
        raise BenchError(f"task {own[0]} has no splits, so leave out --split; --data-name names the data")
    if data_name is not None and not own:
        raise BenchError(f"--data-name is for data of one's own; task {next(iter(classes))} has its splits")


def names_of(tasks: str) -> list[str]:
    """Names of tasks, each once.

    Raises:
        BenchError: none.
    """
    listed = dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip())
    names = registry.task_names() if tasks == ALL else list(listed)
    if not names:
        raise BenchError("--task: no task is named; see: beit3-bench tasks")
    return names


def _places(task: str, choices: Choices, skipped: dict[str, str] | None) -> tuple[Choice, Choice] | None:
    """Checkpoint and data of a task; None where it lacks one, and that is noted in ``skipped``, if there is such a list."""
    try:
        checkpoint, data_root = choices.checkpoint(task), choices.data_root(task, one_of_all=skipped is not None)
        if checkpoint is not None and data_root is not None:
            return checkpoint, data_root
        given = {"--checkpoint": checkpoint, data_option(registry.get_task(task)): data_root}
        missing = [option for option, choice in given.items() if choice is None]
        lacking = three_ways(task, missing)
    except NotThere as error:
        lacking = error
    if skipped is None:
        raise lacking
    skipped[task] = str(lacking)
    return None


def task_options(options: Sequence[str], classes: Mapping[str, type[Task]]) -> dict[str, dict[str, str]]:
    """``key=value`` for each task that knows the key; a single task gets all, so that it can name the unknown one.

    Raises:
        BenchError: no equals sign.
    """
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
