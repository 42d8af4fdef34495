"""The twelve COCO statistics for boxes or masks, equal to those of pycocotools, which can be asked as well.

Matches COCOeval (evaluate, accumulate, summarize) on a result list in the official format, as `COCO.loadRes` reads it:
the area of a detection is that of its box for ``bbox`` and that of its mask for ``segm``, whatever else the records
hold.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError, requires
from beit3_bench.tasks.metrics.coco_detections import Detections
from beit3_bench.tasks.metrics.coco_matches import STATISTICS, MatchTable
from beit3_bench.tasks.metrics.coco_matching import match
from beit3_bench.tasks.metrics.coco_truth import Identity, compressed, identities, polygons_rle, read_truth

IOU_TYPES = ("bbox", "segm")
BACKENDS = ("own", "pycocotools", "faster-coco-eval")


@dataclass(frozen=True)
class CocoScores:
    """What `coco_ap` returns.

    metrics: ``bbox/AP`` ... ``bbox/AR_large`` (or ``segm/...``), fractions; -1 as in COCOeval where nothing is to find.
    per_category: category id -> AP, a fraction; NaN for a category without objects.
    per_image: image id -> AP of the image by itself, a fraction; images with objects only.
    table: matches per image for `bootstrap_intervals` (with `estimate_ap`).
    """

    metrics: dict[str, float]
    per_category: dict[Identity, float]
    per_image: dict[Identity, float]
    table: MatchTable


def coco_ap(
    annotations: Any,
    detections: Iterable[Mapping[str, Any]],
    iou_type: str,
    image_ids: Sequence[Identity] | None = None,
    backend: str = "own",
) -> CocoScores:
    """Score detections of a set of images.

    Args:
        annotations: the content of an instances file (images, annotations, categories), or a pycocotools ``COCO``.
            Neither it nor the detections are changed.
        detections: official result records: image_id, category_id, score, and ``bbox`` [x, y, width, height] in pixels,
            or ``segmentation`` as RLE of the image's size. A list, or an iterator over records that need not be in memory.
        iou_type: ``"bbox"`` or ``"segm"``.
        image_ids: the images to score; all of them by default. Detections elsewhere are refused.
        backend: whose statistics to return: ``"own"``, made from the table, or those of ``"pycocotools"`` or
            ``"faster-coco-eval"`` (times in tests/benchmarks/bootstrap_benchmark.py). The table is always our own.

    Raises:
        BenchError: a record that is malformed, with its index: unknown image or category, a box or score that is not
            finite, an RLE of another size.
    """
    if iou_type not in IOU_TYPES or backend not in BACKENDS:
        raise BenchError(f"cannot score {iou_type!r} with {backend!r}; take one of {IOU_TYPES} and one of {BACKENDS}")
    checked = read_truth(getattr(annotations, "dataset", annotations), "annotations", (iou_type,))
    truth = {"images": checked.images, "annotations": checked.annotations or [], "categories": checked.categories}
    sizes = checked.sizes
    if iou_type == "segm":
        for record in truth["annotations"]:
            record["segmentation"] = _as_rle(record["segmentation"], sizes[record["image_id"]])
    if image_ids is not None:
        unknown = [i for i in image_ids if i not in sizes]
        if unknown:
            raise BenchError(f"image {unknown[0]} is not among the annotations' images; is it the same split?")
        wanted = set(image_ids)
        sizes = {i: size for i, size in sizes.items() if i in wanted}
    if not sizes:
        raise BenchError("there are no images to score; the split is empty")
    known = identities(checked.categories)
    found = Detections.of(detections, iou_type, sizes, known)

    images, categories = sorted(sizes), sorted(known)  # type: ignore[type-var]  # ids are of one kind
    matches = match(truth["annotations"], found, iou_type, images, categories)
    table = MatchTable([str(i) for i in images], [matches])
    alone = {i: ap for i, ap in zip(images, matches.per_image.tolist(), strict=True) if not math.isnan(ap)}
    if backend == "own":
        stats = {name: -1.0 if math.isnan(value) else float(value) for name, value in table.sums().items()}
        return CocoScores(stats, dict(zip(categories, matches.per_category(), strict=True)), alone, table)
    places = {"image_id": {i: n for n, i in enumerate(images)}, "category_id": {c: n for n, c in enumerate(categories)}}
    evaluator = _evaluate(truth, found, iou_type, places, backend)
    stats = {f"{iou_type}/{k}": float(v) for k, v in zip(STATISTICS, np.asarray(evaluator.stats)[:12], strict=True)}
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    per_category = {}
    for k, category in enumerate(categories):
        reached = precision[:, :, k][precision[:, :, k] > -1]
        per_category[category] = float(reached.mean()) if reached.size else math.nan
    return CocoScores(stats, per_category, alone, table)


def _as_rle(mask: Any, size: tuple[int, int]) -> dict[str, Any]:
    return polygons_rle(mask, size) if isinstance(mask, list) else compressed(mask, size)


def _evaluate(
    truth: dict, found: Detections, iou_type: str, places: Mapping[str, Mapping[Identity, int]], backend: str
) -> Any:
    """The evaluator of a package, on images and categories numbered in the order of their ids: those may be text."""
    images, categories = places["image_id"], places["category_id"]
    if backend == "faster-coco-eval":
        package = requires("faster_coco_eval", "the COCO back end faster-coco-eval")
        coco_class, evaluator_class = package.COCO, package.COCOeval_faster
    else:
        coco_class = requires("pycocotools.coco", "COCO average precision").COCO
        evaluator_class = requires("pycocotools.cocoeval", "COCO average precision").COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        here = [record for record in truth["annotations"] if record["image_id"] in images]
        objects = _numbered(_numbered(here, "image_id", images), "category_id", categories)
        sides = []
        for records in (objects, list(found.records())):
            side = coco_class()
            side.dataset = {
                "images": _numbered([i for i in truth["images"] if i["id"] in images], "id", images),
                "categories": _numbered(truth["categories"], "id", categories),
                "annotations": records,
            }
            side.createIndex()
            sides.append(side)
        evaluator = evaluator_class(*sides, iou_type)
        evaluator.params.imgIds = list(images.values())
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _numbered(records: Sequence[dict], key: str, places: Mapping[Identity, int]) -> list[dict]:
    return [{**record, key: places[record[key]]} for record in records]
