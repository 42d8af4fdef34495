"""Writing whole files or nothing, and saying in one line why a disk refuses."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        BenchError: a file stands there, no permission, ...
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, in whose place a reader, or a kill, ever sees the old one or the whole new one.

    Raises:
        BenchError: disk full, no permission, ...; the old file stays.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, must survive a power cut
        finally:
            os.close(folder)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def save_atomic(path: Path, content: Any) -> None:
    """`torch.save` a file whole or not at all; see `replacing`."""
    import torch

    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's own writer reports a full disk so
            if "write" not in str(error).lower():
                raise
            raise BenchError(
                f"{path}: cannot be written ({str(error).splitlines()[0][:100]}); free some disk space"
            ) from error
