"""Reading dataset files: every failure is one line that names the file, the key and the mend."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.files import write_atomic


def read_json(path: str | Path, what: str) -> Any:
    """Parse a JSON file.  ``what`` says in words which file this is, e.g. ``"Karpathy split"``."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BenchError(f"{path}: {what} file not found; check --data-root (see: beit3-bench tasks)") from error
    except IsADirectoryError as error:
        raise BenchError(f"{path}: is a folder, but the {what} file is expected here") from error
    except UnicodeDecodeError as error:
        raise BenchError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); download the {what} again"
        ) from error
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    try:
        return json.loads(text, parse_constant=lambda name: _reject(path, name))
    except json.JSONDecodeError as error:
        raise BenchError(
            f"{path}:{error.lineno}: not valid JSON ({error.msg}); the {what} file looks truncated or edited, get it again"
        ) from error
    except RecursionError as error:
        raise BenchError(f"{path}: nested too deeply to be a {what} file; get it again") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise BenchError(f"{path}: holds a number of thousands of digits; get the {what} file again") from error


def _reject(path: Path, name: str) -> Any:
    raise BenchError(f"{path}: holds {name}, which is not valid JSON; write finite numbers only")


def read_json_lines(path: str | Path, what: str) -> list[tuple[int, Any]]:
    """Parse a file of one JSON value per line: (line number from 1, value); blank lines are skipped."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise BenchError(f"{path}: {what} file not found; check --data-root (see: beit3-bench tasks)") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path}: cannot be read as text ({error}); get the {what} file again") from error
    values = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values.append((number, json.loads(line, parse_constant=lambda name: _reject(path, name))))
        except (ValueError, RecursionError) as error:
            raise BenchError(f"{path}:{number}: not valid JSON ({error}); mend or remove this line") from error
    return values


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_atomic(path, json.dumps(value, ensure_ascii=False).encode())


def find(root: Path, name: str, folders: Iterable[str], what: str) -> Path:
    """First existing ``root/FOLDER/name``.

    Raises:
        BenchError: none exists; names the first place that was looked at.
    """
    places = [root / folder / name for folder in folders]
    for place in places:
        if place.exists():
            return place
    raise BenchError(
        f"{places[0]}: {what} not found (nor in {len(places) - 1} other places); check --data-root (see: beit3-bench tasks)"
    )


def field(record: Any, key: str, kind: type | tuple[type, ...], source: str) -> Any:
    """``record[key]``, checked for presence and type.  ``source`` names file and record (``"x.json: images[3]"``)."""
    if not isinstance(record, dict):
        raise BenchError(f"{source}: expected an object, found {type(record).__name__}; is this the right file?")
    if key not in record:
        raise BenchError(f"{source}: key {key!r} is missing; is this the official file?")
    value = record[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(k.__name__ for k in kinds)
        raise BenchError(f"{source}: {key!r} should be {names}, found {type(value).__name__} ({str(value)[:40]!r})")
    if isinstance(value, str) and not value.isascii() and not _is_text(value):
        raise BenchError(f"{source}: {key!r} holds half a character (a lone surrogate); write it as proper Unicode")
    return value


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
    missing = [p for p in distinct if not os.path.isfile(p)]  # False, too, for names that no file can have
    if missing:
        names = ", ".join(name[:200] for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise BenchError(
            f"{len(missing)} of {len(distinct)} image files are missing below {data_root}: {names}; download them first"
        )
