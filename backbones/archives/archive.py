"""What every kind of archive offers: members by name, read in place by any number of processes and threads."""

from __future__ import annotations

import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import open_regular

AGAIN = "download it again"


class Archive(ABC):
    """An archive of images, indexed once. It travels to other processes by pickle, with its index and without its handle.

    path: the file.  stamp: its size in bytes and time of modification (ns) when it was indexed.
    """

    def __init__(self, path: str, facts: os.stat_result):
        self.path, self.stamp = path, (facts.st_size, facts.st_mtime_ns)
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def __contains__(self, name: object) -> bool: ...

    @abstractmethod
    def __iter__(self) -> Iterator[str]:
        """Names of the members, with ``/`` between folders."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a member.

        Raises:
            BenchError: there is no such member.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a member.

        Raises:
            BenchError: there is no such member, or it is damaged.
        """

    @cached_property
    def folders(self) -> set[str]:
        """Every folder that holds a member, at any depth; ``""`` is the top."""
        known = {""}
        for name in self:
            folder = name.rpartition("/")[0]
            while folder not in known:
                known.add(folder)
                folder = folder.rpartition("/")[0]
        return known

    def missing(self, name: str) -> BenchError:
        return BenchError(f"{self.path}!{name}: the archive has no such member; {AGAIN}, or complete it")

    def damaged(self, name: str, why: str) -> BenchError:
        return BenchError(f"{self.path}!{name}: the member is damaged ({why}); get the archive again")

    # ---- bytes --------------------------------------------------------------------------------------------------------

    def bytes_at(self, offset: int, count: int) -> bytes:
        """Bytes of the file. The handle has no position that processes or threads could share."""
        parts = []
        while count > 0:
            part = os.pread(self._file(), min(count, 1 << 30), offset)
            if not part:
                break
            parts.append(part)
            offset, count = offset + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _file(self) -> int:
        if self._descriptor is None:
            with self._lock:
                if self._descriptor is None:
                    self._descriptor = self._opened()
        return self._descriptor

    def check_current(self) -> None:
        """Raise where the file is another than the one that was indexed."""
        os.close(self._opened())

    def _opened(self) -> int:
        try:
            with open_regular(Path(self.path)) as file:
                facts = os.fstat(file.fileno())
                descriptor = os.dup(file.fileno())
        except OSError as error:
            raise unreadable(self.path, error) from error
        if (facts.st_size, facts.st_mtime_ns) != self.stamp:
            os.close(descriptor)
            raise BenchError(f"{self.path}: was replaced while it was read; give the same command again")
        return descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __del__(self) -> None:
        descriptor = self.__dict__.get("_descriptor")
        if descriptor is not None:
            os.close(descriptor)


def unreadable(path: str, error: OSError) -> BenchError:
    """The line for an archive that the system does not give."""
    return BenchError(f"{path}: cannot be read ({error.strerror}); check that it is a readable file")


_CLIMBS = re.compile(r"^/|^[A-Za-z]:|\\|\0|(?:^|/)\.\.(?:/|$)")


def member_name(raw: str, archive: str) -> str:
    """A member's name without ``./`` and doubled slashes.

    Raises:
        BenchError: it is absolute or climbs out of the folder; whoever packed this meant to overwrite other files.
    """
    if _CLIMBS.search(raw):
        raise BenchError(
            f"{archive}: member {raw[:80]!r} points out of the archive; such archives are not read: get it from its own site"
        )
    if "//" not in raw and "./" not in raw:
        return raw
    return "/".join(part for part in raw.split("/") if part not in ("", "."))


def check_new(name: str, known: Any, archive: str) -> None:
    """Raise for a member that comes twice: which of the two pictures is meant, nobody knows."""
    if name in known:
        raise BenchError(f"{archive}: member {name[:80]!r} comes twice; pack it again with each file once")
