"""JSON parsed and written by msgspec: as the standard library does, in a fifth of the time.

What msgspec refuses (NaN, half a character, a number too large), and an object that may hold a key twice, of which it would keep the last,
is left to the caller, who parses it again with the standard library and says what is wrong. So is everything where msgspec is not
installed, as in an image that others have made.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

try:
    import msgspec
except ImportError:
    msgspec = None  # type: ignore[assignment]

Each = Mapping[str, Callable[[Any], Any]]
"""Key of the outermost object -> what takes the place of each record of the list that it holds, as soon as the record is parsed."""

_REFUSED = (ValueError, RecursionError) if msgspec is None else (msgspec.MsgspecError, ValueError, RecursionError)
_ESCAPED = (rb"\u003a", rb"\u003A")
"""A colon as few would write it."""


class NotQuickError(ValueError):
    """The standard library has to look at this text."""


def parse(content: bytes, each: Each | None = None) -> Any:
    """The value of a JSON text in UTF-8, whose objects hold every key once.

    A key that comes twice is found by counting colons: written again, a value that has lost one has fewer of them than its text.

    Args:
        each: of a text of hundreds of megabytes, whose values need not be in memory all at once.

    Raises:
        NotQuickError: no JSON, or one of the above.
    """
    if msgspec is None:
        raise NotQuickError
    try:
        value, colons = _whole(content) if each is None else _record_by_record(content, each)
    except _REFUSED as error:
        raise NotQuickError from error
    _check(content, colons)
    return value


def records(content: bytes, key: str, kind: Any) -> Iterator[Any]:
    """The records of the list that the outermost object of a JSON text holds, one by one.

    Args:
        kind: of a record, a `msgspec.Struct`; text that a `msgspec.Raw` of it holds is not looked into.

    Raises:
        NotQuickError: as `parse`, or records of another kind; at the end, where a key comes twice.
    """
    if msgspec is None:
        raise NotQuickError
    decode, encode = msgspec.json.Decoder(kind).decode, msgspec.json.Encoder().encode
    try:
        parts = _parts(content)
        colons = encode(dict.fromkeys(parts)).count(b":")
        rest = msgspec.json.decode(parts.pop(key), type=list[msgspec.Raw])
        colons += sum(_whole(part)[1] for part in parts.values())
        for raw in rest:
            record = decode(raw)
            colons += encode(record).count(b":")
            yield record
    except (*_REFUSED, KeyError) as error:
        raise NotQuickError from error
    _check(content, colons)


def _check(content: bytes, colons: int) -> None:
    """Raise if an object of the text may hold a key twice. colons: of the parsed value, written again."""
    if colons != content.count(b":") or any(colon in content for colon in _ESCAPED):
        raise NotQuickError


def parse_line(line: bytes) -> Any:
    """The value of a JSON text in UTF-8; of a key that comes twice the last one, as `json.loads` has it.

    Raises:
        NotQuickError: no JSON, or one of the above.
    """
    if msgspec is None:
        raise NotQuickError
    try:
        return msgspec.json.decode(line)
    except _REFUSED as error:
        raise NotQuickError from error


def canonical(value: Any) -> str | None:
    """The text ``json.dumps(value, sort_keys=True, separators=(",", ":"))``; None for what msgspec may write otherwise: all but ASCII,
    whole numbers, true, false and null, and lists and objects of these.
    """
    if msgspec is None:
        return None
    inside: list[Any] = [value]
    for _ in range(_DEEPEST):
        if not inside:
            break
        if not _ALIKE.issuperset(map(type, inside)):
            return None
        inside = gc.get_referents(*inside)  # values of lists and objects, in one call
    else:
        return None
    try:
        content = msgspec.json.encode(value, order="sorted")
    except (*_REFUSED, TypeError):
        return None
    return content.decode("ascii") if content.isascii() and b"\x7f" not in content else None


_ALIKE = frozenset((str, int, bool, type(None), list, tuple, dict))
_DEEPEST = 20
"""Lists and objects inside of each other."""


def _whole(content: bytes | msgspec.Raw) -> tuple[Any, int]:
    """The value, and how many colons it is written with."""
    value = msgspec.json.decode(content)
    return value, msgspec.json.encode(value).count(b":")


def _record_by_record(content: bytes, each: Each) -> tuple[dict[str, Any], int]:
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    parts: dict[str, Any] = _parts(content)
    colons = encode(dict.fromkeys(parts)).count(b":")
    for key, part in parts.items():
        if key not in each:
            parts[key], more = _whole(part)
            colons += more
            continue
        made, values = each[key], []
        for raw in msgspec.json.decode(part, type=list[msgspec.Raw]):
            record = decode(raw)
            colons += encode(record).count(b":")
            values.append(made(record))
        parts[key] = values
    return parts, colons


def _parts(content: bytes) -> dict[str, Any]:
    """What stands behind the keys of the outermost object, not parsed."""
    return {**msgspec.json.decode(content, type=dict[str, msgspec.Raw])}
