"""What of a data set is there, what is to be fetched from where, and how much that is."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from beit3_bench.download import announced_size, bytes_so_far
from beit3_bench.errors import BenchError
from beit3_bench.files import write_atomic
from beit3_bench.harness.settings.places import NotThere, find_data
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.contract import Task
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.files import field, read_json
from beit3_bench.tasks.places import Place, is_file_name

DOWNLOADS = "downloads"
"""Folder below a data root for what is on its way: archives, and notes on those that are being unpacked."""
ALL = "all"

State = Literal["there", "unpack", "get", "by hand"]


@dataclass
class Piece:
    """A file of its authors that splits of a data set need.

    place: with the members of all of these splits.
    missing: targets (see `Place.members`) that are not there, or not whole.
    size: bytes; None where nobody says it.  have: bytes of it that are here.
    """

    place: Place
    root: Path
    tasks: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    mirror: str | None = None
    size: int | None = None

    @property
    def url(self) -> str:
        return self.place.address(self.mirror)

    @property
    def archive(self) -> Path:
        """Where it is downloaded to."""
        return self.root / DOWNLOADS / self.place.file

    @property
    def note(self) -> Path:
        """Lists the targets that are being unpacked; empty once all of them are, until the archive is gone."""
        return self.root / DOWNLOADS / f"{self.place.file}.unpacking"

    def unfinished(self) -> list[str] | None:
        """What the note lists; None where there is none."""
        return self.note.read_text(encoding="utf-8", errors="replace").splitlines() if self.note.is_file() else None

    def take_note(self, targets: Sequence[str]) -> None:
        """Write down which targets are not whole yet."""
        write_atomic(self.note, "".join(f"{target}\n" for target in dict.fromkeys(targets)).encode())

    @property
    def is_unpacked(self) -> bool:
        """Whether the archive is only there still because the process was killed."""
        return self.unfinished() == []

    def own_copy(self) -> Path | None:
        """The file as somebody has laid it into the data root; it is read, and never deleted."""
        names = (self.place.file, *self.place.also_called) if self.place.is_archive else ()
        return next((path for name in names if (path := self.root / name).is_file()), None)

    @property
    def state(self) -> State:
        if not self.missing:
            return "there"
        if self.own_copy() or (self.place.url and self.place.is_archive and self.archive.is_file()):
            return "unpack"
        return "get" if self.place.url else "by hand"

    @property
    def have(self) -> int:
        return bytes_so_far(self.archive) if self.place.url and not self.place.listed_in else 0

    def steps(self) -> list[str]:
        """What a person does to get it."""
        return [step.replace("{root}", str(self.root)) for step in self.place.steps]

    def to_dict(self) -> dict[str, Any]:
        return {
            "file": self.place.file,
            "state": self.state,
            "tasks": self.tasks,
            "root": str(self.root),
            "missing": self.missing,
            "url": self.url or None,
            "steps": self.steps(),
            "bytes": self.size,
            "bytes_here": self.have,
            "checksum": self.place.checksum or None,
            "licence": self.place.licence,
        }


# ---- what is missing ------------------------------------------------------------------------------------------------------


def known_splits(task: type[Task]) -> list[str]:
    """Splits of a task, and those that are only for fine-tuning."""
    places = read_facts(task.name).data.places
    return list(dict.fromkeys([*task.splits, *(split for place in places for split in place.splits)]))


def splits_of(task: type[Task], split: str | None) -> list[str]:
    """The splits that a name stands for: none = the default one, ``all`` = every one.

    Raises:
        BenchError: an unknown name.
    """
    known = known_splits(task)
    if split == ALL:
        return known
    if split is not None and split not in known:
        raise BenchError(f"task {task.name} has no split {split!r}; {did_you_mean(split, [*known, ALL], 'it has')}")
    return [split or task.default_split]


def root_of(task: str, folder: Path) -> Path:
    """The data root of a task in a folder: the folder itself where it is one, or is called as the data set; else one in it.

    Raises:
        BenchError: several in it may be.
    """
    names = read_facts(task).data.folders
    if folder.is_dir():
        try:
            return find_data(task, folder)
        except NotThere:
            pass
    return folder if folder.resolve().name in names else folder / (names or (task,))[0]


def pieces_of(
    task: type[Task], splits: Sequence[str], root: Path, mirror: str | None = None, pieces: list[Piece] | None = None
) -> list[Piece]:
    """What splits of a task need, in the order of its facts; what several of them need is one piece.

    pieces: of other tasks, to which these are added.
    """
    data = read_facts(task.name).data
    needs = {Path(need.path).name: need for need in data.needs}

    def elsewhere(target: str) -> Path | None:
        need = needs.get(Path(target).name)
        return need.find_itself(root) if need is not None else None

    pieces = [] if pieces is None else pieces
    for place in data.places:
        if not set(splits) & set(place.splits):
            continue
        piece = next((p for p in pieces if p.place.file == place.file and p.root == root), None)
        if piece is None:
            piece = Piece(place, root, mirror=mirror, size=place.bytes)
            pieces.append(piece)
        else:
            piece.place = piece.place.with_members(place)
        unfinished = piece.unfinished() or []
        missing = _missing(place, root, elsewhere) + [t for t in place.members.values() if t in unfinished]
        piece.missing = list(dict.fromkeys([*piece.missing, *missing]))
        piece.tasks = list(dict.fromkeys([*piece.tasks, task.name]))
    return pieces


def _missing(place: Place, root: Path, elsewhere: Callable[[str], Path | None]) -> list[str]:
    """As `Place.missing`; pictures are there when all are that their list names, where the list is there."""
    if not place.listed_in or list_of(place, root) is None:
        return place.missing(root, elsewhere)
    targets = list(place.members.values())
    folders = [place.find(root, target) for target in targets]
    there = {name for folder in folders if folder is not None for name in os.listdir(folder)}
    return targets if set(listed_names(place, root)) - there else []


def list_of(place: Place, root: Path) -> Path | None:
    """Where the annotations lie that list pictures, or None."""
    return next((path for f in (".", "annotations") if (path := root / f / place.listed_in).is_file()), None)


def listed_names(place: Place, root: Path) -> list[str]:
    """File names of pictures, from the annotations that list them; they are no more than names.

    Raises:
        BenchError: no such file, or a name with folders.
    """
    path = list_of(place, root) or root / place.listed_in
    names = []
    for number, record in enumerate(field(read_json(path, "annotations"), "images", list, str(path))):
        name = field(record, "file_name", str, f"{path}: images[{number}]")
        if not is_file_name(name) or name.startswith("."):
            raise BenchError(
                f"{path}: images[{number}]: {name[:100]!r} is no plain name of a file; get the annotations again"
            )
        names.append(name)
    return list(dict.fromkeys(names))


def places_of_missing(task: type[Task], splits: Sequence[str], root: Path) -> list[str]:
    """Where what splits lack comes from, a line each, and the command that gets it."""
    try:
        gone = [piece for piece in pieces_of(task, splits, root) if piece.missing]
    except BenchError:  # of a broken list of pictures, which is a finding of its own
        return []
    lines = [f"{' '.join(piece.missing)}: {piece.url or '; '.join(piece.steps())}" for piece in gone]
    for split in splits:
        if any(piece.missing for piece in pieces_of(task, [split], root)):
            lines.append(f"beit3-bench data get --task {task.name} --split {split} --output {root}")
    return lines


# ---- how much ------------------------------------------------------------------------------------------------------------


@dataclass
class Amount:
    """download: bytes to fetch, of which size is known.  unknown: names of pieces whose size nobody says.

    disk: bytes that the disk must have, about: what is fetched, what comes out of it, and archives for as long as they are there.
    """

    download: int
    disk: int
    free: int
    unknown: list[str]


def ask_sizes(pieces: Sequence[Piece]) -> None:
    """Ask servers for sizes that no source states.

    Raises:
        BenchError: a server is not reached.
    """
    for piece in pieces:
        if piece.size is None and piece.state == "get" and not piece.place.listed_in:
            piece.size = announced_size(piece.url)


def amount_of(pieces: Sequence[Piece], folder: Path, keep_archives: bool = False) -> Amount:
    """What getting these pieces takes. Archives of images come out at about their own size."""
    wanted = [piece for piece in pieces if piece.state == "get"]
    known = [(piece.size, piece.have) for piece in wanted if piece.size is not None]
    download = sum(max(size - have, 0) for size, have in known)
    unpacked = [piece.size for piece in wanted if piece.size is not None and piece.place.is_archive]
    on_the_way = sum(unpacked) if keep_archives else max(unpacked, default=0)
    here = sum(have for _, have in known)
    disk = max(sum(size for size, _ in known) + on_the_way - here, download)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    return Amount(download, disk, shutil.disk_usage(there).free, [p.place.file for p in wanted if p.size is None])
