"""The hashes that this machine has pinned for files whose authors publish no checksums.

A file's SHA-256 is pinned when it is first seen; every later use is compared with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.files import write_atomic
from beit3_bench.locks import in_turn


def cache_folder() -> Path:
    """Where this user's pins live: ``BEIT3_BENCH_CACHE``, or ``~/.cache/beit3-bench``.

    Raises:
        BenchError: neither is there: no home folder is known, as for the unknown users of a container.
    """
    chosen = os.environ.get("BEIT3_BENCH_CACHE")
    if chosen:
        return Path(chosen)
    try:
        home = Path() if os.environ.get("HOME") == "" else Path.home()
    except RuntimeError:
        home = Path()
    if not home.is_absolute():
        raise BenchError(
            "no home folder is known to keep pinned hashes in; set HOME, or BEIT3_BENCH_CACHE to a writable folder"
        )
    return home / ".cache" / "beit3-bench"


def pins_file() -> Path:
    """The json file of pinned hashes: ``{name: sha256}``."""
    return cache_folder() / "pins.json"


def read_pins() -> dict[str, str]:
    """Pinned hashes by registry name.

    Raises:
        BenchError: the file is damaged.
    """
    path = pins_file()
    try:
        pins = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path}: cannot be read as JSON ({error}); mend it, or delete it to pin anew") from error
    if not isinstance(pins, dict):
        raise BenchError(f"{path}: expected an object of name: sha256; mend it, or delete it to pin anew")
    for name, value in pins.items():
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
            raise BenchError(
                f"{path}: {name!r} is not a sha256 of 64 hex digits; mend it, or delete the entry to pin anew"
            )
    return pins


def sha256_of(path: str | Path) -> str:
    """Hex sha256 of a file.

    Raises:
        BenchError: the file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise BenchError(f"{path}: file not found; check the path, or get it with: beit3-bench download") from error
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); check that it is a readable file") from error


def pin_or_check(path: str | Path, name: str, sha256: str | None = None) -> str:
    """Pin the hash of a released file when it is first seen, compare with the pin afterwards.

    Args:
        path: the file.
        name: its registry name, the key of the pin.
        sha256: its hash, where the caller has it already.

    Returns:
        The hex sha256.

    Raises:
        BenchError: the file differs from the pinned one, or the pins cannot be read or written.
    """
    actual = sha256 or sha256_of(path)
    with _locked_pins():
        pins = read_pins()
        if name not in pins:
            _write_pins({**pins, name: actual})
        elif pins[name] != actual:
            raise BenchError(
                f"{path}: sha256 {actual[:12]}... differs from the one pinned for {name} ({pins[name][:12]}...); "
                f'download it again, or, if this file is the right one, delete the entry "{name}" from {pins_file()}'
            )
    return actual


def _not_writable(error: OSError) -> BenchError:
    return BenchError(
        f"{cache_folder()}: cannot keep pinned hashes here ({error.strerror}); "
        "set BEIT3_BENCH_CACHE to a writable folder"
    )


@contextlib.contextmanager
def _locked_pins() -> Iterator[None]:
    """Processes that pin at the same time take turns, so that no pin is lost."""
    with contextlib.ExitStack() as stack:
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            stack.enter_context(in_turn(cache_folder() / "pins.lock"))
        except OSError as error:
            raise _not_writable(error) from error
        yield


def _write_pins(pins: dict[str, str]) -> None:
    try:
        write_atomic(pins_file(), (json.dumps(pins, indent=2, sort_keys=True) + "\n").encode())
    except BenchError as error:
        if isinstance(error.__cause__, OSError):
            raise _not_writable(error.__cause__) from error
        raise
