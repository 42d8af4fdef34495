"""Fetch a large file over http(s): resumable, verified, and renamed into place only when it is whole."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from beit3_bench.addresses import check_address, one_line
from beit3_bench.checksums import CHUNK, Progress, check_checksum, difference
from beit3_bench.connections import Unreachable, opener
from beit3_bench.errors import BenchError
from beit3_bench.files import open_in_place
from beit3_bench.locks import lock_file
from beit3_bench.replies import NUMBER, Version, read_reply, same_version

RETRIES = 5
RETRIES_UNREACHED = 1
"""Of a server that has not answered at all: without a network, that is said within seconds."""
TIMEOUT = 30.0
PAUSE = 1.0
"""Seconds before the first retry; doubled each time."""

_HEADERS = {"User-Agent": "beit3-bench", "Accept-Encoding": "identity"}
_MAY_COME_BACK = {408, 425, 429, 500, 502, 503, 504}


class Refused(BenchError):
    """The server answers that it does not give this file: it is not there, or not for everybody."""


class _Interrupted(Exception):
    """The transfer broke off; what has arrived is kept."""


class _Changed(_Interrupted):
    """The server has another version of the file than the one that the first part is of; the part was dropped."""


@dataclass
class _Transfer:
    """What is fetched, into what, and how far it is.

    size: bytes that the file must have; None where nobody knows.
    reached: whether the server has answered.
    """

    url: str
    stream: BinaryIO
    version_file: Path
    size: int | None
    progress: Progress | None
    timeout: float
    reached: bool = False

    def have(self) -> int:
        return self.stream.seek(0, os.SEEK_END)


def download(
    url: str,
    target: str | Path,
    checksum: str | None = None,
    progress: Progress | None = None,
    retries: int = RETRIES,
    pause: float = PAUSE,
    timeout: float = TIMEOUT,
    size: int | None = None,
    checking: Progress | None = None,
) -> Path:
    """Download ``url`` to ``target``.

    Bytes go to ``target.part``; a later call continues from there, if the server still has the same version of the file
    (ETag or Last-Modified) and serves ranges, and starts again otherwise. A target that exists is complete: it is only
    verified.

    Args:
        checksum: expected hash in hex, SHA-256, SHA-1 or MD5 by its length; None checks the size only.
        progress: called with bytes on the disk so far and the total, where the server tells it.
        retries: how often in a row a transfer may break without a byte arriving; of a server that was never reached,
            `RETRIES_UNREACHED` at most.
        pause: seconds before the first retry, doubled each time.
        timeout: seconds without a byte after which a transfer counts as broken.
        size: bytes that the file must have; None: what the server announces.
        checking: called as ``progress`` while the hash is computed.

    Returns:
        The target.

    Raises:
        BenchError: not reached, refused by the server, broken off too often, another size or hash than expected, no space,
            or another process is downloading the same file.
    """
    check_address(url)
    if checksum is not None:
        check_checksum(checksum)
    target = Path(target)
    part, version_file = _beside(target, ".part"), _beside(target, ".part.version")
    if target.exists():
        if not target.is_file():
            raise BenchError(f"{target}: something stands here that is no file; move it away and try again")
        if wrong := difference(target, checksum, size, checking):
            raise BenchError(f"{wrong}; move it away and try again")
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = _open_part(part)
    except OSError as error:
        raise BenchError(f"{part}: cannot be written ({error.strerror}); choose another folder") from error
    with stream, _sole_writer(stream, part):
        try:
            _fetch(_Transfer(url, stream, version_file, size, progress, timeout), retries, pause)
            if wrong := difference(part, checksum, size, checking):
                _restart(stream)
                raise BenchError(f"{wrong}; deleted it, try again")
            os.fsync(stream.fileno())
            os.replace(part, target)
        finally:
            if stream.seek(0, os.SEEK_END) == 0:  # an empty part is worth nothing
                part.unlink(missing_ok=True)
                version_file.unlink(missing_ok=True)
    version_file.unlink(missing_ok=True)
    return target


def announced_size(url: str, timeout: float = TIMEOUT) -> int | None:
    """How many bytes a server says that a file has; None where it does not say it.

    Raises:
        BenchError: the server is not reached.
    """
    check_address(url)
    request = urllib.request.Request(url, headers=_HEADERS, method="HEAD")
    try:
        with opener().open(request, timeout=timeout) as response:
            length = (response.headers.get("Content-Length") or "").strip()
            return int(length) if response.status == 200 and NUMBER.fullmatch(length) else None
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        if isinstance(reason := _reason(error), Unreachable):
            raise _not_reached(url, reason) from error
        return None
    except (http.client.HTTPException, ValueError):
        return None


def bytes_so_far(target: Path) -> int:
    """Bytes of a file that a later `download` to ``target`` need not fetch again, as far as can be said without the server."""
    for path in (target, _beside(target, ".part")):
        with contextlib.suppress(OSError):
            return path.stat().st_size
    return 0


# ---- the transfer ----------------------------------------------------------------------------------------------------


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _open_part(part: Path) -> BinaryIO:
    """The file of the first part, to go on from; a link in its place is not followed."""
    return open(part, "a+b", opener=lambda path, flags: open_in_place(Path(path), flags))


@contextlib.contextmanager
def _sole_writer(stream: BinaryIO, part: Path) -> Iterator[None]:
    try:
        lock_file(stream.fileno())
    except OSError as error:
        raise BenchError(f"{part}: another process is downloading this file; wait for it to finish") from error
    yield  # the lock goes with the file handle


def _fetch(transfer: _Transfer, retries: int, pause: float) -> None:
    """Transfer until the file is whole; give up after ``retries`` in a row that brought nothing, or as many new versions."""
    failures = changes = 0
    while True:
        before = transfer.have()
        try:
            _transfer(transfer)
            return
        except _Interrupted as reason:
            transfer.stream.flush()
            changes += isinstance(reason, _Changed)
            # a transfer that moves on may break as often as it likes
            failures = 1 if transfer.have() > before else failures + 1
            if changes > retries:
                raise BenchError(
                    f"{transfer.url}: changed {changes} times while it was fetched; try again later, or another --base-url"
                ) from reason
            if not transfer.reached and failures > min(retries, RETRIES_UNREACHED):
                raise _not_reached(transfer.url, reason) from reason
            if failures > retries:
                raise BenchError(
                    f"{transfer.url}: broke off {failures} times without a byte more ({one_line(reason)}); "
                    f"{transfer.stream.name} keeps what has arrived, give the same command again to continue"
                ) from reason
            time.sleep(pause * 2 ** (failures - 1))


def _transfer(transfer: _Transfer) -> None:
    """Append what is missing to the file."""
    url, stream, have = transfer.url, transfer.stream, transfer.have()
    known = Version.read(transfer.version_file) if have else Version()
    if have and not known.tag:  # nothing says which version of the file these bytes are of
        have, known = _restart(stream), Version()
    try:
        request = urllib.request.Request(url, headers=_HEADERS)
        if have:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", known.tag)
        with opener().open(request, timeout=transfer.timeout) as response:
            transfer.reached = True
            _take_in(response, transfer, have, known)
    except urllib.error.HTTPError as error:
        transfer.reached = True
        if error.code != 416 or not have:
            raise _refused(url, error) from error
        # nothing behind what we have: complete, or another file
        total = re.fullmatch(r"bytes \*/(\d{1,18})", error.headers.get("Content-Range", ""), re.ASCII)
        if not total or int(total[1]) != have or not same_version(known, Version(known.tag, have)):
            _restart(stream)
            raise _Changed("the partial file is not a part of the file") from error
    except OSError as error:
        transfer.reached |= not isinstance(_reason(error), Unreachable)
        raise _broken(url, stream, error) from error
    except (
        http.client.InvalidURL,
        ValueError,
    ) as error:  # of the address, of one that the server sends on to, of a proxy's
        raise BenchError(f"{url}: the address, or the server's answer, is malformed ({one_line(error)})") from error
    except http.client.HTTPException as error:
        transfer.reached = True
        raise _Interrupted(f"{type(error).__name__}: {error}") from error


def _take_in(response: Any, transfer: _Transfer, have: int, known: Version) -> None:
    """Append the body of an answer to the ``have`` bytes of version ``known``, or start again where it is the whole file."""
    url, stream, wanted = transfer.url, transfer.stream, transfer.size
    empty = f"{url}: the server sent an empty file; check the address, or give another --base-url"
    reply = read_reply(response, url)
    if reply.start and reply.start != have:
        raise BenchError(f"{url}: the server sent another part than asked for; try another --base-url")
    if reply.start and not same_version(known, reply.version):
        _restart(stream)
        raise _Changed("the file changed on the server")
    if reply.start:
        reply.version = Version(known.tag, reply.version.total or known.total)
    elif reply.version.total == 0:
        raise BenchError(empty)
    else:
        have = _restart(stream)
    total = reply.version.total
    if total is not None and wanted is not None and total != wanted:
        _restart(stream)
        raise BenchError(
            f"{url}: the server has {total:,} bytes, and the file has {wanted:,}: it is another one; check the address, "
            "or give another --base-url"
        )
    reply.version.write(transfer.version_file)
    _check_space(transfer.version_file.parent, have, total)
    _receive(response, stream, have, total, transfer.progress)
    if transfer.have() == 0:
        raise BenchError(empty)


# ---- what went wrong -------------------------------------------------------------------------------------------------


def _not_reached(url: str, reason: object) -> BenchError:
    return BenchError(
        f"{url}: not reached ({one_line(reason)}); check the network or the proxy (https_proxy), or give a mirror with "
        "--base-url"
    )


def _reason(error: OSError) -> object:
    """What urllib has wrapped up."""
    return (error.reason if isinstance(error, urllib.error.URLError) else None) or error


def _refused(url: str, error: urllib.error.HTTPError) -> Exception:
    """What an error status means: worth another try, or the end."""
    if error.code in _MAY_COME_BACK:
        return _Interrupted(f"HTTP {error.code} {error.reason}")
    return Refused(
        f"{url}: the server says {error.code} {one_line(error.reason)}; check the name, or give a mirror with --base-url"
    )


def _broken(url: str, stream: BinaryIO, error: OSError) -> Exception:
    """What a failure of the disk or of the connection means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BenchError(f"{stream.name}: the disk is full; free some space and give the same command again")
    reason = _reason(error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return BenchError(
            f"{url}: its certificate is not valid here ({one_line(reason)}); check the clock, a proxy, and ca-certificates"
        )
    return _Interrupted(str(reason))


def _restart(stream: BinaryIO) -> int:
    stream.seek(0)
    stream.truncate()
    return 0


def _check_space(folder: Path, have: int, total: int | None) -> None:
    if total is not None:
        free = shutil.disk_usage(folder).free
        if free < total - have:
            raise BenchError(f"{folder}: needs {total - have:,} bytes more, {free:,} are free; free some space")


def _receive(response: Any, stream: BinaryIO, have: int, total: int | None, progress: Progress | None) -> None:
    while total is None or have < total:
        # what is there already, so that a kill loses little of a slow transfer; no server sends more than it announced
        chunk = response.read1(CHUNK if total is None else min(CHUNK, total - have))
        if not chunk:
            break
        stream.write(chunk)
        have += len(chunk)
        if progress is not None:
            progress(have, total)
    stream.flush()
    if total is not None and have < total:
        raise _Interrupted(f"{have:,} of {total:,} bytes arrived")
