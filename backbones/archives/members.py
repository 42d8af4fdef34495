"""One reader for the images of a data set, wherever they are: files, and members of archives.

A member is spelt ``ARCHIVE.zip!folder/name.jpg`` (or ``.tar``, ``.parquet``). The archive is the shortest beginning of the text that
ends so before a ``!`` and is a file; where it holds no such member and the whole text names a file, it is that file. A rectangle of an
image, of either kind, is spelt ``IMAGE#xywh=10,20,30,40`` (see `archives.crops`).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from beit3_bench.backbones.archives.archive import Archive
from beit3_bench.backbones.archives.crops import MARK, Box, Crop, parse
from beit3_bench.errors import BenchError

SUFFIXES = (".zip", ".tar", ".parquet")
_HEAD = re.compile(r"(?:\.zip|\.tar|\.parquet)(?=!)", re.IGNORECASE)

_archives: dict[str, Archive] = {}
_indexing = threading.Lock()


class Member(NamedTuple):
    """A member of an archive, which may be missing there."""

    archive: Archive
    name: str

    @property
    def size(self) -> int:
        return self.archive.size(self.name)

    def read(self) -> bytes:
        return self.archive.read(self.name)


def member_at(path: str | Path) -> Member | None:
    """The member that a path names; None where it names a file.

    Raises:
        BenchError: the archive is damaged.
    """
    text = os.fspath(path)
    if "!" not in text and MARK not in text:  # all that a file costs
        return None
    if (crop := parse(text)) is not None and not os.path.isfile(text):
        return _rectangle(*crop)
    for match in _HEAD.finditer(text):
        head, name = text[: match.end()], text[match.end() + 1 :]
        if head not in _archives and not os.path.isfile(head):
            continue
        archive = _archives.get(head) or open_archive(head)
        return None if name not in archive and os.path.isfile(text) else Member(archive, name)
    return None


def _rectangle(source: str, box: Box) -> Member | None:
    """None where the file of the image is not there."""
    member = member_at(source)
    file = source if member is None else member.archive.path
    if not os.path.isfile(file):
        return None
    crop = Crop(source, file, box)
    return Member(crop, crop.name)


def open_archive(path: str | Path) -> Archive:
    """An archive, indexed once in this process and again when its file has changed.

    Raises:
        BenchError: another kind of file, cut off, encrypted, members that collide or climb out.
    """
    text = os.fspath(path)
    with _indexing:
        known = _archives.get(text)
        if known is None or not _is_current(known):
            _archives[text] = _index(text)
        return _archives[text]


def known_archives() -> dict[str, Archive]:
    """What this process has indexed, for `adopt` in another one."""
    return dict(_archives)


def adopt(archives: Mapping[str, Archive]) -> None:
    """Take over the indexes of another process, so that none is made twice."""
    for path, archive in archives.items():
        _archives.setdefault(path, archive)


def exists(path: str | Path) -> bool:
    """Whether there is a file, or a member of an archive."""
    member = member_at(path)
    return os.path.isfile(path) if member is None else member.name in member.archive


def size_of(path: str | Path) -> int:
    """Bytes of a file or a member.

    Raises:
        OSError: no such file.
        BenchError: no such member.
    """
    member = member_at(path)
    return os.stat(path).st_size if member is None else member.size


def stamp_of(path: str | Path) -> tuple[int, int]:
    """Size and time of modification (ns) of a file, or of the archive of a member: they change when the content does.

    Raises:
        OSError: no such file.
    """
    member = member_at(path)
    facts = os.stat(path if member is None else member.archive.path)
    return facts.st_size, facts.st_mtime_ns


def _is_current(archive: Archive) -> bool:
    try:
        facts = os.stat(archive.path)
    except OSError:
        return False
    return archive.stamp == (facts.st_size, facts.st_mtime_ns)


def _index(path: str) -> Archive:
    kind = os.path.splitext(path)[1].lower()
    if kind == ".zip":
        from beit3_bench.backbones.archives.zips import Zip

        return Zip(path)
    if kind == ".tar":
        from beit3_bench.backbones.archives.tars import Tar

        return Tar(path)
    if kind == ".parquet":
        from beit3_bench.backbones.archives.parquet import Parquet

        return Parquet(path)
    raise BenchError(f"{path}: is no archive that is read in place ({', '.join(SUFFIXES)}); unpack it")
