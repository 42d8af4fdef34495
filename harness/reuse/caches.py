"""What `--image-cache` and `--features` keep: finding it, and deleting it without touching anything else."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import read_limited

ABOUT = "about.json"
_FOLDER = re.compile(r"(images|features)-[0-9a-f]{32}")
_OWN = {
    "images": re.compile(
        r"[0-9a-f]{2}/[0-9a-f]{62}\.px|[0-9a-f]{2}/\..*\.px\..*\.part|about\.json|\.about\.json\..*\.part"
    ),
    "features": re.compile(
        r"[0-9a-f]{16}\.pack|head-[0-9a-f]{16}\.pt|about\.json|\.(about\.json|head-[0-9a-f]{16}\.pt)\..*\.part"
    ),
}


@dataclass(frozen=True)
class CacheFolder:
    """One folder of equal preprocessing (``images``) or of one function (``features``).

    files: images, or packs of embeddings.  about: what it holds, in a few words.
    """

    name: str
    path: str
    kind: str
    about: str
    files: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_caches(root: str | Path) -> list[CacheFolder]:
    """The folders directly below ``root`` that a run keeps images or embeddings in.

    Raises:
        BenchError: ``root`` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise BenchError(f"{root}: no such folder; give the one that --image-cache or --features named")
    folders = []
    for folder in sorted(root.iterdir()):
        match = _FOLDER.fullmatch(folder.name)
        if match and folder.is_dir() and not folder.is_symlink():
            sizes = [size for path, size in _files(folder) if path.suffix in (".px", ".pack")]
            folders.append(
                CacheFolder(folder.name, str(folder), match[1], _about(folder, match[1]), len(sizes), sum(sizes))
            )
    return folders


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    """Every file below, with its size; what a run takes away meanwhile is left out."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with suppress(OSError):
                yield path, path.lstat().st_size


def _about(folder: Path, kind: str) -> str:
    try:
        facts = json.loads(read_limited(folder / ABOUT, 2**20))
        if kind == "images":
            corrupted = f", {facts['corrupted']['corruption']}" if "corrupted" in facts else ""
            return f"{facts['size']} px, {facts['mode']}, Pillow {facts['pillow']}{corrupted}"
        *modules, last = facts["code"][-1].split(".")
        by = ".".join([*(name for name in modules if name[:1].isupper()), last])  # the first edition named a method
        kind = f"{facts['input']} {facts['output']} by {by}"
        return f"{kind}, weights {facts['weights'][:12]}, {facts['dtype']}, {facts['device']}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "(about.json is missing or damaged)"


def remove_cache(folder: Path) -> list[str]:
    """Delete the files that runs put into a folder, and the folder if nothing else is in it.

    A run that is using it goes on: it computes what it does not find.

    Returns:
        Names of other files; they stay.

    Raises:
        BenchError: not such a folder, or a file cannot be deleted.
    """
    match = _FOLDER.fullmatch(folder.name)
    if match is None or folder.is_symlink() or not folder.is_dir():
        raise BenchError(f"{folder}: is no folder of cached images or embeddings; nothing was deleted")
    own = _OWN[match[1]]
    strangers = []
    try:
        for place, _, names in os.walk(folder, topdown=False):
            for name in names:
                path = Path(place, name)
                inside = path.relative_to(folder).as_posix()
                if own.fullmatch(inside):
                    path.unlink(missing_ok=True)
                else:
                    strangers.append(inside)
            with suppress(OSError):  # not empty
                os.rmdir(place)
    except OSError as error:
        raise BenchError(
            f"{error.filename or folder}: cannot be deleted ({error.strerror}); check the permissions"
        ) from error
    return sorted(strangers)
