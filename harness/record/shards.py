"""What is read of shards without decoding their rows (see `rows`): which batches are there, ids, hashes of images."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.files import open_regular

_MARKER = b'{"commit":'
_HEAD = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*+")')  # how every row begins
IMAGES = "image_sha256"  # second, where a row was made from image files: their hashes
_IMAGES = f',"{IMAGES}":'.encode()
_HASHES = re.compile(rb'\[(?:"[^"\\]*"(?:,(?!\])|(?=\])))*+\]')
_DECODER = json.JSONDecoder()
_LONGEST = 2**28
"""Bytes of a line: a row of a few megapixels is far shorter, the hole in a damaged file is longer."""
_BUFFER = 2**16  # bytes read at once


def row_id(line: bytes) -> str:
    """The id of a stored row, without decoding the rest of it.

    Raises:
        ValueError: the line does not begin as a row does.
    """
    name = _head(line)[1].decode("ascii")
    if "\\" not in name and name.isprintable():
        return name[1:-1]
    return _DECODER.decode(name)


def row_images(line: bytes) -> list[str] | None:
    """Hashes of the image files of a stored row (None without any), without decoding the rest of it.

    Raises:
        ValueError: what no run writes.
    """
    head = _head(line)
    if not line.startswith(_IMAGES, head.end()):
        return None
    hashes = _HASHES.match(line, head.end() + len(_IMAGES))
    if hashes is None:
        raise ValueError(f"{IMAGES} is no list of hashes")
    return _DECODER.decode(hashes[0].decode("ascii"))


def _head(line: bytes) -> re.Match[bytes]:
    """The beginning of a stored row up to its id, which is the match's only group."""
    head = _HEAD.match(line)
    if head is None or not line.isascii():
        raise ValueError("a row without id" if head is None else "not ASCII")
    return head


def committed(path: Path) -> tuple[list[bytes], int]:
    """Row lines up to the last valid commit marker of a shard, and the byte offset behind that marker.

    Raises:
        BenchError: it cannot be read, or is no file.
    """
    lines: list[bytes] = []
    end = 0
    for batch, position in committed_batches(path):
        lines += batch
        end = position
    return lines, end


def committed_batches(path: Path) -> Iterator[tuple[list[bytes], int]]:
    """As `committed`, batch by batch, of which only one is in memory."""
    batch: list[bytes] = []
    checksum = position = 0
    try:
        with open_regular(path, _BUFFER) as file:
            while (line := file.readline(_LONGEST)).endswith(b"\n"):
                position += len(line)
                if not line.startswith(_MARKER):
                    batch.append(line[:-1])
                    checksum = zlib.crc32(line, checksum)
                    continue
                if line != b'{"commit":%d,"crc":"%08x"}\n' % (len(batch), checksum):
                    break
                yield batch, position
                batch, checksum = [], 0
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror or error}); remove it and run again") from error
