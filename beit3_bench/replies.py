"""What the headers of a server's answer say of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.addresses import one_line
from beit3_bench.errors import BenchError
from beit3_bench.files import write_atomic

NUMBER = re.compile(r"\d{1,18}", re.ASCII)


@dataclass
class Version:
    """Which version of a file the first part is of.

    tag: its strong ETag or, where the server sends none, its Last-Modified; "" where nothing says.
    total: bytes of the whole file, where known.
    """

    tag: str = ""
    total: int | None = None

    @classmethod
    def read(cls, path: Path) -> Version:
        try:
            tag, _, total = path.read_text(encoding="utf-8").partition("\n")
        except (OSError, ValueError):
            return cls()
        return cls(tag, int(total) if NUMBER.fullmatch(total) else None)

    def write(self, path: Path) -> None:
        write_atomic(path, f"{self.tag}\n{'' if self.total is None else self.total}".encode())


@dataclass
class Reply:
    """What the server's answer says: where its body starts, and which version of the file it is of."""

    start: int
    version: Version


def same_version(known: Version, later: Version) -> bool:
    """Whether a later part is of the file that the first is of. A part must repeat an ETag; Last-Modified it may leave out."""
    if later.tag != known.tag and (later.tag or known.tag.startswith('"')):
        return False
    return known.total is None or later.total is None or known.total == later.total


def read_reply(response: Any, url: str) -> Reply:
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
            f"{url}: the server packs the file ({one_line(encoding)}) though it was asked not to; try another --base-url"
        )

    def malformed(name: str) -> BenchError:
        return BenchError(
            f"{url}: the server's answer is malformed ({name}: {one_line(headers[name])[:60]}); try another --base-url"
        )

    length = headers.get("Content-Length")
    if length is not None and not NUMBER.fullmatch(length.strip()):
        raise malformed("Content-Length")
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    if tag.startswith("W/") or not tag.isprintable() or not tag.isascii():  # a weak tag does not promise the same bytes
        tag = ""
    if response.status == 200:
        return Reply(0, Version(tag, int(length) if length is not None else None))
    if "Content-Range" not in headers:
        raise BenchError(f"{url}: the server sent a part without saying which; try another --base-url")
    span = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", headers["Content-Range"].strip(), re.ASCII)
    if span is None:
        raise malformed("Content-Range")
    first, last, total = int(span[1]), int(span[2]), None if span[3] == "*" else int(span[3])
    if last < first or (total is not None and last >= total) or (length and int(length) != last - first + 1):
        raise malformed("Content-Range")
    return Reply(first, Version(tag, total))
