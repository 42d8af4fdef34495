"""Many runs in one file: ``[[run]]`` tables whose keys are the options of ``beit3-bench run``, and defaults of all at the top."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.settings.choices import source_in
from beit3_bench.harness.settings.files import (
    Dtype,
    absolute,
    fill_at,
    parse,
    refuse_empty,
    vars_given,
    where,
)
from beit3_bench.tasks.files import read_text

KEY = "run"
Places = Mapping[str, str] | str
"""A place for all tasks, or a table by task."""
PARAMETERS = {"task": "tasks", "checkpoint": "checkpoints", "data_root": "data_roots"}
"""Key -> parameter of the command, where that has another name."""
Plain = bool | int | float | str


@dataclass(frozen=True)
class RunEntry:
    """One ``[[run]]``: options of ``beit3-bench run`` by their long names; None where the default holds.

    options: a table of what ``-o`` says. Relative paths are below the folder of the file, those in ``options`` below the current one.
    """

    task: str | None = None
    checkpoint: Places | None = None
    data_root: Places | None = None
    data: Places | None = None
    data_name: str | None = None
    tokenizer: Path | None = None
    split: str | None = None
    limit: int | None = None
    until_ci: float | None = None
    batch_size: int | Literal["auto"] | None = None
    device: str | None = None
    dtype: Dtype | None = None
    compile: Literal["off", "on", "auto"] | None = None
    workers: int | None = None
    seed: int | None = None
    output: Path | None = None
    preset: str | None = None
    image_size: int | None = None
    allow_missing: tuple[str, ...] | None = None
    setting: Literal["fine-tuned", "zero-shot"] | None = None
    corrupt: str | None = None
    overwrite: bool | None = None
    options: Mapping[str, Plain | tuple[Plain, ...]] | None = None
    image_cache: Path | None = None
    features: Path | None = None
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] | None = None

    def __post_init__(self) -> None:
        refuse_empty(self)

    def given(self) -> dict[str, Any]:
        """Fields that say something."""
        return {f.name: vars(self)[f.name] for f in fields(self) if vars(self)[f.name] is not None}


@dataclass(frozen=True)
class NumberedRun:
    """A run of a file: its number, from 1, where it stands, and what it says, defaults of the file put in."""

    number: int
    place: str
    entry: RunEntry
    file: Path

    def words(self, without: Collection[str] = ()) -> list[str]:
        """The words of ``beit3-bench run``. without: parameters of its command that the command line itself says.

        Of ``-o``, the command line adds to what is here.
        """
        given = self.entry.given()
        kept = {
            name: value
            for name, value in given.items()
            if name == "options" or PARAMETERS.get(name, name) not in without
        }
        return [word for name, value in kept.items() for word in self._words(name, value)]

    def _words(self, name: str, value: Any) -> Iterator[str]:
        option = f"--{name.replace('_', '-')}"
        if name == "options":
            for key, plain in value.items():
                yield from ("-o", f"{key}={_written(plain)}")
        elif name in ("checkpoint", "data_root", "data"):
            for task, text in value.items() if isinstance(value, Mapping) else [("", value)]:
                place = source_in(text, self.file) if name == "checkpoint" else absolute(text, self.file)
                yield f"{option}={task}{'=' * bool(task)}{place}"
        elif name == "overwrite":
            yield from [option] * value
        elif isinstance(value, tuple):
            yield from (f"{option}={item}" for item in value)
        else:
            yield f"{option}={absolute(value, self.file) if isinstance(value, Path) else value}"


def _written(plain: Plain | tuple[Plain, ...]) -> str:
    """A value as the command line writes it."""
    if isinstance(plain, tuple):
        return ",".join(map(_written, plain))
    return str(plain).lower() if isinstance(plain, bool) else str(plain)


def read_runs(file: Path) -> list[NumberedRun]:
    """The runs of a file, in its order.

    Raises:
        BenchError: no TOML, no ``[[run]]``, an unknown key or a value of another kind, a run without task, two that would write
            into one folder; with file and line.
    """
    text = read_text(file, "runs", "a [[run]] table for each run, with the options of beit3-bench run as keys")
    table = parse(text, file)
    listed = table.pop(KEY, None)
    if not isinstance(listed, list) or not listed or not all(isinstance(run, dict) for run in listed):
        line = where(text, file, (KEY,)) if listed is not None else str(file)
        raise BenchError(f"{line}: has no list of runs; write [[run]] above the options of each")
    defaults = _entries(table, text, file, ())
    runs = []
    for index, values in enumerate(listed):
        place = where(text, file, (KEY, index))
        own = _entries(values, text, file, (KEY, index))
        said = {**defaults, **own}
        if "options" in own:
            said["options"] = {**defaults.get("options", {}), **own["options"]}
        if "task" not in said:
            raise BenchError(f'{place}: run {index + 1} names no task; add: task = "..."')
        runs.append(NumberedRun(index + 1, place, RunEntry(**said), file))
    _check_outputs(runs)
    return runs


def _entries(values: Mapping[str, Any], text: str, file: Path, key: Sequence[str | int]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in values.items():
        entries |= vars_given(fill_at(RunEntry, {name: value}, text, file, (*key, name)), name.replace("-", "_"))
    return entries


def _check_outputs(runs: Sequence[NumberedRun]) -> None:
    """Raise if two runs say different things and one folder."""
    seen: dict[Path, NumberedRun] = {}
    for run in runs:
        if run.entry.output is None:
            continue
        folder = absolute(run.entry.output, run.file)
        other = seen.setdefault(folder, run)
        if other is not run:
            raise BenchError(
                f"{run.place}: run {run.number} and run {other.number} ({other.place}) write into one folder, "
                f"{folder}; give each its own output"
            )


def choose(runs: Sequence[NumberedRun], index: int | None, file: Path) -> list[NumberedRun]:
    """All runs, or the one of a number from 1.

    Raises:
        BenchError: there is no such run.
    """
    if index is None:
        return list(runs)
    if not 1 <= index <= len(runs):
        raise BenchError(f"{file}: has no run {index}; --index is a number from 1 to {len(runs)}")
    return [runs[index - 1]]


def typed_words(context: click.Context, names: Sequence[str]) -> list[str]:
    """Options that the command line gives, as words again, behind which those of a file stand back."""
    words: list[str] = []
    for parameter in context.command.params:
        if parameter.name not in names or not isinstance(parameter, click.Option):
            continue
        value = context.params[parameter.name]
        if parameter.is_flag:
            words += [parameter.opts[0]] * bool(value)
            continue
        for one in value if parameter.multiple else [value]:
            words += ["-o", str(one)] if parameter.opts[0] == "-o" else [f"{parameter.opts[0]}={one}"]
    return words
