"""COCO instance files: reading annotations, checking them, and the official result records."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.files import replacing
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


def zero_id_note(path: Path, annotations: Iterable[Mapping[str, Any]]) -> str | None:
    """A line on the object whose annotation id is 0, if there is one; a crowd is not to be found anyway.

    COCOeval (cocoeval.py, ``dtMatches``) keeps the id of the matched annotation and takes 0 for "no match". Scores here
    are those of COCOeval.
    """
    for record in annotations:
        if record.get("id") in (0, "0") and not record.get("iscrowd", 0):
            return (
                f"{path}: the annotation with id 0 (image {record.get('image_id')}, category {record.get('category_id')}) "
                'counts as never found: COCOeval takes its id for "not matched"; number the annotations from 1'
            )
    return None


def _objects(
    annotations: list[Any], sizes: Mapping[int, tuple[int, int]], categories: Sequence[dict], path: Path
) -> dict[int, list[dict[str, Any]]]:
    objects: dict[int, list[dict[str, Any]]] = {image: [] for image in sizes}
    known = {category["id"] for category in categories}
    for number, record in enumerate(annotations):
        wrong = _wrong(record, sizes, known)
        if wrong:
            raise BenchError(
                f"{path}: annotations[{number}]: {wrong}; get the official file again, or mend this record"
            )
        record.setdefault("iscrowd", 0)
        objects[record["image_id"]].append(record)
    return objects


def _wrong(record: Any, sizes: Mapping[int, tuple[int, int]], known: set[int]) -> str | None:
    """What is wrong with an annotation record, in words."""
    if not isinstance(record, dict):
        return f"expected an object, found {type(record).__name__}"
    for key, ids, what in (("image_id", sizes, "images"), ("category_id", known, "categories")):
        value = record.get(key)
        if type(value) is not int or value not in ids:
            return f"{key} {value!r:.40} is not among the {what}"
    if not is_box(record.get("bbox")):
        return f"bbox {record.get('bbox')!r:.60} is not [x, y, width, height], all finite"
    if not _is_number(record.get("area")):
        return f"area {record.get('area')!r:.40} is not a finite number"
    if record.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd {record['iscrowd']!r:.40} is not 0 or 1"
    mask, size = record.get("segmentation"), sizes[record["image_id"]]
    if isinstance(mask, dict):
        if mask.get("size") != list(size):
            return f"RLE size {mask.get('size')!r:.40} differs from the image's {list(size)}"
        if not isinstance(mask.get("counts"), (str, list)):
            return f"RLE counts {mask.get('counts')!r:.40} are neither text nor a list"
    elif mask is not None and not (isinstance(mask, list) and mask and all(map(_is_polygon, mask))):
        return f"segmentation {mask!r:.60} is neither RLE nor a list of polygons of three or more points"
    return None


def _is_number(value: Any) -> bool:
    """Whether a value is a number whose square is finite; JSON may hold whole numbers beyond any float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e150 < value < 1e150


def _is_polygon(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0 and all(map(_is_number, value))


def is_box(value: Any) -> bool:
    """Whether a value is ``[x, y, width, height]`` of finite numbers, sizes 0 or more."""
    return (
        isinstance(value, list) and len(value) == 4 and all(map(_is_number, value)) and value[2] >= 0 and value[3] >= 0
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
            path = folder / f"{name}.zip"
            with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(plain, plain.name)
            plain.unlink()
        written.append(path)
    return written


def has_masks(rows: Iterable[Row]) -> bool:
    """Whether rows come from a detector with a mask head."""
    return all(row["masks"] for row in rows)
