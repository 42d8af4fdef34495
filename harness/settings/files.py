"""``beit3-bench.toml``: where it lies, and what it may say.

The nearest one in the current folder or above it, then ``config.toml`` in the user's own folder for configuration. What the first
says wins. Relative paths are below the folder that the file lies in.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from beit3_bench.errors import BenchError
from beit3_bench.plain import fill
from beit3_bench.tasks import registry
from beit3_bench.tasks.files import read_text

NAME = "beit3-bench.toml"
USER_NAME = "config.toml"
USER_FOLDER = "beit3-bench"
"""Below ``$XDG_CONFIG_HOME``, or ``~/.config``."""
ROOT = "root"
"""In the tables ``data`` and ``checkpoints``: the folder that holds those of all tasks."""

TEMPLATE = Path(__file__).with_name(NAME)
"""What `beit3-bench init` writes."""

T = TypeVar("T")
Dtype = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Settings:
    """What ``beit3-bench.toml`` says; None where it says nothing.

    data: a folder that holds those of all data sets, or a table of folders by task or data set, with ``root`` for all others.
    checkpoints: a folder that holds the files of all tasks, or a table of ``[FAMILY:]SOURCE`` by task, with ``root``.
    workers: decoding processes.
    output: folder below which run folders are made.
    """

    data: Mapping[str, Path] | Path | None = None
    checkpoints: Mapping[str, str] | str | None = None
    tokenizer: Path | None = None
    device: str | None = None
    dtype: Dtype | None = None
    workers: int | None = None
    image_cache: Path | None = None
    features: Path | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        refuse_empty(self)
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers: {self.workers} is below 0; write a number of processes")


def refuse_empty(values: object) -> None:
    """Raise ValueError where a text, or one of a table, says nothing: as a path it would be the current folder."""
    for field in fields(values):  # type: ignore[arg-type]
        value = vars(values)[field.name]
        for name, text in value.items() if isinstance(value, Mapping) else [("", value)]:
            if text in ("", Path("")):
                raise ValueError(f"{field.name}{': ' * bool(name)}{name}: is empty; say something, or leave it out")


@dataclass(frozen=True)
class SettingsFile:
    """A file, and what it says."""

    path: Path
    settings: Settings

    def place(self, text: str | Path) -> Path:
        """A path as the file means it."""
        return absolute(text, self.path)


def absolute(text: str | Path, file: Path) -> Path:
    """A path that stands in a file: with its home folder, and below the folder of the file.

    Raises:
        BenchError: no such home folder is known.
    """
    return Path(os.path.normpath(file.absolute().parent / expanded(text)))


def expanded(text: str | Path) -> Path:
    """A path with its home folder.

    Raises:
        BenchError: no such home folder is known.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BenchError(f"{text}: no such home folder is known; write the path out, or set HOME") from error


# ---- finding -------------------------------------------------------------------------------------------------------------


def find_files(folder: Path, environment: Mapping[str, str]) -> list[Path]:
    """The files that count for a command that is given in ``folder``, the first before the second."""
    folder = folder.absolute()
    above = (place / NAME for place in (folder, *folder.parents))
    near = next((file for file in above if file.is_file()), None)
    own = user_file(environment)
    return [file for file in (near, own) if file is not None and file.is_file()]


def user_file(environment: Mapping[str, str]) -> Path | None:
    """The user's own file, whether it is there or not; None where no home folder is known."""
    home = environment.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(home):  # which the XDG specification says to ignore
        try:
            home = str(Path.home() / ".config")
        except RuntimeError:
            return None
    return Path(home) / USER_FOLDER / USER_NAME


def read_settings(file: Path) -> SettingsFile:
    """What a file says.

    Raises:
        BenchError: no TOML, an unknown key or a value of another kind, with file and line.
    """
    text = read_text(file, "settings", f"the keys that beit3-bench init writes into {NAME}")
    table = parse(text, file)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in ("data", "checkpoints") and isinstance(value, dict):
            for inner, one in value.items():
                _check_place(inner, name, text, file)
                fill_at(Settings, {name: {inner: one}}, text, file, (key, inner))
        elif name in ("data", "checkpoints") and not isinstance(value, str):
            raise BenchError(f"{where(text, file, (key,))}: {key} is neither a path in quotes nor a table of such")
        values |= vars_given(fill_at(Settings, {key: value}, text, file, (key,)), name)
    return SettingsFile(file, Settings(**values))


def vars_given(filled: object, name: str) -> dict[str, Any]:
    """The one field that was filled."""
    return {name: vars(filled)[name]}


def _check_place(key: str, table: str, text: str, file: Path) -> None:
    """Raise if a key of ``[data]`` or ``[checkpoints]`` is no task, and no data set."""
    from beit3_bench.harness.settings.places import data_folders
    from beit3_bench.spelling import did_you_mean

    known = [ROOT, *registry.task_names()]
    known += [name for task in registry.task_names() for name in data_folders(task)] if table == "data" else []
    if key not in known:
        hint = did_you_mean(key, dict.fromkeys(known))
        raise BenchError(f"{where(text, file, (table, key))}: [{table}] has no key {key!r}; {hint}")


# ---- TOML with lines -----------------------------------------------------------------------------------------------------


def parse(text: str, file: Path) -> dict[str, Any]:
    """The table that a text holds.

    Raises:
        BenchError: no TOML, with file and line.
    """
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        why, at = re.subn(r" \(at [^()]*\)", "", str(error)), re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = at[1] if at else len(text.rstrip().split("\n"))
        raise BenchError(f"{file}:{line}: is not valid TOML ({why[0]}); mend it") from error


def fill_at(cls: type[T], values: Mapping[str, Any], text: str, file: Path, key: Sequence[str | int]) -> T:
    """`plain.fill` of values that stand at a key of a TOML text.

    Raises:
        BenchError: what `plain.fill` refuses, with file and line.
    """
    unknown = "{owner}: no key {key!r}; {hint}"
    try:
        return fill(cls, values, str(file), unknown, texts=False)
    except BenchError:
        return fill(cls, values, where(text, file, key), unknown, texts=False)  # raises it with its line


def where(text: str, file: Path, key: Sequence[str | int]) -> str:
    """``file:line`` of a key, by table, index and name; the file alone where the line is not seen."""
    line = line_of(text, key)
    return f"{file}:{line}" if line else str(file)


def line_of(text: str, key: Sequence[str | int]) -> int | None:
    """The line, from 1, in which the value of a key begins: the first without which the text above it does not have it."""
    lines = text.split("\n")
    name = str(next(part for part in reversed(key) if isinstance(part, str)))
    for number, line in enumerate(lines, 1):
        if name not in line or _has("\n".join(lines[: number - 1]), key) is not False:
            continue  # not written here, or inside of a text of several lines
        ends = range(number, min(number + 200, len(lines)) + 1)
        states = (_has("\n".join(lines[:end]), key) for end in ends)
        if next((state for state in states if state is not None), False):
            return number
    return None


def _has(text: str, key: Sequence[str | int]) -> bool | None:
    """Whether a TOML text has a key; None where it is not whole."""
    try:
        value: Any = tomllib.loads(text)
        for part in key:
            value = value[part]
    except (KeyError, IndexError, TypeError):
        return False
    except (tomllib.TOMLDecodeError, RecursionError):
        return None
    return True


def is_setting(origin: str) -> bool:
    """Whether a value was said for all runs, by the environment or a settings file, and not for this one. origin: as cards keep it."""
    return origin.startswith("$") or Path(origin).name in (NAME, USER_NAME)
