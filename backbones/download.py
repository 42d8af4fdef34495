"""Fetch a large file over http(s): resumable, verified, and renamed into place only when it is whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.weights import sha256_of

CHUNK = 1 << 20
RETRIES = 5
TIMEOUT = 30.0
PAUSE = 1.0
"""Seconds before the first retry; doubled each time."""

Progress = Callable[[int, int | None], None]
"""Called with bytes on disk so far and the total, where the server tells it."""

_MAY_COME_BACK = {408, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """The transfer broke off; what has arrived is kept."""


@dataclass
class _Reply:
    """What the server's answer says: where its body starts, how long the whole file is, and which version it is."""

    start: int
    total: int | None
    version: str


def download(
    url: str,
    target: str | Path,
    sha256: str | None = None,
    progress: Progress | None = None,
    retries: int = RETRIES,
    pause: float = PAUSE,
    timeout: float = TIMEOUT,
) -> Path:
    """Download ``url`` to ``target``.

    Bytes go to ``target.part``; a later call continues from there, if the server still has the same version of the file
    (ETag or Last-Modified) and serves ranges, and starts again otherwise. A target that exists is complete: it is only
    verified.

    Args:
        sha256: expected hash in hex; None checks the size that the server announces only.
        retries: how often in a row a transfer may break without a byte arriving.
        pause: seconds before the first retry, doubled each time.
        timeout: seconds without a byte after which a transfer counts as broken.

    Returns:
        The target.

    Raises:
        BenchError: refused by the server, broken off too often, another size or hash than expected, no space, or
            another process is downloading the same file.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise BenchError(f"{url}: not an address; give one that starts with https://")
    target = Path(target)
    part, version_file = _beside(target, ".part"), _beside(target, ".part.version")
    if target.exists():
        if wrong := _difference(target, sha256):
            raise BenchError(f"{wrong}; move it away and try again")
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = open(part, "a+b")  # noqa: SIM115
    except OSError as error:
        raise BenchError(f"{part}: cannot be written ({error.strerror}); choose another folder") from error
    with stream, _sole_writer(stream, part):
        failures = 0
        while True:
            before = part.stat().st_size
            try:
                _transfer(url, stream, version_file, progress, timeout)
                break
            except _Interrupted as reason:
                stream.flush()
                moved = part.stat().st_size > before  # a transfer that moves on may break as often as it likes
                failures = 1 if moved else failures + 1
                if failures > retries:
                    raise BenchError(
                        f"{url}: broke off {failures} times without a byte more ({reason}); {part} keeps what has "
                        "arrived, give the same command again to continue"
                    ) from reason
                time.sleep(pause * 2 ** (failures - 1))
        stream.flush()
        if wrong := _difference(part, sha256):
            part.unlink()
            version_file.unlink(missing_ok=True)
            raise BenchError(f"{wrong}; deleted it, try again")
        os.fsync(stream.fileno())
        os.replace(part, target)
    version_file.unlink(missing_ok=True)
    return target


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextlib.contextmanager
def _sole_writer(stream: BinaryIO, part: Path) -> Iterator[None]:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BenchError(f"{part}: another process is downloading this file; wait for it to finish") from error
    yield  # the lock goes with the file handle


def _transfer(url: str, stream: BinaryIO, version_file: Path, progress: Progress | None, timeout: float) -> None:
    """Append what is missing to ``stream``."""
    have = stream.seek(0, os.SEEK_END)
    version = version_file.read_text(encoding="utf-8") if have and version_file.exists() else ""
    if have and not version:  # nothing says which version of the file these bytes are of
        have = _restart(stream)
    request = urllib.request.Request(url, headers={"User-Agent": "beit3-bench", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            reply = _read_reply(response, url)
            if reply.start != have:
                if reply.start:
                    raise BenchError(f"{url}: the server sent another part than asked for; try another --base-url")
                have = _restart(stream)
            version_file.write_text(reply.version, encoding="utf-8")
            _check_space(version_file.parent, have, reply.total)
            _receive(response, stream, have, reply.total, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing behind what we have: complete, or another file
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            _restart(stream)
            raise _Interrupted("the partial file is longer than the file") from error
        if error.code in _MAY_COME_BACK:
            raise _Interrupted(f"HTTP {error.code} {error.reason}") from error
        raise BenchError(
            f"{url}: the server says {error.code} {error.reason}; check the name, or give a mirror with --base-url"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BenchError(
                f"{stream.name}: the disk is full; free some space and give the same command again"
            ) from error
        raise _Interrupted(str(getattr(error, "reason", None) or error)) from error
    except http.client.HTTPException as error:
        raise _Interrupted(f"{type(error).__name__}: {error}") from error


def _restart(stream: BinaryIO) -> int:
    stream.seek(0)
    stream.truncate()
    return 0


def _read_reply(response: Any, url: str) -> _Reply:
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise BenchError(f"{url}: the server answers with a web page, not a file; check the address and any proxy")
    length = response.headers.get("Content-Length")
    version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if version.startswith("W/"):  # a weak tag does not promise the same bytes
        version = ""
    if response.status != 206:
        return _Reply(0, int(length) if length else None, version)
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    if not first.isdecimal():
        raise BenchError(f"{url}: the server sent a part without saying which; try another --base-url")
    return _Reply(int(first), int(total) if total.isdecimal() else None, version)


def _check_space(folder: Path, have: int, total: int | None) -> None:
    if total is not None:
        free = shutil.disk_usage(folder).free
        if free < total - have:
            raise BenchError(f"{folder}: needs {total - have:,} bytes more, {free:,} are free; free some space")


def _receive(response: Any, stream: BinaryIO, have: int, total: int | None, progress: Progress | None) -> None:
    while chunk := response.read(CHUNK):
        stream.write(chunk)
        have += len(chunk)
        if progress is not None:
            progress(have, total)
    stream.flush()
    if total is not None and have < total:
        raise _Interrupted(f"{have:,} of {total:,} bytes arrived")
    if total is not None and have > total:
        _restart(stream)
        raise _Interrupted(f"{have:,} bytes arrived, {total:,} were announced")


def _difference(path: Path, sha256: str | None) -> str:
    """What to say when a file has another hash than expected; empty when it is right or nothing is expected."""
    if sha256 is None:
        return ""
    found = sha256_of(path)
    if found == sha256.lower():
        return ""
    return f"{path}: sha256 {found[:12]}... is not the expected {sha256[:12]}..."
