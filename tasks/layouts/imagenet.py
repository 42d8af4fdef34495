"""ImageNet-1K by class, however it is stored.

Class folders (or an archive of them), the flat validation images of the official tar with their truth, the official training tar (a
tar of tars), Kaggle's tree, and exports of the Hugging Face hub (ILSVRC/imagenet-1k). Whatever it is, an image is called as in
``val/n01440764/ILSVRC2012_val_00000293.JPEG``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from beit3_bench.backbones.archives.members import open_archive
from beit3_bench.errors import BenchError
from beit3_bench.tasks.image_folders import IMAGE_SUFFIXES, is_hidden, sorted_images
from beit3_bench.tasks.layouts.imagenet_truth import find_truth
from beit3_bench.tasks.layouts.places import Images, Picture, look_for_images
from beit3_bench.tasks.layouts.tables import Column, Record, find_shards, read_rows

KAGGLE = "ILSVRC/Data/CLS-LOC"
FOLDERS = (".", KAGGLE, f"imagenet-object-localization-challenge/{KAGGLE}")
ALSO = {"val": ("ILSVRC2012_img_val",), "train": ("ILSVRC2012_img_train",)}
ARCHIVES = {"val": ("ILSVRC2012_img_val.tar", "val/ILSVRC2012_img_val.tar"), "train": ()}
TRAIN_TARS = ("ILSVRC2012_img_train.tar", "train.tar")
EXPORTED = {"val": ("validation", "val"), "train": ("train",)}
COLUMNS = (Column(("image",), "the images", image=True), Column(("label",), "the classes"))
_EXPORTED_NAME = re.compile(r"(.+)_(n\d{8})(\.\w+)")
_FOLDER = "ImageNet needs val/<WordNet id>/*.JPEG below --data-root, or the official ILSVRC2012_img_val.tar"


class Classes(ABC):
    """The images of a split by class.  shown: where they are, for messages."""

    shown: str

    @abstractmethod
    def names(self) -> list[str]:
        """Of the classes, as their folders are called."""

    @abstractmethod
    def images(self, name: str) -> tuple[list[tuple[str, Picture]], list[str]]:
        """The images of a class as (name below its folder, picture), in order; and names of files that are none.

        Raises:
            BenchError: there is no such class.
        """

    @abstractmethod
    def stray(self) -> list[str]:
        """Names of files that are in no class."""


@dataclass(frozen=True)
class Lying(Classes):
    """Class folders on disk, listed when they are asked for."""

    folder: Images

    @property
    def shown(self) -> str:  # type: ignore[override]
        return self.folder.shown

    def names(self) -> list[str]:
        return self.folder.entries()[0]

    def stray(self) -> list[str]:
        return self.folder.entries()[1]

    def images(self, name: str) -> tuple[list[tuple[str, Picture]], list[str]]:
        folder = self.folder.below(name)
        if not self.folder.has_folder(name):
            raise _no_class(folder.shown)
        files = folder.files()
        return [(file, folder.picture(file)) for file in files.names], files.left_out


@dataclass(frozen=True)
class Listed(Classes):
    """Images whose classes have been found out already."""

    shown: str
    by_class: dict[str, list[tuple[str, Picture]]]
    left_out: dict[str, list[str]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        return list(self.by_class)

    def stray(self) -> list[str]:
        return self.others

    def images(self, name: str) -> tuple[list[tuple[str, Picture]], list[str]]:
        if name not in self.by_class:
            raise _no_class(f"{self.shown}: {name}")
        return self.by_class[name], self.left_out.get(name, [])


def _no_class(place: str) -> BenchError:
    return BenchError(f"{place}: class folder not found; split train needs the same folders as val")


def find_classes(root: Path, split: str, truth: Path | None = None) -> Classes:
    """The classes of ``val`` or ``train``.

    Args:
        truth: the file that says the classes of flat images; None = the devkit, or Kaggle's file, is looked for.

    Raises:
        BenchError: the images are nowhere, or lie flat and nothing says their classes.
    """
    if split == "train" and not any((root / folder / split).is_dir() for folder in FOLDERS):
        packed = next((root / name for name in TRAIN_TARS if (root / name).is_file()), None)
        classes = None if packed is None else _tar_of_tars(root, packed)
        if classes is not None:
            return classes
    images = look_for_images(root, split, FOLDERS, ALSO[split], ARCHIVES[split])
    if images is None:
        shards = find_shards(root, EXPORTED[split])
        if shards:
            return _exported(root, split, read_rows(shards, COLUMNS, "imagenet-1k"), shards[0].parent)
        raise BenchError(f"{root / split}: folder not found; {_FOLDER}")
    folders, files = images.entries()
    if folders:
        return Lying(images) if images.archive is None else _by_folder(images, files)
    tar = next((name for name in files if name.lower().endswith(".tar")), None)
    if tar is not None:
        raise BenchError(
            f"{images.shown}: holds tar archives ({tar}), one per class; unpack each into a folder of its name, or keep the official "
            "ILSVRC2012_img_train.tar, which is read as it is"
        )
    if not any(PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES for name in files):
        raise BenchError(
            f"{images.shown}: no class folders (found files only?); sort the images into {split}/<WordNet id>/ first"
        )
    return _flat(root, split, images, files, truth)


def _by_folder(images: Images, stray: list[str]) -> Listed:
    """Class folders in an archive, which is gone through once."""
    files = images.files()
    found = Listed(images.shown, {}, {}, stray)
    for name in files.names:
        folder, slash, file = name.partition("/")
        if slash:
            found.by_class.setdefault(folder, []).append((file, images.picture(name)))
    for name in files.left_out:
        folder, slash, file = name.partition("/")
        if slash:
            found.by_class.setdefault(folder, [])
            found.left_out.setdefault(folder, []).append(file)
    return found


def _flat(root: Path, split: str, images: Images, files: list[str], truth: Path | None) -> Listed:
    listed = sorted_images(files)
    source, classes = find_truth(root, truth)
    if classes is None:
        raise BenchError(
            f"{images.shown}: the images lie in no class folders, and nothing says their classes; give -o truth=FILE (lines of name and "
            "WordNet id), put ILSVRC2012_devkit_t12.tar.gz or Kaggle's LOC_val_solution.csv beside it, or sort them into "
            f"{split}/<WordNet id>/"
        )
    by_class: dict[str, list[tuple[str, Picture]]] = {name: [] for name in sorted(set(classes.values()))}
    unknown = [name for name in listed.names if PurePosixPath(name).stem not in classes]
    if unknown:
        raise BenchError(
            f"{source}: says no class of {len(unknown)} of {len(listed.names)} images ({unknown[0]}, ...); give the truth of these images"
        )
    for name in listed.names:
        wnid = classes[PurePosixPath(name).stem]
        by_class[wnid].append((name, Picture(images.prefix + name, f"{root}/{split}/{wnid}/{name}")))
    return Listed(images.shown, by_class, {}, listed.left_out)


def _tar_of_tars(root: Path, file: Path) -> Listed | None:
    """The official training set; None where the archive holds class folders."""
    archive = open_archive(file)
    inner = [name for name in archive if "!" in name]
    if not inner:
        return None
    by_class: dict[str, list[tuple[str, Picture]]] = {}
    for name in sorted(inner):
        tar, _, image = name.partition("!")
        wnid = PurePosixPath(tar).stem
        if not is_hidden(wnid) and PurePosixPath(image).suffix.lower() in IMAGE_SUFFIXES:
            by_class.setdefault(wnid, []).append((image, Picture(f"{file}!{name}", f"{root}/train/{wnid}/{image}")))
    return Listed(str(file), by_class)


def _exported(root: Path, split: str, rows: list[Record], place: Path) -> Listed:
    found: dict[str, list[tuple[str, Picture]]] = {}
    labels: dict[int, str] = {}
    for row in rows:
        file, wnid = _original(row)
        label = row["label"]
        if labels.setdefault(label, wnid) != wnid:
            raise BenchError(
                f"{row['source']}: label {label} is {wnid} here and {labels[label]} in another row; get the export again"
            )
        found.setdefault(wnid, []).append((file, row["image"].named(f"{root}/{split}/{wnid}/{file}")))
    if [labels[n] for n in sorted(labels)] != sorted(labels.values()):
        raise BenchError(
            f"{place}: its labels do not count the WordNet ids in order, as those of imagenet-1k do; give another export, or the "
            "original files"
        )
    return Listed(str(place), {wnid: sorted(found[wnid]) for wnid in sorted(found)})


def _original(row: Record) -> tuple[str, str]:
    """The file name and the WordNet id of a row: exports write ``ILSVRC2012_val_00000293_n01440764.JPEG``."""
    source, label, stored = row["source"], row["label"], row["image"]
    name = PurePosixPath(stored.file_name or "").name
    if not name:
        raise BenchError(
            f"{source}: says no file name ('image.path' is null), by which images are told apart; give another export of imagenet-1k, or "
            "its original files"
        )
    if not isinstance(label, int) or label < 0:
        raise BenchError(
            f"{source}: label {label!r} is no class; give another export of imagenet-1k, or its original files"
        )
    match = _EXPORTED_NAME.fullmatch(name)
    if match is not None:
        return match[1] + match[3], match[2]
    from beit3_bench.tasks.class_folders import imagenet_classes

    known = imagenet_classes()
    if label >= len(known):
        raise BenchError(f"{source}: label {label} is none of {len(known)} classes; give another export of imagenet-1k")
    return name, known[label]
