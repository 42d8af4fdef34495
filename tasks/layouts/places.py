"""Where the images of a data set are: in the folder of the original layout, in one of another name, or in an archive in its place.

Whatever they are read from, they are called as in the original layout (`Picture.name`), so that the data is the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from beit3_bench.backbones.archives.archive import Archive
from beit3_bench.backbones.archives.members import open_archive
from beit3_bench.errors import BenchError
from beit3_bench.tasks.image_folders import ImageFiles, images_below, is_hidden, sorted_images

ARCHIVES = (".zip", ".tar")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".rar", ".7z")
PACKED = (*ARCHIVES, ".tar.gz", ".tgz", ".gz", ".rar", ".7z")


class Picture(NamedTuple):
    """path: what is opened, a file or a member of an archive.  name: the same picture as a file of the original layout."""

    path: str
    name: str


def names_of(*pictures: Picture) -> tuple[str, ...]:
    """`Example.names` of an example with these images."""
    return () if all(path == name for path, name in pictures) else tuple(name for _, name in pictures)


@dataclass(frozen=True)
class Images:
    """A folder of images.

    folder: as it would be in the original layout.
    prefix: what stands before a name: ``"/data/val2014/"``, ``"/data/val2014.zip!val2014/"``, ``"/data/val2014.tar!"``.
    """

    folder: str
    prefix: str

    def picture(self, name: str) -> Picture:
        return Picture(self.prefix + name, f"{self.folder}/{name}")

    def below(self, name: str) -> Images:
        """A folder in this one."""
        return Images(f"{self.folder}/{name}", f"{self.prefix}{name}/")

    @property
    def shown(self) -> str:
        """The folder, or the place in an archive, for messages."""
        return self.prefix.rstrip("!/")

    @property
    def archive(self) -> Archive | None:
        """The archive that they are in."""
        head, mark, _ = self.prefix.partition("!")
        return open_archive(head) if mark and head.lower().endswith(ARCHIVES) else None

    def has_folder(self, name: str) -> bool:
        """Whether there is a folder of this name in it."""
        archive = self.archive
        if archive is None:
            return (Path(self.shown) / name).is_dir()
        return f"{self.prefix[len(archive.path) + 1 :]}{name}" in archive.folders

    def files(self, suffixes: Sequence[str] | None = None) -> ImageFiles:
        """The images in the folder and below it, as `images_below` lists them.

        Raises:
            BenchError: the folder cannot be listed, the archive is damaged or holds archives.
        """
        given = {} if suffixes is None else {"suffixes": suffixes}
        if self.archive is None:
            return images_below(Path(self.shown), **given)
        return sorted_images(self._names(), **given)

    def entries(self) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files in this folder, hidden ones left out, sorted."""
        if self.archive is None:
            from beit3_bench.tasks.image_folders import class_folders, stray_files

            return class_folders(Path(self.shown)), stray_files(Path(self.shown))
        names = list(self._names())
        return sorted({n.partition("/")[0] for n in names if "/" in n}), sorted(n for n in names if "/" not in n)

    def _names(self) -> Iterator[str]:
        """Members of the archive below the folder, hidden ones left out."""
        archive = self.archive
        assert archive is not None
        inner = self.prefix[len(archive.path) + 1 :]
        for name in archive:
            if name.startswith(inner) and not any(is_hidden(part) for part in name.split("/")):
                yield name[len(inner) :]


def find_images(
    root: Path,
    name: str,
    what: str,
    folders: Sequence[str] = (".",),
    also: Sequence[str] = (),
    archives: Sequence[str] = (),
    original: str | None = None,
) -> Images:
    """A folder of images: as ``root/FOLDER/name``, or packed in its place.

    Args:
        name: of the folder, perhaps with others above it (``images/validation``).
        folders: where it may be, ``"."`` first.
        also: other names below the root that it has in copies of the data.
        archives: what its official archive is called, wherever ``name`` is in it.
        original: where it is in the original layout; default: ``name``.

    Raises:
        BenchError: it is nowhere; names the first place that was looked at, or the archive that cannot be read in place.
    """
    images = look_for_images(root, name, folders, also, archives, original)
    if images is not None:
        return images
    places = [root / folder / name for folder in folders]
    for place in places:
        for suffix in COMPRESSED:
            packed = place.with_name(place.name + suffix)
            if packed.is_file():
                raise BenchError(
                    f"{packed}: an archive of this kind cannot be read in place; unpack it, or make a .zip or an uncompressed .tar of it"
                )
    raise BenchError(
        f"{places[0]}: {what} not found (nor in {len(places) + len(also) - 1} other places, nor as .zip or .tar); "
        "check --data-root (see: beit3-bench tasks)"
    )


def look_for_images(
    root: Path,
    name: str,
    folders: Sequence[str] = (".",),
    also: Sequence[str] = (),
    archives: Sequence[str] = (),
    original: str | None = None,
) -> Images | None:
    """As `find_images`; None where they are nowhere."""
    canonical = str(root / (original or name))
    for place in [*(root / folder / name for folder in folders), *(root / other for other in also)]:
        if place.is_dir():
            return Images(canonical, f"{place}/")
    for file, wanted, least in packed_places(root, name, folders, also, archives):
        if file.is_file():
            return Images(canonical, _inside(file, wanted, least))
    return None


def packed_places(
    root: Path, name: str, folders: Sequence[str] = (".",), also: Sequence[str] = (), archives: Sequence[str] = ()
) -> Iterator[tuple[Path, tuple[str, ...], int]]:
    """Archives that a folder may be in, its own and those of the folders above it; with the folder's path as it may be in there, and
    how many of its last parts have to be.
    """
    paths = [PurePosixPath(folder, name) for folder in folders] + [PurePosixPath(other) for other in also]
    for path in paths:
        for end in range(len(path.parts), 0, -1):
            above = root.joinpath(*path.parts[:end])
            for suffix in ARCHIVES:
                yield above.with_name(above.name + suffix), path.parts, len(path.parts) - end
    for archive in archives:
        parts = PurePosixPath(name).parts
        yield root / archive, parts, len(parts) if len(parts) > 1 else 0


def _inside(file: Path, wanted: tuple[str, ...], least: int) -> str:
    """What stands before the names of images in an archive.

    wanted, least: see `packed_places`. Where none has to be there, the archive is of the folder itself, and may hold it by its name, under
        the one folder at its top, or at its top.
    """
    archive = open_archive(file)
    for first in range(len(wanted) - max(least, 1) + 1):
        tail = "/".join(wanted[first:])
        fitting = [f for f in archive.folders if f == tail or f.endswith(f"/{tail}")]
        fitting = [f for f in fitting if not any(is_hidden(part) for part in f.split("/"))]
        depth = min((f.count("/") for f in fitting), default=0)
        nearest = sorted(f for f in fitting if f.count("/") == depth)
        if len(nearest) > 1:
            raise BenchError(
                f"{file}: has folders {nearest[0]} and {nearest[1]}, and either may be meant; unpack one of them"
            )
        if nearest:
            return f"{file}!{nearest[0]}/"
    tops = sorted({n.partition("/")[0] for n in archive if "/" in n and not is_hidden(n.partition("/")[0])})
    at_top = [n for n in archive if "/" not in n and not is_hidden(n)]
    if not tops and all("!" in n or n.lower().endswith(PACKED) for n in at_top):
        why = f"archives ({at_top[0]}), not images; unpack it once" if at_top else "no files; get it again"
        raise BenchError(f"{file}: holds {why}")
    if not least:
        return f"{file}!{tops[0]}/" if len(tops) == 1 and not at_top else f"{file}!"
    raise BenchError(
        f"{file}: has no folder {'/'.join(wanted[-least:])} (it has: {', '.join(tops[:5]) or 'none'}); get the right archive, or unpack it"
    )
