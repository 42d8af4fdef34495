"""NLVR2's images, from folders, the official ``dev_img.zip``, or an export such as lmms-lab/NLVR2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.tasks.layouts.places import Images, Picture, find_images
from beit3_bench.tasks.layouts.tables import Column, find_shards, read_rows

FOLDERS = (".", "images", "nlvr2", "nlvr2/images")
ORIGINAL = {"train": "images/train"}  # dev and test1 lie at the top
EXPORTED = {
    "train": ("train",),
    "dev": ("dev", "validation", "val", "balanced_dev", "unbalanced_dev"),
    "test1": ("test1", "test_public", "test", "balanced_test_public", "unbalanced_test_public"),
}
"""What exports call the splits; lmms-lab's are two parts of each, and not the whole."""
COLUMNS = (
    Column(("identifier", "uid", "question_id", "id"), "by which pairs are told apart"),
    Column(("sentence", "question"), "the sentences"),
    Column(("label", "answer"), "the truth"),
    Column(("left_image",), "the left images", image=True),
    Column(("right_image",), "the right images", image=True),
    Column(("directory",)),
)


def exported_records(root: Path, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Records as the original lines have them, with the images in ``stored``; none where there is no export.

    Args:
        name: of the original file, without suffix.
    """
    records = []
    for row in read_rows(find_shards(root, EXPORTED[name]), COLUMNS, "NLVR2"):
        source, stored = row.pop("source"), (row.pop("left_image"), row.pop("right_image"))
        if not str(row["identifier"]).startswith(f"{name}-"):
            raise BenchError(
                f"{source}: {str(row['identifier'])[:40]!r} is no identifier of {name} ({name}-SET-PAIR-SENTENCE); give another export "
                "of NLVR2, or its original files"
            )
        directory = row.pop("directory")
        records.append((source, row | {"stored": stored} | ({} if directory is None else {"directory": directory})))
    return records


class PairImages:
    """The two images of a record, from an export or from the folder ``name``."""

    def __init__(self, root: Path, name: str, exported: bool):
        self.folder = str(root / ORIGINAL.get(name, name))
        self._first: dict[str, Picture] = {}
        self._images: Images | None = None
        if not exported:
            archives = (f"{name}_img.zip", f"images/{name}_img.zip")
            self._images = find_images(root, name, "NLVR2 image folder", FOLDERS, (), archives, ORIGINAL.get(name))
        self._nested: bool | None = None

    def pair(self, record: Mapping[str, Any]) -> tuple[Picture, Picture]:
        stem = record["identifier"].rsplit("-", 1)[0]
        directory = str(record["directory"]) if "directory" in record else None
        left, right = (self._one(record, f"{stem}-img{side}.png", side, directory) for side in (0, 1))
        return left, right

    def _one(self, record: Mapping[str, Any], file: str, side: int, directory: str | None) -> Picture:
        inner = file if directory is None else f"{directory}/{file}"
        name = f"{self.folder}/{inner}"
        if self._images is None:  # several sentences show one pair: its first row is read
            return self._first.setdefault(name, record["stored"][side].named(name))
        if self._nested is None:  # also where the archive was unpacked without its folders
            self._nested = directory is not None and self._images.has_folder(directory)
        return Picture(self._images.prefix + (inner if self._nested else file), name)
