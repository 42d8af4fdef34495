"""Where the files of a data set come from: official addresses, sizes, checksums and licences, as data beside the task's facts.

What no source states is left out there: a size is then asked of the server, and `data verify` pins a file without a checksum when
it first sees it. Data whose authors want to be asked has steps in place of an address.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from beit3_bench.addresses import check_address
from beit3_bench.checksums import check_checksum
from beit3_bench.errors import BenchError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
"""Suffixes of files that are unpacked."""


@dataclass(frozen=True)
class Place:
    """A file that its authors publish, and what a data set needs of it.

    Attributes:
        file: its name, also in a mirror; for pictures, a name of all of them.
        of: the task that states what is not stated here (the same archive serves several).
        splits: splits that need it; ``train`` may be meant for fine-tuning alone.
        url: its official address; "" where the authors want to be asked (see ``steps``).
        steps: what a person does to get it, one line each.
        bytes: its size.  checksum: SHA-256, SHA-1 or MD5 in hex.
        licence: terms, in a few words, or their address.
        members: of an archive, what is unpacked -> where below the data root; folders end with a slash. Of any other file: its name
            -> where it is put.
        files: number of files in the folders of ``members``, where a source states it; fewer are not the whole.
        folders: of the data root, in which these may lie; they are put into the first. None: the data root itself.
        listed_in: a JSON file below the data root whose ``images`` have a ``file_name`` each: those are fetched from ``url``, which
            ends with a slash, into the one folder of ``members``.
        other_url: where pictures lie, too, if ``url`` refuses.
        also_called: other names that the file is handed out under.
    """

    file: str
    of: str = ""
    splits: tuple[str, ...] = ()
    url: str = ""
    steps: tuple[str, ...] = ()
    bytes: int | None = None
    checksum: str = ""
    licence: str = ""
    members: Mapping[str, str] = field(default_factory=dict)
    files: int | None = None
    folders: tuple[str, ...] = ()
    listed_in: str = ""
    other_url: str = ""
    also_called: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            for url in filter(None, (self.url, self.other_url)):
                check_address(url)
            if self.checksum:
                check_checksum(self.checksum)
        except BenchError as error:
            raise ValueError(f"{self.file}: {error}") from error
        for name in (self.file, *self.also_called):
            if not is_file_name(name):
                raise ValueError(f"file {name!r} is no plain name of a file; write it without folders")
        for path in (*self.members.values(), *self.folders, self.listed_in):
            if path and not is_inside(path):
                raise ValueError(
                    f"{self.file}: {path!r} does not stay below the data root; write a relative path without .."
                )
        if not self.of and not (self.url or self.steps):
            raise ValueError(f"{self.file} has neither url nor steps; say where it comes from")

    @property
    def is_archive(self) -> bool:
        return self.file.endswith(ARCHIVES)

    def stated_by(self, other: Place) -> Place:
        """With what is left out here as another task states it."""
        own = {f.name: value for f in dataclasses.fields(self) if (value := getattr(self, f.name)) != _default(f)}
        return dataclasses.replace(other, **(own | {"of": ""}))

    def with_members(self, other: Place) -> Place:
        """The same file for more of its members."""
        return dataclasses.replace(self, members={**self.members, **other.members}, files=None)

    def address(self, mirror: str | None = None) -> str:
        """Where to fetch it from; a mirror has files under their names, and pictures in folders as on their official server."""
        if not mirror or not self.url:
            return self.url
        return f"{mirror.rstrip('/')}/{self.url.split('/', 3)[3] if self.listed_in else self.file}"

    def find(self, root: Path, target: str) -> Path | None:
        """Where one of the targets of ``members`` lies, or None; a folder counts where it holds what is stated of it."""
        for folder in self.folders or (".",):
            path = root / folder / target
            if path.is_dir() if target.endswith("/") else path.is_file():
                return path
        return None

    def put(self, root: Path, target: str) -> Path:
        """Where one of the targets is put."""
        return root / (self.folders or (".",))[0] / target

    def missing(self, root: Path, known: Callable[[str], Path | None] = lambda target: None) -> list[str]:
        """Targets of ``members`` that are not there, or of which less is there than ``files`` says.

        known: where else a target is found, by who knows the readers better.
        """
        places = {target: self.find(root, target) or known(target) for target in self.members.values()}
        gone = [target for target, place in places.items() if place is None]
        if not gone and self.files is not None:
            folders = [place for target, place in places.items() if place is not None and target.endswith("/")]
            if folders and sum(map(_count_files, folders)) < self.files:
                return [target for target in places if target.endswith("/")]
        return gone


def _default(of: dataclasses.Field[Any]) -> Any:
    return of.default_factory() if of.default_factory is not dataclasses.MISSING else of.default


def is_file_name(name: str) -> bool:
    """Whether a text is a name without folders."""
    return (
        bool(name)
        and PurePosixPath(name).name == name
        and name not in (".", "..")
        and "\\" not in name
        and "\0" not in name
    )


def is_inside(path: str) -> bool:
    """Whether a relative path in POSIX form stays below the folder that it is joined to."""
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and "\\" not in path and "\0" not in path


def _count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))
