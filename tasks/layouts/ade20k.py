"""ADE20K's images and label maps: folders, ``ADEChallengeData2016.zip``, or an export with the maps of SceneParse150."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from beit3_bench.errors import BenchError
from beit3_bench.tasks.image_folders import IMAGE_SUFFIXES, left_out_line
from beit3_bench.tasks.layouts.places import Images, Picture, find_images, look_for_images
from beit3_bench.tasks.layouts.tables import Column, Record, find_shards, read_rows

FOLDERS = (".", "ADEChallengeData2016")
ARCHIVES = ("ADEChallengeData2016.zip",)
EXPORTED = {"validation": ("validation", "val"), "training": ("train", "training"), "testing": ("test", "testing")}
LOOKED_AT = 32
"""How many label maps of an export are looked at before it is believed."""
IMAGE = Column(("image",), "the images", image=True)
LABEL = Column(("annotation", "label", "mask"), "the label maps", image=True)
NAME = Column(("filename", "file_name"))


@dataclass(frozen=True)
class Scenes:
    """images, labels: by file name without suffix; labels is None where the truth is not public.  left_out: a line, or None."""

    images: dict[str, Picture]
    labels: dict[str, Picture] | None
    left_out: str | None = None


def read_scenes(root: Path, subset: str) -> Scenes:
    """The images of ``validation``, ``training`` or ``testing``.

    Raises:
        BenchError: they are nowhere, or an image has no label map.
    """
    if look_for_images(root, f"images/{subset}", FOLDERS, (), ARCHIVES) is None:
        shards = find_shards(root, EXPORTED[subset])
        if shards:
            return _exported(root, subset, shards)
    images = find_images(root, f"images/{subset}", "ADE20K image folder", FOLDERS, (), ARCHIVES)
    files = images.files()
    named = files.by_stem(images.shown)
    left_out = left_out_line(images.shown, files.left_out)
    if not named:
        raise BenchError(
            f"{images.shown}: no images ({', '.join(IMAGE_SUFFIXES)}); {left_out or 'complete the download'}"
        )
    pictures = {stem: images.picture(name) for stem, name in named.items()}
    return Scenes(pictures, None if subset == "testing" else _labels(root, subset, named), left_out)


def _labels(root: Path, subset: str, named: dict[str, str]) -> dict[str, Picture]:
    name = f"annotations/{subset}"
    labels = look_for_images(root, name, FOLDERS, (), ARCHIVES)
    maps = {} if labels is None else labels.files((".png",)).by_stem(labels.shown)
    labels = labels or Images(str(root / name), f"{root / name}/")
    missing = [image for stem, image in named.items() if stem not in maps]
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise BenchError(
            f"{labels.shown}: {len(missing)} of {len(named)} images have no annotation ({names}); complete the download"
        )
    return {stem: labels.picture(maps[stem]) for stem in named}


def _exported(root: Path, subset: str, shards: Sequence[Path]) -> Scenes:
    public = subset != "testing"
    rows = read_rows(shards, (IMAGE, NAME, *([LABEL] if public else [])), "SceneParse150 (ADE20K)")
    images, labels = {}, {}
    for row in rows:
        stem, suffix = _name(row)
        if stem in images:
            raise BenchError(
                f"{row['source']}: image {stem} is listed twice; give another export of ADE20K, or its original files"
            )
        images[stem] = row["image"].named(f"{root}/images/{subset}/{stem}{suffix}")
        if public:
            labels[stem] = row["annotation"].named(f"{root}/annotations/{subset}/{stem}.png")
    for label in list(labels.values())[:LOOKED_AT]:
        _check_numbering(label.path)
    order = sorted(images)
    return Scenes({s: images[s] for s in order}, {s: labels[s] for s in order} if public else None)


def _name(row: Record) -> tuple[str, str]:
    """Stem and suffix of an image's original name."""
    name = row["filename"] or row["image"].file_name
    if not name:
        raise BenchError(
            f"{row['source']}: says no file name (neither a column 'filename' nor 'image.path'), by which images are told apart; "
            "give another export of ADE20K, or its original files"
        )
    path = PurePosixPath(name)
    return path.stem, path.suffix


def _check_numbering(label: str) -> None:
    """Raise for a map of other classes than SceneParse150's 0 (other) and 1..150: the original maps have no 255, one that counts
    from 0 and ignores 255 has.
    """
    from beit3_bench.backbones.label_images import read_map

    most = int(read_map(label, "annotation").max())
    if most > 150:
        raise BenchError(
            f"{label}: annotation holds {most}; those of SceneParse150 hold 0 (other) and classes 1..150, and this export's are of "
            "another numbering; give another export of ADE20K, or its original files"
        )
