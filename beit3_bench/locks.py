"""Who writes to a folder: a lock file that the kernel lets go of when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from beit3_bench.files import has_other_names, open_in_place, open_own, storage_error, write_atomic


class Held(Exception):
    """Another process holds the lock; its text says which."""


def hold(path: Path) -> int:
    """Take a lock, and write into its file who has it.

    Returns:
        A descriptor; the lock is held until it is closed.

    Raises:
        Held: by another process.
        BenchError: the file is a link, or cannot be made.
    """
    while True:
        file = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            lock_file(file)
            if has_other_names(file):
                write_atomic(path, b"")  # a file of its own: writing to this one would change the other
            elif still_there(file, path):
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return file
        except BlockingIOError as error:
            os.close(file)
            raise Held(_holder(path)) from error
        except OSError as error:
            os.close(file)
            raise storage_error(path, error) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # replaced meanwhile: once more


def lock_file(file: int) -> None:
    """Lock an open file until it is closed.

    Raises:
        BlockingIOError: another process holds it, and does not only look whether it is held (see `is_held`).
    """
    for left in reversed(range(4)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not left:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold a lock file, after whoever holds it now.

    Raises:
        OSError: the file is a link, or cannot be made or locked.
    """
    file = open_in_place(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def take_part(path: Path) -> int:
    """Hold a file together with others, until the descriptor is closed.

    Raises:
        BenchError: a link, no file, or one that cannot be read.
    """
    file = open_own(path, os.O_RDONLY)
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def still_there(file: int, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except OSError:
        return False


def is_held(path: Path, together: bool = False) -> bool:
    """Whether a process holds the lock of a file; False where there is none.

    together: whether one takes part in holding it (see `take_part`).
    """
    try:
        access = os.O_RDWR if together else os.O_RDONLY  # NFS gives no exclusive lock to a reader
        file = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if together else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)
    return False


def _holder(path: Path) -> str:
    try:
        return path.read_bytes()[:200].decode(errors="replace").strip() or "another process"
    except OSError:
        return "another process"
