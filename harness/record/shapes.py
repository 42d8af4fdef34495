"""What a file of ours says, held against the type that describes it (see `schema`)."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from beit3_bench.errors import BenchError


def check_shape(value: Any, shape: Any, where: str, mend: str) -> None:
    """Raise if a parsed JSON value has not the shape that it was written with.

    Args:
        shape: a type annotation: a TypedDict, a ``list[...]``, ``dict[str, ...]``, ``Literal[...]``, class or union of these,
            where float takes whole numbers, too, and Any takes everything; or a mapping of some keys to their shapes.
        where: names file and place.  mend: what to do about it.

    Raises:
        BenchError: a missing key, a value of another kind or none of those to choose from, or a number that is not finite.
    """
    shape_check(shape, mend)(value, where)


def shape_check(shape: Any, mend: str) -> Callable[[Any, str], None]:
    """`check_shape` for many values of one shape, of which each is given with its ``where``."""
    check = _check_of(shape)

    def checked(value: Any, where: str) -> None:
        try:
            if check is not None:
                check(value)
        except _Misfit as misfit:
            raise BenchError(f"{misfit.told(where + misfit.below)}; {mend}") from None

    return checked


_Check = Callable[[Any], None]
"""Raises `_Misfit`. Annotations are taken apart once for all values that they are held against, and places named for a misfit alone:
a list of runs checks a hundred values a file.
"""
_JSON: tuple[Any, ...] = ("", 0, 0.0, False, None, [], {})
"""A value of every type that the parser makes."""
_NAMES = {type(None): "null", float: "number"}


class _Misfit(Exception):
    """told: of the place of the value, what is wrong with it.  below: that place, below the value that was checked."""

    def __init__(self, told: Callable[[str], str]):
        super().__init__()
        self.told, self.below = told, ""


def _check_of(shape: Any) -> _Check | None:
    """The check of values of a shape; None where everything fits."""
    if shape is Any:
        return None
    shapes = get_args(shape) if get_origin(shape) in (Union, types.UnionType) else (shape,)
    choices = [(_outer(one), _check_inside(one)) for one in shapes]

    def fitting(value: Any) -> tuple[type, _Check | None] | None:
        return next((choice for choice in choices if _is_kind(value, choice[0])), None)

    usual = {type(value): choice[1] for value in _JSON if (choice := fitting(value)) is not None}

    def check(value: Any) -> None:
        kind = type(value)
        if kind in usual:
            inside = usual[kind]
        elif (choice := fitting(value)) is not None:
            inside = choice[1]
        else:
            raise _Misfit(partial(_of_another_kind, value, [kind for kind, _ in choices]))
        if inside is not None:
            inside(value)

    return check


def _of_another_kind(value: Any, kinds: Sequence[type], where: str) -> str:
    names = " or ".join(dict.fromkeys(_NAMES.get(kind, kind.__name__) for kind in kinds))
    file, _, key = where.rpartition(": ")
    place = f"{file}: key {key!r}" if file else where
    return f"{place} holds {_short(value)} of another kind than expected ({names})"


def _outer(shape: Any) -> type:
    """The class of a value of a shape, whatever is inside; object for a ``Literal``."""
    if isinstance(shape, Mapping) or is_typeddict(shape):
        return dict
    return object if get_origin(shape) is Literal else get_origin(shape) or shape


def _is_kind(value: Any, kind: type) -> bool:
    if isinstance(value, bool):  # which Python counts among the whole numbers
        return kind in (bool, object)
    return isinstance(value, (int, float) if kind is float else kind)


def _check_inside(shape: Any) -> _Check | None:
    """The check of what is inside a value whose class fits; None where that says all."""
    if is_typeddict(shape):
        return _check_of_keys(shape)
    if isinstance(shape, Mapping):
        return _check_keys({key: (_check_of(inner), True) for key, inner in shape.items()})
    if shape is float:
        return _check_size
    origin, inner = get_origin(shape), get_args(shape)
    if origin is Literal:
        return partial(_check_choice, inner)
    if origin not in (dict, list) or (check := _check_of(inner[-1])) is None:
        return None
    return partial(_check_values if origin is dict else _check_items, check)


def _check_size(value: float) -> None:
    if not -1e300 < value < 1e300:
        raise _Misfit(lambda where: f"{where} is not a finite number of a usual size")


def _check_choice(choices: Sequence[Any], value: Any) -> None:
    if value not in choices:
        raise _Misfit(partial(_no_choice, value, choices))


def _no_choice(value: Any, choices: Sequence[Any], where: str) -> str:
    file, _, key = where.rpartition(": ")
    what = f"neither {choices[0]} nor {choices[1]}" if len(choices) == 2 else f"none of {', '.join(choices)}"
    return f"{file}: {key} {_short(value)} is {what}"


def _check_values(check: _Check, value: Mapping[str, Any]) -> None:
    for key, item in value.items():
        try:
            check(item)
        except _Misfit as misfit:
            misfit.below = f"[{key[:40]!r}]{misfit.below}"
            raise


def _check_items(check: _Check, value: Sequence[Any]) -> None:
    for number, item in enumerate(value):
        try:
            check(item)
        except _Misfit as misfit:
            misfit.below = f"[{number}]{misfit.below}"
            raise


def _check_keys(keys: Mapping[str, tuple[_Check | None, bool]]) -> _Check:
    """keys: the check of each, and whether it has to be there."""

    def check(value: Mapping[str, Any]) -> None:
        for key, (inner, required) in keys.items():
            if key not in value:
                if required:
                    raise _Misfit(partial("{1}: key {0!r} is missing".format, key))
            elif inner is not None:
                try:
                    inner(value[key])
                except _Misfit as misfit:
                    misfit.below = f": {key}{misfit.below}"
                    raise

    return check


@cache
def _check_of_keys(shape: Any) -> _Check:
    """Of a TypedDict."""
    keys = {}
    for key, kind in get_type_hints(shape, include_extras=True).items():
        optional = get_origin(kind) is NotRequired
        keys[key] = (_check_of(get_args(kind)[0] if optional else kind), shape.__total__ and not optional)
    return _check_keys(keys)


def _short(value: Any) -> str:
    try:
        return repr(str(value)[:40])
    except ValueError:  # a whole number of more digits than Python converts
        return "a number of thousands of digits"
