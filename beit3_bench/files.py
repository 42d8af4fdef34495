"""Reading and writing files of our own: whole or not at all, through no link, and one line where a disk refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from beit3_bench.errors import BenchError

PARTS = ".*.part"
"""Files that are being written, until they get their name (see `replacing`)."""
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
    errno.ELOOP: "is a link, and nothing is written through links; remove it or choose another --output",
    errno.ENXIO: "is a pipe or device, not a file; remove it or choose another --output",
}


def storage_error(path: Path, error: OSError) -> BenchError:
    """The line that tells why ``path`` could not be written, and the mend. Nothing committed before is lost."""
    why = _MENDS.get(error.errno or 0, f"cannot be written ({error.strerror or error}); check the disk")
    return BenchError(f"{path}: {why}; what was written before is kept")


# ---- folders ---------------------------------------------------------------------------------------------------------


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        BenchError: a file stands there, no permission, ...
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error


def refuse_link(path: Path) -> None:
    """Raise if a file or folder of ours is a link: whoever made it may want another's file emptied.

    Raises:
        BenchError: it is one.
    """
    if path.is_symlink():
        raise storage_error(path, OSError(errno.ELOOP, os.strerror(errno.ELOOP)))


def clear_parts(folder: Path) -> None:
    """Remove what killed processes left half written in a folder of ours; call it while the folder's lock is held."""
    for part in folder.glob(PARTS):
        with contextlib.suppress(OSError):
            part.unlink()


# ---- files -----------------------------------------------------------------------------------------------------------


def open_own(path: Path, flags: int) -> int:
    """`os.open` of a file of ours that is changed in place: through no link, and no pipe or device.

    Returns:
        The descriptor. The file may have a second name (a hard link), see `has_other_names`.

    Raises:
        BenchError: a link, no file, no permission, ...
    """
    try:
        return open_in_place(path, flags, 0o644)
    except OSError as error:
        raise storage_error(path, error) from error


def open_in_place(path: Path, flags: int, mode: int = 0o666) -> int:
    """As `open_own`, for who has words of its own for what goes wrong.

    Args:
        mode: permissions of a new file, before the user's mask.

    Raises:
        OSError: ELOOP for a link, ENXIO for what is no file, ...
    """
    file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.ENXIO, "is a pipe or device, not a file", str(path))
    return file


def has_other_names(file: int) -> bool:
    """Whether an open file has hard links elsewhere, so that a change in place would change these, too."""
    return os.fstat(file).st_nlink > 1


def open_regular(path: Path, buffering: int = -1) -> IO[bytes]:
    """Open a file to read it; a pipe, on which that would wait for ever, and a device are refused. buffering: as of `open`.

    Raises:
        OSError: as `open`; ENXIO for what is no file.
    """
    return os.fdopen(_opened(path)[0], "rb", buffering)


def _opened(path: Path) -> tuple[int, int]:
    """The descriptor of a file, as of `open_regular`, and its size in bytes."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    facts = os.fstat(file)
    if stat.S_ISREG(facts.st_mode):
        return file, facts.st_size
    os.close(file)
    code = errno.EISDIR if stat.S_ISDIR(facts.st_mode) else errno.ENXIO
    raise OSError(code, "is a folder" if code == errno.EISDIR else "is a pipe or device", str(path))


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a file (see `open_regular`) that is no larger than ``limit`` bytes.

    Raises:
        OSError: as `open_regular`; EFBIG beyond the limit.
    """
    file, size = _opened(path)
    content = b""
    try:
        while size <= limit and (part := os.read(file, max(size - len(content), 2**16))):
            content += part
            size = max(size, len(content))
    finally:
        os.close(file)
    if size > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit / 2**20:g} MiB", str(path))
    return content


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, in whose place a reader, or a kill, ever sees the old one or the whole new one.

    A link at ``path`` is replaced, and what it points to stays as it is; so do the other names of a file with hard links.

    Raises:
        BenchError: disk full, no permission, ...; the old file stays.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
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


class _Remembering:
    """Passes bytes on to a file and remembers why it did not take them."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.refusal: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.refusal = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def save_atomic(path: Path, content: Any) -> None:
    """`torch.save` a file whole or not at all; see `replacing`."""
    import torch

    with replacing(path) as file:
        target = _Remembering(file)
        try:
            torch.save(content, target)
        except RuntimeError:  # torch's writer finds its position wrong and does not tell that the disk was full
            if target.refusal is None:
                raise
            raise target.refusal from None


def as_path(value: Any, name: str) -> Path:
    """What a caller of the Python API names as a file or folder.

    Raises:
        BenchError: no text and no path; begins with ``name``.
    """
    if not isinstance(value, (str, Path)):
        raise BenchError(f"{name}: is a {type(value).__name__}; give a path")
    if "\0" in str(value):
        raise BenchError(f"{name}: {str(value)!r} holds a zero character; give a path")
    return Path(value)
