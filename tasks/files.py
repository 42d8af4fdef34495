"""Reading dataset files: every failure is one line that names the file, the key and the mend."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from beit3_bench.backbones.archives.members import exists
from beit3_bench.errors import BenchError
from beit3_bench.files import replacing, write_atomic
from beit3_bench.garbage import collection_paused
from beit3_bench.tasks.quick_json import Each, NotQuickError, parse


def read_text(path: str | Path, what: str, form: str | None = None) -> str:
    """The text of a UTF-8 file, without byte order mark, its lines ended by a line feed alone.

    Args:
        what: says in words which file this is, e.g. ``"Karpathy split"``.
        form: of a file that people write themselves, what is expected in it; None for a file that is downloaded. The mend in
            messages follows from it.

    Raises:
        BenchError: missing, unreadable, or in another encoding, which is named.
    """
    content, encoding = _read(Path(path), what, form)
    return _decoded(content, encoding, path, what, form)


def _read(path: Path, what: str, form: str | None) -> tuple[bytes, str]:
    """The bytes of a file, and their encoding as `detect_encoding` has it, UTF-8 with or without a mark."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        place = "check its name" if form else "check --data-root (see: beit3-bench tasks)"
        raise BenchError(f"{path}: {what} file not found; {place}") from error
    except IsADirectoryError as error:
        raise BenchError(f"{path}: is a folder, but the {what} file is expected here; {_mend(what, form)}") from error
    except MemoryError as error:
        raise BenchError(f"{path}: {what} file does not fit into memory; {_mend(what, form)}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise BenchError(
            f"{path}: cannot be read ({getattr(error, 'strerror', error)}); check its permissions"
        ) from error
    kind = next((kind for sign, kind in _NO_TEXT.items() if content.startswith(sign)), None)
    if kind is not None:
        raise BenchError(f"{path}: {kind[0]}, but the {what} file is text; {kind[1]}")
    if content and not content.strip(b"\0"):
        raise BenchError(f"{path}: holds zero bytes only; {_mend(what, form)}")
    encoding = detect_encoding(content)
    if not encoding.startswith("utf-8"):
        origin = " (PowerShell's > writes such files)" if encoding.startswith("utf-16") else ""
        raise BenchError(f"{path}: is {encoding[:6].upper()} text{origin}; save it as UTF-8")
    return content, encoding


def read_utf8(path: str | Path, what: str) -> bytes:
    """The bytes of a file, without byte order mark, of which nobody has looked yet whether they are UTF-8; as `read_text`."""
    return _read(Path(path), what, None)[0].removeprefix(codecs.BOM_UTF8)


def _decoded(content: bytes, encoding: str, path: str | Path, what: str, form: str | None) -> str:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        mend = "save it as UTF-8" if form else f"save it as UTF-8, or get the {what} file again"
        raise BenchError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); {mend}") from error
    return text if "\r" not in text else text.replace("\r\n", "\n").replace("\r", "\n")


_NO_TEXT = {  # first bytes -> what a file is instead, and the mend
    b"\x1f\x8b": ("is compressed with gzip", "unpack it"),
    b"PK\x03\x04": ("is a zip archive", "unpack it"),
    b"version https://git-lfs": ("is a Git LFS pointer", "fetch the file with git lfs pull"),
    b"\x93NUMPY": ("is an array of numpy", "give the right file"),
    b"%PDF": ("is a PDF file", "give the right file"),
}


def detect_encoding(content: bytes) -> str:
    """``"utf-8"``, ``"utf-8-sig"`` (with a byte order mark), or Python's name of a UTF-16 or UTF-32, by the mark or by where
    zero bytes stand between ASCII (RFC 4627, section 3).
    """
    encoding = json.detect_encoding(content[:4]) if content else "utf-8"
    if encoding[-2:] in ("le", "be") and not content[:200].replace(b"\0", b"").isascii():
        return "utf-8"  # no mark, and no such text: the decoder will say where it is wrong
    return encoding


def _mend(what: str, form: str | None) -> str:
    return f"expected {form}" if form else f"mend it, or get the {what} file again"


def read_json(path: str | Path, what: str, form: str | None = None, each: Each | None = None) -> Any:
    """Parse a JSON file; arguments as of `read_text`.

    Args:
        each: of a file of hundreds of megabytes, leaves out what nobody reads of the records of a list, and makes one object of equal
            ones.

    Raises:
        BenchError: no such file, no JSON, NaN or infinity, a key that comes twice in an object.
    """
    content, encoding = _read(Path(path), what, form)
    with suppress(NotQuickError), collection_paused():
        return parse(content.removeprefix(codecs.BOM_UTF8), each)
    value = _json(_decoded(content, encoding, path, what, form), path, what, form)
    for key, made in (each or {}).items():
        if isinstance(value, dict) and isinstance(value.get(key), list):
            value[key] = [made(record) for record in value[key]]
    return value


def _json(text: str, path: str | Path, what: str, form: str | None) -> Any:
    try:
        return _parse(text, str(path))
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _is_json(text.split("\n", 1)[0]):
            why = "holds several JSON values, one a line"
        else:
            why = "is empty" if not text.strip() else f"not valid JSON ({error.msg})"
        raise BenchError(f"{path}:{error.lineno}: {why}; {_mend(what, form)}") from error
    except RecursionError as error:
        raise BenchError(f"{path}: nested too deeply to be a {what} file; {_mend(what, form)}") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise BenchError(f"{path}: holds a number of thousands of digits; {_mend(what, form)}") from error


def read_json_lines(path: str | Path, what: str, form: str | None = None) -> list[tuple[int, Any]]:
    """Parse a file of one JSON value per line: (line number from 1, value); blank lines are skipped.

    Raises:
        BenchError: as `read_json`.
    """
    return _json_lines(read_text(path, what, form), path, what, form)


def _json_lines(text: str, path: str | Path, what: str, form: str | None) -> list[tuple[int, Any]]:
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        try:
            values.append((number, _parse(line, source)))
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep, or a number too long"
            whole = number == 1 and line.lstrip().startswith(("[", "{")) and _is_json(text)
            why = "is one JSON value over several lines" if whole else f"not valid JSON ({reason})"
            mend = f"expected {form}" if form else "expected one JSON object a line; mend or remove this line"
            raise BenchError(f"{source}: {why}; {mend}") from error
    return values


def read_records(path: str | Path, what: str, form: str) -> list[Any]:
    """The records of a result file: a JSON list, or one JSON object per line.

    Raises:
        BenchError: as `read_json`; something else than a list, naming the key that holds one.
    """
    text = read_text(path, what, form)
    start = text.strip()
    if start.startswith("{") and "\n" in start and _is_json(start[: start.index("\n")]):
        return [record for _, record in _json_lines(text, path, what, form)]
    content = _json(text, path, what, form)
    if isinstance(content, list):
        return content
    keys = content if isinstance(content, dict) else {}
    lists = [key for key, value in keys.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    why = f", whose key {lists[0][:40]!r} holds a list: write that list alone" if len(lists) == 1 else ""
    kind = "an object" if isinstance(content, dict) else f"{json.dumps(content):.40}"
    raise BenchError(f"{path}: holds {kind}{why}; {_mend(what, form)}")


def read_csv(path: str | Path, what: str, form: str | None = None) -> list[tuple[int, list[str]]]:
    """Parse a file of comma-separated values: (line number from 1, cells); blank lines are skipped.

    Raises:
        BenchError: as `read_text`; a line that is no CSV.
    """
    lines = csv.reader(io.StringIO(read_text(path, what, form), newline=""))
    rows = []
    try:
        for cells in lines:
            if any(cell.strip() for cell in cells):
                rows.append((lines.line_num, cells))
    except csv.Error as error:
        raise BenchError(f"{path}:{lines.line_num}: cannot be read as csv ({error}); {_mend(what, form)}") from error
    return rows


@collection_paused()
def _parse(text: str, source: str) -> Any:
    def reject(name: str) -> Any:
        raise BenchError(f"{source}: holds {name}, which is not valid JSON; write finite numbers only")

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BenchError(f"{source}: key {twice[:40]!r} comes twice in one object; keep one of them")
        return record

    return json.loads(text, parse_constant=reject, object_pairs_hook=unique_keys)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_atomic(path, json.dumps(value, ensure_ascii=False).encode())


def write_json_list(path: Path, values: Iterable[Any]) -> None:
    """As `write_json`, of a list whose text need not be in memory as a whole."""
    rest = iter(values)
    with replacing(path) as file:
        file.write(b"[")
        between = b""
        while block := list(islice(rest, _BLOCK)):
            file.write(between + json.dumps(block, ensure_ascii=False)[1:-1].encode())
            between = b", "
        file.write(b"]")


_BLOCK = 10_000  # values written at a time


def look_for(root: Path, name: str, folders: Sequence[str]) -> Path | None:
    """First existing ``root/FOLDER/name``, or None."""
    return next((place for folder in folders if (place := root / folder / name).exists()), None)


def find(root: Path, name: str, folders: Sequence[str], what: str) -> Path:
    """First existing ``root/FOLDER/name``.

    Raises:
        BenchError: none exists; names the first place that was looked at.
    """
    places = [root / folder / name for folder in folders]
    place = look_for(root, name, folders)
    if place is not None:
        return place
    raise BenchError(
        f"{places[0]}: {what} not found (nor in {len(places) - 1} other places); check --data-root (see: beit3-bench tasks)"
    )


def field(record: Any, key: str, kind: type | tuple[type, ...], source: str) -> Any:
    """``record[key]``, checked for presence and type.  ``source`` names file and record (``"x.json: images[3]"``)."""
    value = _value(record, key, source)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(k.__name__ for k in kinds)
        raise _wrong_kind(value, key, names, source)
    if isinstance(value, str) and not value.isascii() and not _is_text(value):
        raise BenchError(f"{source}: {key!r} holds half a character (a lone surrogate); write it as proper Unicode")
    return value


def whole_number(record: Any, key: str, source: str) -> int:
    """``record[key]`` as a whole number: 7, 7.0 and "7" alike, since tools in many languages write ids."""
    if type(record) is dict and type(value := record.get(key)) is int:  # nearly always
        return value
    value = _value(record, key, source)
    number = _whole(value)
    if number is None:
        raise _wrong_kind(value, key, "int (a whole number)", source)
    return number


def identifier(record: Any, key: str, source: str) -> str:
    """``record[key]`` as the text of an id: a string, or a whole number written as 7 or 7.0."""
    value = _value(record, key, source)
    if isinstance(value, str):
        return field(record, key, str, source)
    number = _whole(value)
    if number is None:
        raise _wrong_kind(value, key, "str or int (a whole number)", source)
    return str(number)


def _value(record: Any, key: str, source: str) -> Any:
    if not isinstance(record, dict):
        raise BenchError(
            f"{source}: expected an object with key {key!r}, found {type(record).__name__}; is this the right file?"
        )
    if key not in record:
        keys = ", ".join(map(repr, list(record)[:5])) or "none"
        raise BenchError(f"{source}: key {key!r} is missing (found: {keys[:200]}); is this the right file?")
    return record[key]


def _wrong_kind(value: Any, key: str, wanted: str, source: str) -> BenchError:
    return BenchError(
        f"{source}: {key!r} should be {wanted}, found {type(value).__name__} ({str(value)[:40]!r}); mend this record"
    )


def _whole(value: Any) -> int | None:
    """The whole number that a JSON value says, up to 2**53 where it is a float (from there on neighbours are one)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if abs(value) <= 2**53 and value == int(value) else None
    if isinstance(value, str) and len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    return None


def _is_text(value: str) -> bool:
    """Whether a string can be written to a file: JSON may hold surrogates, UTF-8 may not."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def unique(ids: Iterable[Any], source: str, what: str) -> None:
    """Raise if an id comes twice."""
    seen = set()
    for i in ids:
        if i in seen:
            raise BenchError(f"{source}: {what} {i} is listed twice; remove the duplicate")
        seen.add(i)


def check_images(paths: Iterable[str], data_root: Path) -> None:
    """Raise if image files are missing: counts them and names the first five."""
    distinct = list(dict.fromkeys(paths))
    missing = [p for p in distinct if not exists(p)]  # False, too, for names that no file can have
    if missing:
        names = ", ".join(name[:200] for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise BenchError(
            f"{len(missing)} of {len(distinct)} image files are missing below {data_root}: {names}; download them first"
        )
