"""COCO instance files: reading annotations, checking them, and the official result records."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.backbones.errors import BenchError
from beit3_bench.tasks.base import Row
from beit3_bench.tasks.files import field, read_json, unique, write_json

ALGORITHM = re.compile(r"[A-Za-z0-9.-]+")


@dataclass(frozen=True)
class Instances:
    """An instances (or image_info) file.

    images: records with id, file_name, height, width, in the file's order.
    objects: image id -> annotation records; None for a file without annotations (test splits).
    categories: records with id and name, by id; a class is a position in this list.
    """

    images: list[dict[str, Any]]
    objects: dict[int, list[dict[str, Any]]] | None
    categories: list[dict[str, Any]]


def read_instances(path: Path) -> Instances:
    """Read and check an annotation file.

    Raises:
        BenchError: a missing key, a duplicated id, an object of an unknown image or category, a box that is not four
            finite numbers, an RLE of another size than its image.
    """
    content = read_json(path, "COCO instances")
    images = field(content, "images", list, str(path))
    categories = field(content, "categories", list, str(path))
    sizes: dict[int, tuple[int, int]] = {}
    for number, image in enumerate(images):
        source = f"{path}: images[{number}]"
        height, width = (field(image, key, int, source) for key in ("height", "width"))
        field(image, "file_name", str, source)
        if height < 1 or width < 1:
            raise BenchError(f"{source}: {width}x{height} pixels; an image has at least one")
        sizes[field(image, "id", int, source)] = (height, width)
    unique((image["id"] for image in images), f"{path}: images", "id")
    for number, category in enumerate(categories):
        field(category, "name", str, f"{path}: categories[{number}]")
        field(category, "id", int, f"{path}: categories[{number}]")
    unique((category["id"] for category in categories), f"{path}: categories", "id")
    if not images or not categories:
        raise BenchError(f"{path}: lists {len(images)} images and {len(categories)} categories; get the file again")
    objects = None
    if "annotations" in content:
        objects = _objects(field(content, "annotations", list, str(path)), sizes, categories, path)
    return Instances(images, objects, sorted(categories, key=lambda category: category["id"]))


def _objects(
    annotations: list[Any], sizes: Mapping[int, tuple[int, int]], categories: Sequence[dict], path: Path
) -> dict[int, list[dict[str, Any]]]:
    objects: dict[int, list[dict[str, Any]]] = {image: [] for image in sizes}
    known = {category["id"] for category in categories}
    for number, record in enumerate(annotations):
        if (
            not isinstance(record, dict)
            or record.get("image_id") not in sizes
            or record.get("category_id") not in known
        ):
            source = f"{path}: annotations[{number}]"
            if field(record, "category_id", int, source) not in known:
                raise BenchError(f"{source}: category_id {record['category_id']} is not among the categories; add it")
            raise BenchError(f"{source}: image_id {field(record, 'image_id', int, source)} is not among the images")
        box = record.get("bbox")
        if not is_box(box):
            raise BenchError(
                f"{path}: annotations[{number}]: bbox {box!r:.60} is not [x, y, width, height], all finite"
            )
        mask = record.get("segmentation")
        if isinstance(mask, dict) and tuple(mask.get("size") or ()) != sizes[record["image_id"]]:
            size = list(sizes[record["image_id"]])
            raise BenchError(
                f"{path}: annotations[{number}]: RLE size {mask.get('size')} differs from the image's {size}"
            )
        objects[record["image_id"]].append(record)
    return objects


def is_box(value: Any) -> bool:
    """Whether a value is ``[x, y, width, height]`` of finite numbers, sizes 0 or more."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value)
        and value[2] >= 0
        and value[3] >= 0
    )


def result_records(rows: Iterable[Row], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as official result records: image_id, category_id, score and ``keys`` (``bbox``, ``segmentation``)."""
    wanted = ("category_id", "score", *keys)
    return [{"image_id": int(row["id"]), **{k: d[k] for k in wanted}} for row in rows for d in row["detections"]]


def write_results(rows: Sequence[Row], folder: Path, test_set: str | None, algorithm: str) -> list[Path]:
    """Result files of a run.

    Without ``test_set``: ``bbox_results.json`` and ``segm_results.json``. For a test set of the evaluation server, as it
    asks for them: ``detections_<test set>_<algorithm>-bbox_results.json`` in a zip file of the same name, and ``-segm``.
    """
    kinds = {"bbox": ["bbox"], "segm": ["segmentation"]} if has_masks(rows) else {"bbox": ["bbox"]}
    written = []
    for kind, keys in kinds.items():
        records = result_records(rows, keys)
        if test_set is None:
            path = folder / f"{kind}_results.json"
            write_json(path, records)
        else:
            name = f"detections_{test_set}_{algorithm}-{kind}_results"
            plain = folder / f"{name}.json"
            write_json(plain, records)
            path, part = folder / f"{name}.zip", folder / f"{name}.zip.part"
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(plain, plain.name)
            part.replace(path)
            plain.unlink()
        written.append(path)
    return written


def has_masks(rows: Iterable[Row]) -> bool:
    """Whether rows come from a detector with a mask head."""
    return all(row["masks"] for row in rows)
