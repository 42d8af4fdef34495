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
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from beit3_bench.backbones.pins import sha256_of
from beit3_bench.errors import BenchError
from beit3_bench.files import open_in_place, write_atomic
from beit3_bench.locks import lock_file

CHUNK = 1 << 20
RETRIES = 5
TIMEOUT = 30.0
PAUSE = 1.0
"""Seconds before the first retry; doubled each time."""

Progress = Callable[[int, int | None], None]
"""Called with bytes on disk so far and the total, where the server tells it."""

_NUMBER = re.compile(r"\d{1,18}", re.ASCII)
_MAY_COME_BACK = {408, 425, 429, 500, 502, 503, 504}


class _Interrupted(Exception):
    """The transfer broke off; what has arrived is kept."""


class _Changed(_Interrupted):
    """The server has another version of the file than the one that the first part is of; the part was dropped."""


@dataclass
class _Version:
    """Which version of a file the first part is of.

    tag: its strong ETag or, where the server sends none, its Last-Modified; "" where nothing says.
    total: bytes of the whole file, where known.
    """

    tag: str = ""
    total: int | None = None

    @classmethod
    def read(cls, path: Path) -> _Version:
        try:
            tag, _, total = path.read_text(encoding="utf-8").partition("\n")
        except (OSError, ValueError):
            return cls()
        return cls(tag, int(total) if _NUMBER.fullmatch(total) else None)

    def write(self, path: Path) -> None:
        write_atomic(path, f"{self.tag}\n{'' if self.total is None else self.total}".encode())


@dataclass
class _Reply:
    """What the server's answer says: where its body starts, and which version of the file it is of."""

    start: int
    version: _Version


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
    try:
        address = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise BenchError(f"{url}: not an address ({error}); give one that starts with https://") from error
    if address.scheme not in ("http", "https") or not address.netloc:
        raise BenchError(f"{url}: not an address; give one that starts with https://")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise BenchError(f"sha256 {sha256[:70]!r}: expected 64 hex digits; give the whole hash")
    target = Path(target)
    part, version_file = _beside(target, ".part"), _beside(target, ".part.version")
    if target.exists():
        if not target.is_file():
            raise BenchError(f"{target}: something stands here that is no file; move it away and try again")
        if wrong := _difference(target, sha256):
            raise BenchError(f"{wrong}; move it away and try again")
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = _open_part(part)
    except OSError as error:
        raise BenchError(f"{part}: cannot be written ({error.strerror}); choose another folder") from error
    with stream, _sole_writer(stream, part):
        try:
            _fetch(url, stream, version_file, progress, retries, pause, timeout)
            if wrong := _difference(part, sha256):
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


def _fetch(
    url: str,
    stream: BinaryIO,
    version_file: Path,
    progress: Progress | None,
    retries: int,
    pause: float,
    timeout: float,
) -> None:
    """Transfer until the file is whole; give up after ``retries`` in a row that brought nothing, or as many new versions."""
    failures = changes = 0
    while True:
        before = stream.seek(0, os.SEEK_END)
        try:
            _transfer(url, stream, version_file, progress, timeout)
            return
        except _Interrupted as reason:
            stream.flush()
            changes += isinstance(reason, _Changed)
            # a transfer that moves on may break as often as it likes
            failures = 1 if stream.seek(0, os.SEEK_END) > before else failures + 1
            if changes > retries:
                raise BenchError(
                    f"{url}: changed {changes} times while it was fetched; try again later, or another --base-url"
                ) from reason
            if failures > retries:
                raise BenchError(
                    f"{url}: broke off {failures} times without a byte more ({_line(reason)}); {stream.name} "
                    "keeps what has arrived, give the same command again to continue"
                ) from reason
            time.sleep(pause * 2 ** (failures - 1))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and from https to https only."""

    def redirect_request(self, request: Any, fp: Any, code: int, message: str, headers: Any, newurl: str) -> Any:
        before, after = (urllib.parse.urlsplit(u).scheme for u in (request.full_url, newurl))
        if after not in ("http", "https") or (before == "https" and after != "https"):
            raise BenchError(
                f"{request.full_url}: the server sends on to {_line(newurl)}, which is not protected by https; "
                "give another address with --base-url"
            )
        return super().redirect_request(request, fp, code, message, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """http and https, through the proxies that the environment names; no ftp, no local files."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


def _transfer(url: str, stream: BinaryIO, version_file: Path, progress: Progress | None, timeout: float) -> None:
    """Append what is missing to ``stream``."""
    have = stream.seek(0, os.SEEK_END)
    known = _Version.read(version_file) if have else _Version()
    if have and not known.tag:  # nothing says which version of the file these bytes are of
        have, known = _restart(stream), _Version()
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "beit3-bench", "Accept-Encoding": "identity"})
        if have:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", known.tag)
        with _opener().open(request, timeout=timeout) as response:
            _take_in(response, url, stream, have, known, version_file, progress)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise _refused(url, error) from error
        # nothing behind what we have: complete, or another file
        total = re.fullmatch(r"bytes \*/(\d{1,18})", error.headers.get("Content-Range", ""), re.ASCII)
        if not total or int(total[1]) != have or not _same_version(known, _Version(known.tag, have)):
            _restart(stream)
            raise _Changed("the partial file is not a part of the file") from error
    except OSError as error:
        raise _broken(url, stream, error) from error
    except (
        http.client.InvalidURL,
        ValueError,
    ) as error:  # of the address, of one that the server sends on to, of a proxy's
        raise BenchError(f"{url}: the address, or the server's answer, is malformed ({_line(error)})") from error
    except http.client.HTTPException as error:
        raise _Interrupted(f"{type(error).__name__}: {error}") from error


def _take_in(
    response: Any,
    url: str,
    stream: BinaryIO,
    have: int,
    known: _Version,
    version_file: Path,
    progress: Progress | None,
) -> None:
    """Append the body of an answer to the ``have`` bytes of version ``known``, or start again where it is the whole file."""
    empty = f"{url}: the server sent an empty file; check the address, or give another --base-url"
    reply = _read_reply(response, url)
    if reply.start and reply.start != have:
        raise BenchError(f"{url}: the server sent another part than asked for; try another --base-url")
    if reply.start and not _same_version(known, reply.version):
        _restart(stream)
        raise _Changed("the file changed on the server")
    if reply.start:
        reply.version = _Version(known.tag, reply.version.total or known.total)
    elif reply.version.total == 0:
        raise BenchError(empty)
    else:
        have = _restart(stream)
    reply.version.write(version_file)
    _check_space(version_file.parent, have, reply.version.total)
    _receive(response, stream, have, reply.version.total, progress)
    if stream.seek(0, os.SEEK_END) == 0:
        raise BenchError(empty)


def _refused(url: str, error: urllib.error.HTTPError) -> Exception:
    """What an error status means: worth another try, or the end."""
    if error.code in _MAY_COME_BACK:
        return _Interrupted(f"HTTP {error.code} {error.reason}")
    return BenchError(
        f"{url}: the server says {error.code} {_line(error.reason)}; check the name, or give a mirror with --base-url"
    )


def _broken(url: str, stream: BinaryIO, error: OSError) -> Exception:
    """What a failure of the disk or of the connection means."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BenchError(f"{stream.name}: the disk is full; free some space and give the same command again")
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return BenchError(
            f"{url}: its certificate is not valid here ({_line(reason)}); check the clock, a proxy, and ca-certificates"
        )
    return _Interrupted(str(reason))


def _restart(stream: BinaryIO) -> int:
    stream.seek(0)
    stream.truncate()
    return 0


def _line(text: object) -> str:
    """What a server or a library said, fit for a message."""
    return "".join(c if c.isprintable() else " " for c in str(text))[:200]


def _same_version(known: _Version, later: _Version) -> bool:
    """Whether a later part is of the file that the first is of. A part must repeat an ETag; Last-Modified it may leave out."""
    if later.tag != known.tag and (later.tag or known.tag.startswith('"')):
        return False
    return known.total is None or later.total is None or known.total == later.total


def _read_reply(response: Any, url: str) -> _Reply:
    """What an answer's headers say.

    Raises:
        BenchError: not the plain bytes of a file, or headers that cannot be.
    """
    headers = response.headers
    if response.status not in (200, 206):
        raise BenchError(f"{url}: the server says {response.status} and sends no file; check the address")
    if headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise BenchError(f"{url}: the server answers with a web page, not a file; check the address and any proxy")
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise BenchError(
            f"{url}: the server packs the file ({_line(encoding)}) though it was asked not to; try another --base-url"
        )

    def malformed(name: str) -> BenchError:
        return BenchError(
            f"{url}: the server's answer is malformed ({name}: {_line(headers[name])[:60]}); try another --base-url"
        )

    length = headers.get("Content-Length")
    if length is not None and not _NUMBER.fullmatch(length.strip()):
        raise malformed("Content-Length")
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    if tag.startswith("W/") or not tag.isprintable() or not tag.isascii():  # a weak tag does not promise the same bytes
        tag = ""
    if response.status == 200:
        return _Reply(0, _Version(tag, int(length) if length is not None else None))
    if "Content-Range" not in headers:
        raise BenchError(f"{url}: the server sent a part without saying which; try another --base-url")
    span = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", headers["Content-Range"].strip(), re.ASCII)
    if span is None:
        raise malformed("Content-Range")
    first, last, total = int(span[1]), int(span[2]), None if span[3] == "*" else int(span[3])
    if last < first or (total is not None and last >= total) or (length and int(length) != last - first + 1):
        raise malformed("Content-Range")
    return _Reply(first, _Version(tag, total))


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
        raise _Changed(f"{have:,} bytes arrived, {total:,} were announced")


def _difference(path: Path, sha256: str | None) -> str:
    """What to say when a file has another hash than expected; empty when it is right or nothing is expected."""
    if sha256 is None:
        return ""
    actual = sha256_of(path)
    if actual == sha256.lower():
        return ""
    return f"{path}: sha256 {actual[:12]}... is not the expected {sha256[:12]}..."
