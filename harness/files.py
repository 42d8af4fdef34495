"""Writing whole files or nothing, and saying in one line why a disk refuses."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from beit3_bench.backbones.errors import BenchError

_MENDS = {
    errno.ENOSPC: "the disk is full; free some space and give the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and give the same command again",
    errno.EROFS: "the file system is read-only; choose another --output",
    errno.EACCES: "no permission to write here; choose another --output",
    errno.EPERM: "no permission to write here; choose another --output",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another --output",
    errno.EEXIST: "a file stands where a folder is needed; choose another --output",
    errno.EISDIR: "a folder stands where a file is needed; remove it or choose another --output",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter --output",
}


def storage_error(path: Path, error: OSError) -> BenchError:
    """The line that tells why ``path`` could not be written, and the mend. Nothing committed before is lost."""
    why = _MENDS.get(error.errno or 0, f"cannot be written ({error.strerror or error}); check the disk")
    return BenchError(f"{path}: {why}; what was written before is kept")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, ever sees the old one or the whole new one.

    Raises:
        BenchError: disk full, no permission, ...; the old file stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, must survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise storage_error(path, error) from error
