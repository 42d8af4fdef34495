"""Uncompressed tar archives, and tars of tars (ImageNet's training set): members are read where they lie."""

from __future__ import annotations

import os
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from beit3_bench.backbones.archives.archive import AGAIN, Archive, check_new, member_name, unreadable
from beit3_bench.errors import BenchError
from beit3_bench.files import open_regular

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"(\xb5/\xfd": "zstd"}


class Tar(Archive):
    """A member of an inner archive is called ``inner.tar!name``."""

    def __init__(self, path: str):
        """Raises: BenchError: cut off, compressed, members that collide or climb out."""
        try:
            with open_regular(Path(path)) as file:
                super().__init__(path, os.fstat(file.fileno()))
                self._rows: dict[str, int] = {}
                self._offsets, self._sizes = array("q"), array("q")
                start = file.read(6)
                kind = next((kind for sign, kind in _COMPRESSED.items() if start.startswith(sign)), None)
                if kind is not None:
                    raise compressed(path, kind)
                self._add_all(file, 0, self.stamp[0], "")
        except OSError as error:
            raise unreadable(path, error) from error

    def _add_all(self, file: IO[bytes], begin: int, end: int, outer: str) -> None:
        """The members of a tar that lies at these bytes of the file; outer: ``"inner.tar!"``, or nothing."""
        inner: list[tuple[str, int, int]] = []
        for info in _members(file, begin, end, self.path + (f"!{outer[:-1]}" if outer else "")):
            name = outer + member_name(info.name, self.path)
            if info.islnk():  # another name of a member before it
                row = self._rows.get(outer + member_name(info.linkname, self.path))
                if row is not None:
                    self._put(name, self._offsets[row], self._sizes[row])
            elif info.isreg():
                if info.sparse is not None:
                    raise BenchError(f"{self.path}: member {name[:80]!r} is stored with holes; unpack the archive")
                self._put(name, info.offset_data, info.size)
                if not outer and name.endswith(".tar"):
                    inner.append((name, info.offset_data, info.offset_data + info.size))
        for name, first, last in inner:
            self._add_all(file, first, last, f"{name}!")

    def _put(self, name: str, offset: int, size: int) -> None:
        check_new(name, self._rows, self.path)
        self._rows[name] = len(self._rows)
        self._offsets.append(offset)
        self._sizes.append(size)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def _row(self, name: str) -> int:
        try:
            return self._rows[name]
        except KeyError:
            raise self.missing(name) from None

    def size(self, name: str) -> int:
        return self._sizes[self._row(name)]

    def read(self, name: str) -> bytes:
        row = self._row(name)
        content = self.bytes_at(self._offsets[row], self._sizes[row])
        if len(content) != self._sizes[row]:
            raise self.damaged(name, f"{len(content):,} bytes instead of {self._sizes[row]:,}")
        return content


def compressed(path: str, kind: str) -> BenchError:
    """The line for a tar that is compressed as a whole: its members lie nowhere in the file."""
    mend = {"gzip": "gunzip", "bzip2": "bunzip2", "xz": "unxz", "zstd": "unzstd"}[kind]
    return BenchError(
        f"{path}: is compressed with {kind} as a whole, so that single images cannot be read in place; unpack it, or make a plain "
        f"tar of it with {mend}"
    )


def _members(file: IO[bytes], begin: int, end: int, shown: str) -> Iterator[tarfile.TarInfo]:
    """Members of a tar at these bytes of a file.

    Raises:
        BenchError: cut off: in a member, or before the zero block that ends every tar.
    """
    try:
        file.seek(begin)
        with tarfile.TarFile(fileobj=file, mode="r") as archive:  # type: ignore[arg-type]
            while (info := archive.next()) is not None and info.offset < end:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if info.offset_data + info.size > end:
                    raise tarfile.ReadError("unexpected end of data")
                yield info
            file.seek(archive.offset)  # tarfile takes any unreadable header for the end
            missing = info is not None or archive.offset >= end
            if missing or file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("its end mark is missing")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        why = " ".join(str(error).split())[:100]
        raise BenchError(f"{shown}: is no whole tar archive ({why}); it was cut off or damaged: {AGAIN}") from error
