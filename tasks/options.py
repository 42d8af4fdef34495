"""A task's options, ``-o key=value``, as a dataclass."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from typing import Any

from beit3_bench.plain import fill


def option_names(cls: type) -> set[str]:
    """Names of the options of a dataclass."""
    return {f.name for f in dataclasses.fields(cls)}


def parse_options(cls: type, values: Mapping[str, str], owner: str) -> Any:
    """Fill an options dataclass from ``key=value`` strings, converting by the field's type.

    Raises:
        BenchError: unknown key (with the nearest known one) or a value that does not convert.
    """
    return fill(cls, values, owner)


def option_help(cls: type) -> dict[str, str]:
    """What each option of a dataclass means, from its docstring and those of dataclasses that it adds to; options that none names are left
    out.

    An entry ``name: meaning.``, or ``name, name: meaning.`` of several options, begins a line or stands behind two spaces, and
    goes on in the next lines up to another entry or an empty line.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    meanings: dict[str, str] = {}
    entry: list[str] = []
    documents = [base.__doc__ or "" for base in reversed(cls.__mro__) if dataclasses.is_dataclass(base)]
    for line in "\n\n".join(map(inspect.cleandoc, documents)).splitlines():
        for piece in re.split(r" {2,}", line):
            head, colon, meaning = piece.partition(": ")
            if colon and names.issuperset(named := head.split(", ")):
                entry, piece = named, meaning
                meanings |= dict.fromkeys(named, "")
            elif not piece:
                entry = []
            meanings |= {name: f"{meanings[name]} {piece}".strip() for name in entry}
    return meanings
