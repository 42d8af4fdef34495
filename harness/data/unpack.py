"""Unpack what is wanted of an archive that came from elsewhere: its names are hostile input, and no link in it is followed.

Every file is written whole or not at all; a second call passes over those that are there, by their content.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from beit3_bench.errors import BenchError
from beit3_bench.files import open_in_place
from beit3_bench.tasks.places import is_inside

CHUNK = 1 << 20
Progress = Callable[[int, int], None]
"""Called with files done and their number."""
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, tarfile.TarError, gzip.BadGzipFile)


class Damaged(BenchError):
    """An archive that is cut off, broken or another one than expected: to be fetched again."""


class Hostile(BenchError):
    """An archive whose names lead out of its folder, or whose members are no plain files."""


@dataclass(frozen=True)
class Member:
    """A member of an archive.

    kind: file, folder, or what else it is in words.  name: in POSIX form, without a leading ``./`` and trailing slash.
    """

    name: str
    size: int
    kind: str


def unpack(archive: Path, targets: Mapping[str, Path], root: Path, progress: Progress | None = None) -> int:
    """Unpack members of a zip or tar file.

    Args:
        archive: a ``.zip``, ``.tar``, ``.tar.gz`` or ``.tgz`` file.
        targets: member -> where it is put, below ``root``; of a name that ends with a slash, all that is below it.
        root: nothing is written outside; folders on the way from here are made, and links among them refused.

    Returns:
        Number of files that were written.

    Raises:
        Damaged: cut off, a wrong CRC, no such member.
        Hostile: absolute names, ``..``, links, names that differ by letter case alone, ...
        BenchError: another file stands in the way, the disk is full.
    """
    wanted = _look_through(archive, targets)
    size = sum(member.size for member, place in wanted.values() if not place.is_file())
    if (free := shutil.disk_usage(root).free) < size:
        raise BenchError(
            f"{root}: unpacking {archive.name} needs {size:,} bytes more, {free:,} are free; free some space and give the same "
            "command again"
        )
    folders: set[Path] = {root}
    written = done = 0
    for member, stream in _contents(archive):
        if member.name not in wanted or member.kind != "file":
            continue
        _, place = wanted[member.name]
        try:
            with _told(archive):
                _make_folders(place.parent, root, folders)
                written += _put(member, stream, place, archive)
        except OSError as error:
            raise _not_written(place, error) from error
        done += 1
        if progress is not None:
            progress(done, len(wanted))
    return written


# ---- what is in it -----------------------------------------------------------------------------------------------------


def _look_through(archive: Path, targets: Mapping[str, Path]) -> dict[str, tuple[Member, Path]]:
    """The members that are wanted and where they go, after every name of the archive was looked at."""
    wanted: dict[str, tuple[Member, Path]] = {}
    known: dict[str, str] = {}
    for member in _members(archive):
        if not member.name or not is_inside(member.name) or member.name[1:2] == ":":
            raise Hostile(
                f"{archive}: member {member.name[:100]!r} leads out of its folder; this archive is not to be trusted"
            )
        place = _place_of(member.name, targets)
        if place is None:
            continue
        if member.kind not in ("file", "folder"):
            raise Hostile(
                f"{archive}: member {member.name[:100]!r} is {member.kind}; this archive is not to be trusted"
            )
        if member.kind == "folder":
            continue
        same = unicodedata.normalize("NFC", str(place)).casefold()
        if same in known:
            raise Hostile(
                f"{archive}: members {known[same][:100]!r} and {member.name[:100]!r} are one name on some disks; "
                "this archive is not to be trusted"
            )
        known[same] = member.name
        wanted[member.name] = member, place
    for folder in {str(parent).casefold() for _, place in wanted.values() for parent in place.parents}:
        if folder in known:
            raise Hostile(
                f"{archive}: member {known[folder][:100]!r} is a file and a folder; this archive is not to be trusted"
            )
    for name in targets:
        if not any(member == name.rstrip("/") or (name.endswith("/") and member.startswith(name)) for member in wanted):
            raise Damaged(f"{archive}: has no {name}; it is another archive than expected")
    return wanted


def _place_of(name: str, targets: Mapping[str, Path]) -> Path | None:
    for member, target in targets.items():
        if name == member:
            return target
        if member.endswith("/") and name.startswith(member):
            return target / PurePosixPath(name[len(member) :])
    return None


def _members(archive: Path) -> Iterator[Member]:
    yield from (member for member, _ in _contents(archive, names_only=True))


def _contents(archive: Path, names_only: bool = False) -> Iterator[tuple[Member, IO[bytes]]]:
    """Members in the order of the archive, each with its bytes (to be read before the next; none where ``names_only``)."""
    with _told(archive):
        if archive.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                for info in file.infolist():
                    member = _zip_member(info, archive)
                    if names_only or member.kind != "file":
                        yield member, _NOTHING
                    else:
                        with file.open(info) as stream:
                            yield member, stream
        else:
            with tarfile.open(archive, "r:" if archive.name.endswith(".tar") else "r:gz") as tar:
                for entry in tar:
                    extracted = None if names_only or not entry.isreg() else tar.extractfile(entry)
                    yield _tar_member(entry), extracted or _NOTHING


class _Nothing:
    """The bytes of what is no file."""

    def read(self, size: int = -1) -> bytes:
        return b""


_NOTHING: Any = _Nothing()


def _zip_member(info: zipfile.ZipInfo, archive: Path) -> Member:
    mode = info.external_attr >> 16 if info.create_system == 3 else 0  # 3: written on a Unix
    kind = "file"
    if info.is_dir():
        kind = "folder"
    elif stat.S_ISLNK(mode):
        kind = "a link"
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        kind = "no plain file"
    if info.flag_bits & 1:
        raise Damaged(f"{archive}: member {info.filename[:100]!r} is encrypted; it is another archive than expected")
    return Member(_plain(info.orig_filename), info.file_size, kind)


def _tar_member(entry: tarfile.TarInfo) -> Member:
    kinds = {
        True: "no plain file",
        entry.isreg(): "file",
        entry.isdir(): "folder",
        entry.issym() or entry.islnk(): "a link",
    }
    kinds.pop(False, None)
    return Member(_plain(entry.name), entry.size, kinds[True])


def _plain(name: str) -> str:
    return name.removeprefix("./").rstrip("/") if name not in (".", "./") else "."


@contextmanager
def _told(archive: Path) -> Iterator[None]:
    """What libraries say of a broken archive, in a line."""
    try:
        yield
    except _DAMAGE as error:
        raise Damaged(
            f"{archive}: is damaged or cut off ({' '.join(str(error).split())[:120] or type(error).__name__})"
        ) from error
    except RuntimeError as error:  # an encrypted member, as zipfile says it
        raise Damaged(f"{archive}: cannot be read ({' '.join(str(error).split())[:120]})") from error


# ---- writing ------------------------------------------------------------------------------------------------------------


def _make_folders(folder: Path, root: Path, known: set[Path]) -> None:
    """Make the folders below ``root``; no link among them is followed."""
    if folder in known:
        return
    _make_folders(folder.parent, root, known)
    try:
        folder.mkdir()
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise BenchError(
                f"{folder}: is a link or file, and nothing is unpacked through it; move it away, or give the folder itself with --output"
            ) from None
    known.add(folder)


def _put(member: Member, stream: IO[bytes], place: Path, archive: Path) -> bool:
    """Write one file, unless it is there with the same content; whether it was written."""
    if (there := _lstat(place)) is not None:
        if stat.S_ISREG(there.st_mode) and there.st_size == member.size and _same(place, stream):
            return False
        if not stat.S_ISREG(there.st_mode) or there.st_size:  # empty: left by a power cut
            raise BenchError(
                f"{place}: is there, and is not what {archive.name} holds; move it away and give the same command again"
            )
    part = place.with_name(f".{place.name}.part")
    with open(part, "wb", opener=lambda path, flags: open_in_place(Path(path), flags)) as file:
        try:
            shutil.copyfileobj(stream, file, CHUNK)
            file.flush()
            if (size := file.tell()) != member.size:
                raise Damaged(
                    f"{archive}: is damaged or cut off ({member.name[:100]!r} has {size:,} of {member.size:,} bytes)"
                )
            os.replace(part, place)
        except BaseException:  # a full disk, an interruption: what is half written helps nobody
            part.unlink(missing_ok=True)
            raise
    return True


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _same(place: Path, stream: IO[bytes]) -> bool:
    """Whether a file holds the bytes of a stream, which is read to its end."""
    equal = True
    with open(place, "rb") as file:
        while chunk := stream.read(CHUNK):
            equal = equal and file.read(len(chunk)) == chunk
    return equal


def _not_written(place: Path, error: OSError) -> BenchError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BenchError(
            f"{place}: the disk is full; free some space and give the same command again, which goes on from here"
        )
    return BenchError(
        f"{place}: cannot be written ({(error.strerror or str(error)).lower()}); mend that, or choose another --output"
    )
