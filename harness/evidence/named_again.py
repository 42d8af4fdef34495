"""A run folder may be somebody else's: what its card names outside of the folder is opened, or executed, only where the
command line names it again.

From the card alone come numbers, switches, names of tasks and splits, and words that name no file here. Checkpoint, data,
tokenizer, and options that may be files are asked for, with the command that the card amounts to.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Task

_PLAIN = {int, float, bool, type(None)}
_WORD = re.compile(r"[A-Za-z0-9_-]+")

Place = TypeVar("Place", bound=str | Path)


@dataclasses.dataclass
class Asked:
    """What a command has to name, and what it was given. ``words`` fills in the card's values where nothing is given."""

    words: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)

    def place(self, option: str, given: Place | None, recorded: Any) -> Place | None:
        """The place that was given for an option; else it is missing."""
        if given is None:
            self.missing.append(option)
        self.words += [option, str(recorded if given is None else given)]
        return given

    def options(self, task: type[Task], recorded: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
        """Options of a task: those that cannot be files as recorded, all others as given, among them ones of its scoring alone.

        Raises:
            BenchError: one that the run did not have, or that the task does not know.
        """
        known_names = {*map(_plain_name, recorded), *task.scoring_options}
        strange = [key for key in given if _plain_name(key) not in known_names]
        if strange:
            raise BenchError(f"-o {strange[0]}: the run had no such option; leave it out")
        kinds = get_type_hints(task.Options)
        known = {_plain_name(key): value for key, value in given.items()}
        fresh = known.keys() - set(map(_plain_name, recorded))
        chosen = {name: known[name] for name in sorted(fresh)}
        self.words += [word for name, value in chosen.items() for word in ("-o", f"{name}={value}")]
        for key, text in recorded.items():
            name = _plain_name(key)
            kind = kinds.get(name)
            if name in known:
                chosen[key] = known[name]
            elif _no_file(kind, text):
                chosen[key] = text
            else:
                self.missing.append(f"-o {key}")
            if name in known or key not in chosen:
                self.words += ["-o", f"{key}={known.get(name, text)}"]
        return chosen

    def check(self, folder: Path, command: list[str], warning: str = "") -> None:
        """Raise if something was not named.

        Args:
            command: its first words.  warning: a sentence more.

        Raises:
            BenchError: what is missing, and the whole command.
        """
        if self.missing:
            raise BenchError(
                f"{folder}: a run folder may be somebody else's, so nothing that its card names is opened unless you name "
                f"it, too ({', '.join(self.missing)}); look at these values, and if they are right, give: "
                f"{shlex.join([*command, *self.words])}{warning}"
            )


def _no_file(kind: Any, text: str) -> bool:
    """Whether an option of a type is a number, a switch, or a word that names nothing in this folder."""
    kinds = set(getattr(kind, "__args__", (kind,)))
    if kinds <= _PLAIN:
        return True
    return kinds <= {*_PLAIN, str} and _WORD.fullmatch(text) is not None and not os.path.lexists(text)


def _plain_name(key: str) -> str:
    return key.replace("-", "_")
