"""COCO instance files: reading annotations, checking them, and the official result records."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import replacing
from beit3_bench.tasks.contract import Example, Row
from beit3_bench.tasks.files import field, read_json, write_json_list
from beit3_bench.tasks.metrics.coco_truth import Identity, read_truth, short_polygons, valid_polygons

ALGORITHM = re.compile(r"[A-Za-z0-9.-]+")


@dataclass(frozen=True)
class Instances:
    """An instances (or image_info) file.

    images: records with id, file_name, height, width, in the file's order.
    objects: image id -> annotation records; None for a file without annotations (test splits).
    categories: records with id and name, by id; a class is a position in this list.
    """

    images: list[dict[str, Any]]
    objects: dict[Identity, list[dict[str, Any]]] | None
    categories: list[dict[str, Any]]


def read_instances(path: Path) -> Instances:
    """Read and check an annotation file.

    Raises:
        BenchError: as `read_truth`; an image without file name, or no image or category at all.
    """
    truth = read_truth(read_json(path, "COCO instances"), str(path), ("bbox", "segm"), optional=True)
    for number, image in enumerate(truth.images):
        field(image, "file_name", str, f"{path}: images[{number}]")
    for number, category in enumerate(truth.categories):
        field(category, "name", str, f"{path}: categories[{number}]")
    if not truth.images or not truth.categories:
        raise BenchError(
            f"{path}: lists {len(truth.images)} images and {len(truth.categories)} categories; get the file again"
        )
    objects: dict[Identity, list[dict[str, Any]]] | None = None
    if truth.annotations is not None:
        objects = {image["id"]: [] for image in truth.images}
        for record in truth.annotations:
            objects[record["image_id"]].append(record)
    return Instances(truth.images, objects, _in_order(truth.categories))


def _in_order(categories: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Categories by id; ids that are numbers written as text by what they say: "3" before "18"."""
    numbers = all(str(c["id"]).isdecimal() and str(c["id"]).isascii() for c in categories)
    return sorted(categories, key=lambda category: int(category["id"]) if numbers else category["id"])


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


def mask_notes(objects: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is to be known about polygons of fewer than three points, in lines for a report."""
    short = sum(short_polygons(record.get("segmentation")) for record in objects)
    if not short:
        return []
    what = (
        "1 polygon of fewer than three points covers"
        if short == 1
        else f"{short} polygons of fewer than three points cover"
    )
    return [f"{what} nothing; training leaves such out"]


def with_valid_polygons(objects: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Objects without polygons of fewer than three points, and without those that have no other: as detectron2."""
    kept: list[Mapping[str, Any]] = []
    for record in objects:
        mask = record["segmentation"]
        if isinstance(mask, list):
            mask = valid_polygons(mask)
            if not mask:
                continue
        kept.append({**record, "segmentation": mask})
    return kept


def official_id(example: Example) -> Identity:
    """An example's image id as the annotation file has it: a number, or text where the file's ids are text."""
    return example.meta["image_id"] if "image_id" in example.meta else int(example.id)


def instances_content(examples: Sequence[Example], categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of an instances file of some examples, as `metrics.coco_ap` takes it."""
    return {
        "images": [{"id": official_id(e), **e.meta} for e in examples],
        "annotations": [record for e in examples for record in e.target],
        "categories": list(categories),
    }


def result_records(
    rows: Iterable[Row], keys: Sequence[str], image_ids: Mapping[str, Identity]
) -> Iterator[dict[str, Any]]:
    """Rows as official result records: image_id, category_id, score and ``keys`` (``bbox``, ``segmentation``).

    image_ids: the annotation file's id of each row's image.
    """
    wanted = ("category_id", "score", *keys)
    for row in rows:
        image = image_ids[row["id"]]
        for detection in row["detections"]:
            yield {"image_id": image, **{key: detection[key] for key in wanted}}


def write_results(
    rows: Sequence[Row], folder: Path, test_set: str | None, algorithm: str, image_ids: Mapping[str, Identity]
) -> list[Path]:
    """Result files of a run.

    Without ``test_set``: ``bbox_results.json`` and ``segm_results.json``. For a test set of the evaluation server, as it
    asks for them: ``detections_<test set>_<algorithm>-bbox_results.json`` in a zip file of the same name, and ``-segm``.
    """
    kinds = {"bbox": ["bbox"], "segm": ["segmentation"]} if has_masks(rows) else {"bbox": ["bbox"]}
    written = []
    for kind, keys in kinds.items():
        records = result_records(rows, keys, image_ids)
        if test_set is None:
            path = folder / f"{kind}_results.json"
            write_json_list(path, records)
        else:
            name = f"detections_{test_set}_{algorithm}-{kind}_results"
            plain = folder / f"{name}.json"
            write_json_list(plain, records)
            path = folder / f"{name}.zip"
            with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.write(plain, plain.name)
            plain.unlink()
        written.append(path)
    return written


def has_masks(rows: Iterable[Row]) -> bool:
    """Whether rows come from a detector with a mask head."""
    return all(row["masks"] for row in rows)
