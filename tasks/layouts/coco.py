"""COCO's images by the names of 2014, from folders or archives of 2014 or of 2017.

train2017 and val2017 hold the very files of train2014 and val2014, divided anew and without ``COCO_val2014_`` in their names
(cocodataset.org, Download: "The same exact images are used"). test2015 is no such pair: test2017 holds a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.tasks.layouts.places import Images, Picture, find_images, look_for_images

YEAR_2014 = ("train2014", "val2014")


@dataclass(frozen=True)
class Renumbered(Images):
    """The images of a folder of 2014 where those of 2017 are.

    train, val: the folders of 2017.  of_val: names in ``val``.
    """

    train: Images
    val: Images
    of_val: frozenset[str]

    def picture(self, name: str) -> Picture:
        number = name.rpartition("_")[2]
        place = self.val if number in self.of_val else self.train
        return Picture(place.prefix + number, f"{self.folder}/{name}")


@dataclass(frozen=True)
class Shortened(Images):
    """The images of val2017 where val2014 is, which holds them all by longer names."""

    def picture(self, name: str) -> Picture:
        return Picture(f"{self.prefix}COCO_val2014_{name}", f"{self.folder}/{name}")


def find_val2017(root: Path, folders: Sequence[str] = (".", "images")) -> Images:
    """The folder ``val2017``.

    Raises:
        BenchError: neither it is there, nor val2014.
    """
    images = look_for_images(root, "val2017", folders)
    if images is not None:
        return images
    whole = look_for_images(root, "val2014", folders)
    if whole is not None:
        return Shortened(str(root / "val2017"), whole.prefix)
    return find_images(root, "val2017", "COCO image folder", folders)


def find_coco_images(root: Path, name: str, folders: Sequence[str] = (".",)) -> Images:
    """The folder ``train2014``, ``val2014`` or ``test2015``.

    Raises:
        BenchError: neither it is there, nor those of 2017.
    """
    images = look_for_coco_images(root, name, folders)
    return images if images is not None else find_images(root, name, "COCO image folder", folders)


def look_for_coco_images(root: Path, name: str, folders: Sequence[str] = (".",)) -> Images | None:
    """As `find_coco_images`; None where they are nowhere."""
    images = look_for_images(root, name, folders)
    if images is not None or name not in YEAR_2014:
        return images
    train, val = (look_for_images(root, f"{half}2017", folders) for half in ("train", "val"))
    if train is None and val is None:
        return None
    if val is None or train is None:
        there, other = (train, "val2017") if train is not None else (val, "train2017")
        assert there is not None
        raise BenchError(
            f"{there.shown}: holds a part of {name} by its names of 2017, the others are in {other}; put it beside it, or get {name}"
        )
    return Renumbered(str(root / name), "", train, val, frozenset(val.files().names))


class CaptionImages:
    """Images of a split file, which names them by folder and file.

    Args:
        also: other names of a folder in copies of the data, by its own.
    """

    def __init__(self, root: Path, also: Mapping[str, tuple[str, ...]] | None = None):
        self.root, self.also = root, also or {}
        self._folders: dict[str, Images] = {}

    def picture(self, path: str) -> Picture:
        """The image at a path below the data root."""
        folder, _, name = path.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self._find(folder)
        return self._folders[folder].picture(name)

    def _find(self, folder: str) -> Images:
        whole = str(self.root / folder)
        if not folder:
            return Images(whole, f"{whole}/")
        if folder in self.also:
            images = look_for_images(self.root, folder, also=self.also[folder])
        else:
            images = look_for_coco_images(self.root, folder)
        return images if images is not None else Images(whole, f"{whole}/")
