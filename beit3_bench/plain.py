"""Dataclasses from plain values: what JSON, TOML and ``key=value`` of the command line hold, read by the fields' types."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from beit3_bench.errors import BenchError
from beit3_bench.spelling import did_you_mean

T = TypeVar("T")
SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
"""How a switch is written on the command line, in any case."""
_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}


def fill(
    cls: type[T],
    values: Mapping[str, Any],
    owner: str,
    unknown: str = "{owner} has no option {key!r}; {hint}",
    whole: bool = False,
    texts: bool = True,
) -> T:
    """An instance of a dataclass, with each value converted to its field's type, or refused.

    A type is bool, int, float (finite), str, `Path`, a ``Literal``, another dataclass, or a tuple, list, ``Mapping`` from
    text or union of these; ``Any`` takes what is there.

    Args:
        values: field name, with ``-`` or ``_``, -> plain value or text.
        owner: whose values they are; each message begins with it.
        unknown: message about an unknown key, made of ``owner``, ``key``, ``hint`` (what it may have meant) and ``known``.
        whole: whether fields with defaults must be given, too, as in a file that once was written whole.
        texts: whether texts stand for numbers and switches, too, and with commas for tuples and lists, as on the command line.

    Raises:
        BenchError: no mapping, an unknown key, a value of another kind, a missing one, or what the class itself refuses, be it
            by a ValueError.
    """
    return _Reader(unknown, texts).fill(cls, values, owner, whole)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """unknown, texts: as `fill` takes them."""

    unknown: str
    texts: bool

    def fill(self, cls: type[T], values: Any, owner: str, whole: bool = False) -> T:
        if not isinstance(values, Mapping):
            raise BenchError(f"{owner}: {_short(values)} is not a table of names and values")
        fields = _fields_of(cls)  # type: ignore[arg-type]
        converted: dict[str, Any] = {}
        for key, value in values.items():
            name = str(key).replace("-", "_")
            if name not in fields:
                hint = did_you_mean(name, fields)
                raise BenchError(
                    self.unknown.format(owner=owner, key=key, hint=hint, known=f"known: {', '.join(fields)}")
                )
            if name in converted:
                raise BenchError(f"{owner}: {name} is given twice, with - and with _; give it once")
            converted[name] = self.convert(value, fields[name][0], f"{owner}: {key}")
        for name, (_, required) in fields.items():
            if (whole or required) and name not in converted:
                raise BenchError(f"{owner}: {name} is missing")
        try:
            return cls(**converted)
        except ValueError as error:
            raise BenchError(f"{owner}: {error}") from error

    def convert(self, value: Any, kind: Any, owner: str) -> Any:
        """A plain value, or a text that stands for one, as the type ``kind`` of a field."""
        if kind is Any:
            return value
        if dataclasses.is_dataclass(kind):
            return self.fill(kind, value, owner)  # type: ignore[arg-type]
        origin, parts = get_origin(kind), get_args(kind)
        if origin in (Union, types.UnionType):
            return self._one_of(value, parts, owner)
        if origin is Literal:
            kinds = (str,) if self.texts else ()
            choice = next((c for c in parts if type(value) in (type(c), *kinds) and str(c) == str(value)), None)
            if choice is None:
                raise BenchError(f"{owner}: {_short(value)}; choose one of: {', '.join(map(str, parts))}")
            return choice
        if issubclass(origin or kind, Mapping):
            if not isinstance(value, Mapping):
                raise BenchError(f"{owner}: {_short(value)} is not a table of names and values")
            of_values = parts[1] if parts else Any
            return {str(name): self.convert(item, of_values, f"{owner}: {name}") for name, item in value.items()}
        if origin in (tuple, list):
            return origin(self._items(value, origin, parts, owner))
        if isinstance(value, str) and not self.texts and kind not in (str, Path):
            raise BenchError(f"{owner}: {_short(value)} is not a {_KINDS[kind]}; write it without quotes")
        return _scalar(value, kind, owner)

    def _one_of(self, value: Any, kinds: tuple[Any, ...], owner: str) -> Any:
        """The value as the first type of a union that takes it."""
        if value is None and type(None) in kinds:
            return None
        refusals = []
        for kind in kinds:
            if kind is not type(None):
                try:
                    return self.convert(value, kind, owner)
                except BenchError as error:
                    refusals.append(error)
        raise refusals[0]

    def _items(self, value: Any, origin: type, parts: tuple[Any, ...], owner: str) -> list[Any]:
        """The items of a list, of a tuple of any length (``tuple[X, ...]``) or of a certain one."""
        split = isinstance(value, str) and self.texts
        items = [part.strip() for part in value.split(",") if part.strip()] if split else value
        of_any_length = origin is list or parts[-1] is Ellipsis
        if not isinstance(items, (list, tuple)) or not (of_any_length or len(items) == len(parts)):
            number = {True: "list", 2: "pair"}.get(of_any_length or len(parts), f"list of {len(parts)}")
            things = "numbers such as 0.9,0.98" if parts[0] in (int, float) else "values with commas between"
            things = things if self.texts else "values in brackets"
            raise BenchError(f"{owner}: {_short(value)} is not a {number} of {things}")
        kinds = [parts[0]] * len(items) if of_any_length else parts
        owners = [f"{owner} {n}" if isinstance(item, Mapping) else owner for n, item in enumerate(items, 1)]
        return [self.convert(*arguments) for arguments in zip(items, kinds, owners, strict=True)]


@cache
def _fields_of(cls: type) -> dict[str, tuple[Any, bool]]:
    """Field -> its type, and whether it has to be given."""
    hints = get_type_hints(cls)
    return {
        f.name: (hints[f.name], f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
        for f in dataclasses.fields(cls)
        if f.init
    }


def _scalar(value: Any, kind: type, owner: str) -> Any:
    try:
        if kind is bool:
            return value if isinstance(value, bool) else SWITCHES[value.lower()]
        if kind is int and not isinstance(value, bool):
            return _whole_number(value)
        if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            if math.isfinite(number := float(value)):
                return number
        elif kind is str and isinstance(value, str):
            return value
        elif kind is Path and isinstance(value, (str, Path)):
            return Path(value)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        pass
    raise BenchError(f"{owner}: {_short(value)} is not a {_KINDS[kind]}")


def _whole_number(value: Any) -> int:
    """10, 10.0, "10" and "1e1"."""
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            value = float(value)
    if not isinstance(value, (int, float)) or value != int(value):
        raise ValueError
    return int(value)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python converts
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
