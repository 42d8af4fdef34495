"""Which image contents a piece of work has read: hashes are noted where files are read, so that none is read twice.

SHA-256, which processors since 2017 compute in hardware (1.5 GB/s on one core; BLAKE2b: 0.8): a hundredth of decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from beit3_bench.backbones.archives.members import member_at
from beit3_bench.errors import BenchError

DIGITS = 32
"""Hex digits of a hash that are kept: 128 bits, so that they stay short beside the rows."""

_noted: ContextVar[dict[str, str] | None] = ContextVar("noted image hashes", default=None)


@contextmanager
def noting_image_hashes() -> Iterator[dict[str, str]]:
    """Path -> hash of every image file that is read within, by `read_noted` or an image cache."""
    hashes: dict[str, str] = {}
    token = _noted.set(hashes)
    try:
        yield hashes
    finally:
        _noted.reset(token)


def note(path: str | Path, sha256: str) -> None:
    """Note the SHA-256 (hex) of a file that was read."""
    hashes = _noted.get()
    if hashes is not None:
        hashes[str(path)] = sha256[:DIGITS]


def note_content(path: str | Path, content: bytes) -> None:
    """Note the hash of a file's bytes, where hashes are asked for."""
    if _noted.get() is not None:
        note(path, hashlib.sha256(content).hexdigest())


def read_noted(path: str | Path) -> bytes | None:
    """The bytes of a file, its hash noted; None where hashes are not asked for, so that a decoder may read as it likes.

    Raises:
        OSError: the file cannot be read.
    """
    if _noted.get() is None:
        return None
    content = Path(path).read_bytes()
    note_content(path, content)
    return content


def sha256_of_image(path: str | Path) -> bytes | None:
    """The SHA-256 of an image file, or of a member of an archive; None where it cannot be read."""
    try:
        member = member_at(path)
        if member is not None:
            return hashlib.sha256(member.read()).digest()
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, BenchError):
        return None


def image_hash(path: str | Path) -> str | None:
    """The hash of an image file; None where it cannot be read."""
    digest = sha256_of_image(path)
    return None if digest is None else digest.hex()[:DIGITS]


def image_hashes(paths: Iterable[str], threads: int) -> dict[str, str | None]:
    """Path -> hash of every distinct file, read in threads."""
    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(distinct, pool.map(image_hash, distinct), strict=True))
