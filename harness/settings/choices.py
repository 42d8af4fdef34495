"""What a command was told: by the command line, else by the environment, else by ``beit3-bench.toml``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from beit3_bench.backbones.registry import split_source
from beit3_bench.errors import BenchError
from beit3_bench.harness.request import data_option
from beit3_bench.harness.settings.files import (
    NAME,
    ROOT,
    SettingsFile,
    absolute,
    expanded,
    find_files,
    read_settings,
)
from beit3_bench.harness.settings.places import NotThere, data_folders, find_checkpoint, find_data
from beit3_bench.tasks import registry

TYPED = "command line"
PREFIX = "BEIT3_BENCH_"
OPTIONS = ("tokenizer", "device", "dtype", "workers", "image_cache", "features")
"""Options of one value that the environment and the file may say, too; of those the paths:"""
PATHS = ("tokenizer", "image_cache", "features")

Place = Literal["data_root", "checkpoint", "data"]
_WORDS: dict[str, tuple[str, str]] = {
    "data_root": ("data", "data"),
    "checkpoint": ("checkpoint", "checkpoints"),
    "data": ("data", "data"),
}
"""Place -> how it is called in a line, and in the file."""


@dataclass(frozen=True)
class Choice:
    """A value and where it was said."""

    value: Any
    origin: str


@dataclass
class Choices:
    """typed: the values of options that the command line gives; several for places.  environment: of the process.

    typed_in: where that was said instead, option by option: a file of runs.
    files: the first before the second.
    spoken: lines to print: each choice that a file said, and each place that was looked for.
    """

    typed: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[SettingsFile] = ()
    typed_in: Mapping[str, str] = field(default_factory=dict)
    spoken: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, context: click.Context, typed_in: Mapping[str, str] | None = None) -> Choices:
        """What stands behind a click command that was called in the current folder.

        Raises:
            BenchError: a file that cannot be read; see `files.read_settings`.
        """
        sources = {name: context.get_parameter_source(name) for name in context.params}
        typed = {name: value for name, value in context.params.items() if sources[name] is ParameterSource.COMMANDLINE}
        files = [read_settings(file) for file in find_files(Path.cwd(), os.environ)]
        return cls(typed, os.environ, files, typed_in or {})

    # ---- options of one value ----------------------------------------------------------------------------------------

    def settle(self, settings: dict[str, Any]) -> dict[str, str]:
        """Put into a command's parameters what the files say and nobody else does; origins by name, of all that was said.

        Values of the environment stand in the parameters already, put there by click.
        """
        origins = {}
        for name in OPTIONS:
            if name not in settings:
                continue
            choice = self._option(name, settings[name])
            if choice is None:
                continue
            settings[name] = choice.value
            origins[name] = choice.origin
            # Who set a variable knows it, unless a file says something else.
            in_a_file = any(vars(file.settings)[name] is not None for file in self.files)
            if name not in self.typed and in_a_file:
                self._say(f"{name.replace('_', ' ')}: {choice.value} (from {choice.origin})")
        return origins

    def _option(self, name: str, parameter: Any) -> Choice | None:
        if name in self.typed:
            return Choice(parameter, self._typed_at(name))
        if self.environment.get(variable(name)):
            return Choice(parameter, f"${variable(name)}")
        for file in self.files:
            value = vars(file.settings)[name]
            if value is not None:
                return Choice(file.place(value) if name in PATHS else value, str(file.path))
        return None

    def _typed_at(self, name: str) -> str:
        return self.typed_in.get(name, TYPED)

    def runs_folder(self) -> Choice | None:
        """The folder below which run folders are made, where somebody says it."""
        if text := self.environment.get(variable("output")):
            choice = Choice(expanded(text), f"${variable('output')}")
        else:
            said = ((file, file.settings.output) for file in self.files)
            place = next(((file, output) for file, output in said if output is not None), None)
            if place is None:
                return None
            choice = Choice(place[0].place(place[1]), str(place[0].path))
        self._say(f"output: {choice.value} (from {choice.origin})")
        return choice

    # ---- data and checkpoints ----------------------------------------------------------------------------------------

    def data_root(self, task: str, one_of_all: bool = False) -> Choice | None:
        """The data root of a task, or its file of one's own data; None where nobody says one.

        Args:
            one_of_all: nobody named the task, so that a folder without its data need not be meant. One that the command line
                gives for a task by name is left to the reader, who names the file that is missing.

        Raises:
            NotThere: a folder of several data sets has none for the task.
            BenchError: it has several, or two keys of a file say different ones.
        """
        own = registry.get_task(task).own_data
        said = self._said("data" if own else "data_root", task)
        if said is None:
            return None
        place = expanded(said.value)
        if own:
            return self._resolved("data", task, said, place)
        try:
            place = find_data(task, place)
        except NotThere:
            if one_of_all or said.origin != TYPED:
                raise
        return self._resolved("data_root", task, said, place)

    def checkpoint(self, task: str) -> Choice | None:
        """The checkpoint of a task, as ``[FAMILY:]SOURCE``; None where nobody says one.

        Raises:
            NotThere: a folder of several has none for the task.
            BenchError: it has several.
        """
        said = self._said("checkpoint", task)
        if said is None:
            return None
        text = str(expanded(said.value)) if said.value.startswith("~") else said.value
        asks_as = registry.get_task(task).asks_as
        return self._resolved("checkpoint", task, said, find_checkpoint(task, text, asks_as))

    def names_data_of(self, task: str) -> bool:
        """Whether somebody names a file of one's own for this very task."""
        given = self.typed.get("data", ())
        named = task in per_task(given if isinstance(given, tuple) else (str(given),), "--data").special
        return named or any(_in_file(file, "data", task) is not None for file in self.files)

    def check_data(self, tasks: Iterable[str]) -> None:
        """Raise where the command line gives a folder to tasks of one's own data, or a file of such to others.

        Raises:
            BenchError: it does; names option and task.
        """
        known = {name: registry.get_task(name).own_data for name in tasks}
        for parameter, own in (("data", True), ("data_root", False), ("data_roots", False)):
            given = self.typed.get(parameter)
            if not given:
                continue
            option = "--data" if own else "--data-root"
            places = per_task(given if isinstance(given, tuple) else (str(given),), option)
            wrong = [task for task in known if task in places.special and known[task] != own]
            if places.general is not None and own not in known.values():
                wrong += list(known)
            if wrong and own:
                raise BenchError(
                    f"task {wrong[0]} reads --data-root DIR; --data FILE.jsonl is for data of one's own ({', '.join(own_tasks())})"
                )
            if wrong:
                raise BenchError(f"task {wrong[0]} reads a file of one's own: --data FILE.jsonl, not --data-root")

    def _resolved(self, kind: Place, task: str, said: Choice, value: str | Path) -> Choice:
        inside = os.path.normpath(value) != os.path.normpath(expanded(said.value))
        if inside or said.origin != TYPED:
            self._say(f"{_WORDS[kind][0]} of {task}: {value} (from {said.origin})")
        return Choice(value, said.origin)

    def _said(self, kind: Place, task: str) -> Choice | None:
        """What was said of a task, or of all: by the first of command line, environment and files that says anything of it."""
        parameter = f"{kind}s" if f"{kind}s" in self.typed else kind
        given = self.typed.get(parameter, ())
        text = per_task(given if isinstance(given, tuple) else (str(given),), f"--{kind.replace('_', '-')}").of(task)
        if text is not None:
            return Choice(text, self._typed_at(parameter))
        if text := self.environment.get(variable(kind)):
            return Choice(text, f"${variable(kind)}")
        return next((choice for file in self.files if (choice := _in_file(file, kind, task)) is not None), None)

    def _say(self, line: str) -> None:
        if line not in self.spoken:
            self.spoken.append(line)


def variable(name: str) -> str:
    """The environment variable of an option."""
    return f"{PREFIX}{name.upper()}"


def _in_file(file: SettingsFile, kind: Place, task: str) -> Choice | None:
    key = _WORDS[kind][1]
    said = vars(file.settings)[key]
    if kind == "data":  # a file is of one task
        chosen = {f"{key}.{task}": said[task]} if isinstance(said, Mapping) and task in said else {}
    elif not isinstance(said, Mapping):
        chosen = {key: said} if said is not None else {}
    elif task in said:
        chosen = {f"{key}.{task}": said[task]}
    else:
        names = data_folders(task) if kind == "data_root" else ()
        chosen = {f"{key}.{name}": said[name] for name in names if name in said}
        if len({file.place(text) for text in chosen.values()}) > 1:
            raise BenchError(
                f"{file.path}: {' and '.join(chosen)} say different places for the data of {task}; leave one of them out, or "
                f"write {key}.{task}"
            )
        asks_as = registry.get_task(task).asks_as if kind == "checkpoint" else ""
        if asks_as in said:
            chosen = {f"{key}.{asks_as}": said[asks_as]}
        if not chosen and ROOT in said:
            chosen = {f"{key}.{ROOT}": said[ROOT]}
    for name, text in chosen.items():
        value = source_in(text, file.path) if kind == "checkpoint" else str(file.place(text))
        return Choice(value, f"{file.path}: {name}")
    return None


def source_in(text: str, file: Path) -> str:
    """``[FAMILY:]SOURCE`` as a file means it: a path is below the file's folder, ``FAMILY:SOURCE`` is as the family has it."""
    return text if split_source(text)[0] is not None else str(absolute(text, file))


@dataclass(frozen=True)
class PerTask:
    """A place for all tasks, and those for single ones, which win."""

    general: str | None
    special: Mapping[str, str]

    def of(self, task: str) -> str | None:
        return self.special.get(task, self.general)


def per_task(values: Sequence[str], option: str) -> PerTask:
    """``FILE`` for every task, ``task=FILE`` for one.

    Raises:
        BenchError: two for every task.
    """
    known = registry.task_names()
    general: list[str] = []
    special: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if equals and name in known:
            special[name] = path
        else:
            general.append(value)
    if len(general) > 1:
        raise BenchError(
            f"{option} is given {len(general)} times for all tasks ({', '.join(general)}); "
            "write TASK=PATH to tell them apart"
        )
    return PerTask(general[0] if general else None, special)


def own_tasks() -> list[str]:
    """Names of the tasks that read data of one's own."""
    return [name for name in registry.task_names() if registry.get_task(name).own_data]


def three_ways(task: str, missing: Sequence[str]) -> BenchError:
    """What to say where nobody names the data or the checkpoint of a task. missing: options."""
    given = " and ".join(f"no {option}" for option in missing)
    return BenchError(
        f"task {task}: {given} is given for it; add {' '.join(f'{option} PATH' for option in missing)} (or {task}=PATH), write the "
        f"places into {NAME} (beit3-bench init), or try it out without any of one's own: beit3-bench demo"
    )


def one_data_root(choices: Choices, task: str) -> Choice:
    """The data root of the one task of a command.

    Raises:
        BenchError: nobody says one, or what `Choices.data_root` refuses.
    """
    choices.check_data([task])
    choice = choices.data_root(task)
    if choice is None:
        raise three_ways(task, [data_option(registry.get_task(task))])
    return choice
