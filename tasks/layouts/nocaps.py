"""nocaps, from its annotation files and image folders or from an export: HuggingFaceM4/NoCaps, lmms-lab/NoCaps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.tasks.files import find, look_for, read_json
from beit3_bench.tasks.layouts.places import Picture, find_images
from beit3_bench.tasks.layouts.tables import Column, Record, find_shards, read_rows

EXPORTED = {"val": ("validation", "val"), "test": ("test",)}
COLUMNS = (
    Column(("image",), "the images", image=True),
    Column(("image_id",), "by which captions are scored"),
    Column(("image_file_name",), "which names the images"),
)
CAPTIONS = Column(("annotations_captions",), "the captions")
DOMAIN = Column(("domain", "image_domain"))


@dataclass(frozen=True)
class NoCapsData:
    """content: of the annotation file.  source: what it was read from.  picture: where an image is, by its file's name."""

    content: Any
    source: Path
    picture: Callable[[str], Picture]


def read_nocaps(root: Path, split: str, file: str) -> NoCapsData:
    """A split of nocaps; file: the name of its annotations.

    Raises:
        BenchError: neither the annotations nor an export are there, or the images are not.
    """
    folders = (".", "annotations")
    shards = [] if look_for(root, file, folders) is not None else find_shards(root, EXPORTED[split])
    if not shards:
        path = find(root, file, folders, "nocaps annotations")
        images = find_images(root, split, "nocaps image folder", (".", "images"))
        return NoCapsData(read_json(path, "nocaps"), path, images.picture)
    public = split == "val"
    rows = read_rows(shards, (*COLUMNS, DOMAIN, *([CAPTIONS] if public else [])), "nocaps")
    pictures = {row["image_file_name"]: row["image"].named(f"{root / split}/{row['image_file_name']}") for row in rows}
    return NoCapsData(_content(rows, public), shards[0].parent, lambda name: pictures[name])


def _content(rows: list[Record], public: bool) -> dict[str, Any]:
    """Rows as the annotation file has them. The domain is a part of some exports only."""
    images, annotations = [], []
    for row in rows:
        if not isinstance(row["image_file_name"], str):
            raise BenchError(f"{row['source']}: 'image_file_name' is null; get the export again")
        domain = {} if row["domain"] is None else {"domain": row["domain"]}
        images.append({"id": row["image_id"], "file_name": row["image_file_name"], **domain})
        annotations += [
            {"image_id": row["image_id"], "caption": text} for text in (row["annotations_captions"] if public else [])
        ]
    return {"images": images, "annotations": annotations} if public else {"images": images}
