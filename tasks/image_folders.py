"""Folders of images as torchvision's `ImageFolder` reads them, without what operating systems and editors leave there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from beit3_bench.errors import BenchError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""torchvision's ``IMG_EXTENSIONS``; letter case does not matter."""

_LITTER = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("icon\r", "lost+found", "@eadir", "#recycle", "__pycache__"),
}


def is_hidden(name: str) -> bool:
    """Whether a file or folder was left by a system or an editor: ``._NAME``, ``.ipynb_checkpoints``, ``Thumbs.db``, ..."""
    return name.startswith(".") or name.lower() in _LITTER


@dataclass(frozen=True)
class ImageFiles:
    """What lies below a folder.

    names: of the images, relative to the folder with ``/`` between, in torchvision's order (by folder, then by name).
    left_out: names of files that are no images by their suffix; hidden ones are not among them.
    """

    names: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def by_stem(self, folder: Path | str) -> dict[str, str]:
        """Names by themselves without suffix.

        Raises:
            BenchError: two files differ by their suffix alone; begins with ``folder``.
        """
        stems: dict[str, str] = {}
        for name in self.names:
            stem = name[: -len(suffix_of(name))]
            if stem in stems:
                raise BenchError(f"{folder}: {stems[stem]} and {name} differ by their suffix alone; keep one of them")
            stems[stem] = name
        return stems


def suffix_of(name: str) -> str:
    """The suffix of a file's name with its dot, as it is written; empty where there is none."""
    return os.path.splitext(name)[1]


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones left out, sorted.

    Raises:
        BenchError: the folder cannot be listed, or a name is not text.
    """
    return sorted(name for name, is_folder in _entries(str(folder)) if is_folder)


def stray_files(folder: Path) -> list[str]:
    """Names of the files that lie beside the class folders, hidden ones left out, sorted."""
    return sorted(name for name, is_folder in _entries(str(folder)) if not is_folder)


def images_below(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> ImageFiles:
    """The images in a folder and in the folders below it; links to folders are followed, but not round in circles.

    Raises:
        BenchError: a folder cannot be listed, or a name is not text.
    """
    pending: list[tuple[str, str, frozenset[tuple[int, int]]]] = [("", str(folder), frozenset())]
    by_folder: dict[str, list[str]] = {}
    while pending:
        below, place, above = pending.pop()
        entries = _entries(place)
        by_folder[below] = [name for name, is_folder in entries if not is_folder]
        folders = [name for name, is_folder in entries if is_folder]
        if folders:  # rare: only then is it asked which folder this is
            state = os.stat(place)
            above |= {(state.st_dev, state.st_ino)}
        for name in folders:
            state = os.stat(os.path.join(place, name))
            if (state.st_dev, state.st_ino) not in above:
                pending.append((f"{below}{name}/", os.path.join(place, name), above))
    return _in_order(by_folder, suffixes)


def sorted_images(names: Iterable[str], suffixes: Collection[str] = IMAGE_SUFFIXES) -> ImageFiles:
    """Names of files, with ``/`` between folders, as `images_below` would list them."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, slash, file = name.rpartition("/")
        by_folder.setdefault(folder + slash, []).append(file)
    return _in_order(by_folder, suffixes)


def _in_order(by_folder: Mapping[str, Sequence[str]], suffixes: Collection[str]) -> ImageFiles:
    files = ImageFiles()
    for below in sorted(by_folder, key=lambda name: name.removesuffix("/")):
        for name in sorted(by_folder[below]):
            (files.names if suffix_of(name).lower() in suffixes else files.left_out).append(below + name)
    return files


def left_out_line(folder: Path | str, names: Sequence[str]) -> str | None:
    """Which files of a folder are no samples, in one line: how many of each suffix, and an example; None without any."""
    if not names:
        return None
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(suffix_of(name).lower() or "no suffix", []).append(name)
    commonest = sorted(kinds.items(), key=lambda kind: (-len(kind[1]), kind[0]))
    told = [f"{len(members):,} {_shown(kind)} (such as {_shown(members[0])})" for kind, members in commonest[:5]]
    rest = f", {len(kinds) - 5} more kinds" if len(kinds) > 5 else ""
    files = "file is" if len(names) == 1 else "files are"
    return f"{folder}: {len(names):,} {files} left out: {', '.join(told)}{rest}"


def _shown(name: str) -> str:
    """A name that neither breaks a line nor moves a terminal's cursor, however long it is."""
    return name[:200] if name.isprintable() else repr(name[:200])


def _entries(place: str) -> list[tuple[str, bool]]:
    """Names in a folder that are not hidden, and whether each is a folder."""
    try:
        with os.scandir(place) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise BenchError(f"{place}: folder cannot be listed ({error.strerror}); check its permissions") from error
    for name, _ in listed:
        if not name.isprintable() and not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise BenchError(f"{place}: the name {name!r} is not UTF-8; rename it") from error
    return listed
