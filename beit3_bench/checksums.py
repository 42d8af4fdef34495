"""Whether a file is the one that its authors published, by its size and its hash."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from beit3_bench.errors import BenchError

CHUNK = 1 << 20
Progress = Callable[[int, int | None], None]
"""Called with bytes so far and the total, where that is known."""
ALGORITHMS = {64: "sha256", 40: "sha1", 32: "md5"}
"""Of checksums, by their number of hex digits."""


def check_checksum(checksum: str) -> None:
    """Raise unless a text is a hash as `download` takes it.

    Raises:
        BenchError: it is none.
    """
    if not re.fullmatch(r"[0-9a-fA-F]+", checksum) or len(checksum) not in ALGORITHMS:
        raise BenchError(
            f"checksum {checksum[:70]!r}: expected 64 hex digits (or 40 of SHA-1, 32 of MD5); give the whole hash"
        )


def difference(path: Path, checksum: str | None, size: int | None = None, progress: Progress | None = None) -> str:
    """What to say when a file has another size or hash than expected; empty when it is right or nothing is expected.

    progress: called with bytes that were read, and their number.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            actual = os.fstat(stream.fileno()).st_size
            if size is not None and actual != size:
                return f"{path}: has {actual:,} bytes instead of {size:,}"
            if checksum is None:
                return ""
            algorithm = ALGORITHMS[len(checksum)]
            digest = hashlib.new(algorithm, usedforsecurity=False)
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                if progress is not None:
                    progress(stream.tell(), actual)
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); check that it is a readable file") from error
    found = digest.hexdigest()
    if found == checksum.lower():
        return ""
    return f"{path}: {algorithm} {found[:12]}... is not the expected {checksum[:12]}..."
