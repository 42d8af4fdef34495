"""The twelve COCO statistics for boxes or masks, equal to those of pycocotools, which can be asked as well.

Matches COCOeval (evaluate, accumulate, summarize) on a result list in the official format, as `COCO.loadRes` reads it:
the area of a detection is that of its box for ``bbox`` and that of its mask for ``segm``, whatever else the records
hold.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from beit3_bench.backbones.errors import BenchError, requires
from beit3_bench.tasks.metrics.coco_matches import STATISTICS, MatchTable
from beit3_bench.tasks.metrics.coco_matching import match

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
    per_category: dict[int, float]
    per_image: dict[int, float]
    table: MatchTable


def coco_ap(
    annotations: Any,
    detections: Sequence[Mapping[str, Any]],
    iou_type: str,
    image_ids: Sequence[int] | None = None,
    backend: str = "own",
) -> CocoScores:
    """Score detections of a set of images.

    Args:
        annotations: the content of an instances file (images, annotations, categories), or a pycocotools ``COCO``.
            Neither it nor the detections are changed.
        detections: official result records: image_id, category_id, score, and ``bbox`` [x, y, width, height] in pixels,
            or ``segmentation`` as RLE of the image's size.
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
    truth = _checked_annotations(getattr(annotations, "dataset", annotations), iou_type)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    if image_ids is not None:
        unknown = [i for i in image_ids if i not in sizes]
        if unknown:
            raise BenchError(f"image {unknown[0]} is not among the annotations' images; is it the same split?")
        wanted = set(image_ids)
        sizes = {i: size for i, size in sizes.items() if i in wanted}
    if not sizes:
        raise BenchError("there are no images to score; the split is empty")
    found = _checked_detections(detections, iou_type, sizes, {c["id"] for c in truth["categories"]})

    images, categories = sorted(sizes), sorted(c["id"] for c in truth["categories"])
    matches = match(truth["annotations"], found, iou_type, images, categories)
    table = MatchTable([str(i) for i in images], [matches])
    alone = {i: ap for i, ap in zip(images, matches.per_image.tolist(), strict=True) if not math.isnan(ap)}
    if backend == "own":
        stats = {name: -1.0 if math.isnan(value) else float(value) for name, value in table.sums().items()}
        return CocoScores(stats, dict(zip(categories, matches.per_category(), strict=True)), alone, table)
    evaluator = _evaluate(truth, found, iou_type, images, backend)
    stats = {f"{iou_type}/{k}": float(v) for k, v in zip(STATISTICS, np.asarray(evaluator.stats)[:12], strict=True)}
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    per_category = {}
    for k, category in enumerate(evaluator.params.catIds):
        known = precision[:, :, k][precision[:, :, k] > -1]
        per_category[int(category)] = float(known.mean()) if known.size else math.nan
    return CocoScores(stats, per_category, alone, table)


def _evaluate(truth: dict, found: list[dict], iou_type: str, image_ids: list[int], backend: str) -> Any:
    if backend == "faster-coco-eval":
        package = requires("faster_coco_eval", "the COCO back end faster-coco-eval")
        coco_class, evaluator_class = package.COCO, package.COCOeval_faster
    else:
        coco_class = requires("pycocotools.coco", "COCO average precision").COCO
        evaluator_class = requires("pycocotools.cocoeval", "COCO average precision").COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for records in (truth["annotations"], found):
            side = coco_class()
            side.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": records}
            side.createIndex()
            sides.append(side)
        evaluator = evaluator_class(*sides, iou_type)
        evaluator.params.imgIds = image_ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _checked_annotations(content: Any, iou_type: str) -> dict[str, list[dict]]:
    """Shallow copies of the records, with masks as RLE."""
    if not isinstance(content, Mapping):
        raise BenchError(
            f"annotations: expected an object with images, annotations and categories, found {content!r:.40}"
        )
    parts: dict[str, list[dict]] = {}
    for key in ("images", "annotations", "categories"):
        records = content.get(key)
        if not isinstance(records, list):
            raise BenchError(f"annotations: key {key!r} is missing or no list; is this an instances file?")
        seen: set[int] = set()
        for index, record in enumerate(records):
            place = f"annotations: {key}[{index}]"
            identity = _integer(record, "id", place)
            if identity in seen:
                raise BenchError(f"{place}: id {identity} comes twice; remove the duplicate")
            seen.add(identity)
        parts[key] = [dict(record) for record in records]
    for index, image in enumerate(parts["images"]):
        for key in ("height", "width"):
            if _integer(image, key, f"annotations: images[{index}]") < 1:
                raise BenchError(
                    f"annotations: images[{index}]: {key} is {image[key]}; an image has at least one pixel"
                )
    sizes = {image["id"]: (image["height"], image["width"]) for image in parts["images"]}
    categories = {category["id"] for category in parts["categories"]}
    for index, record in enumerate(parts["annotations"]):
        place = f"annotations: annotations[{index}]"
        _known(record, place, sizes, categories)
        _number(record, "area", place)
        record.setdefault("iscrowd", 0)
        if record["iscrowd"] not in (0, 1):
            raise BenchError(f"{place}: iscrowd is {record['iscrowd']!r}, expected 0 or 1")
        if iou_type == "bbox":
            _box(record, place)
        else:
            record["segmentation"] = _truth_rle(record, place, sizes[record["image_id"]])
    return parts


def _checked_detections(
    detections: Any, iou_type: str, sizes: Mapping[int, tuple[int, int]], categories: set[int]
) -> list[dict]:
    """Records of this IoU type alone, with area and id as `COCO.loadRes` gives them."""
    if not isinstance(detections, Sequence) or isinstance(detections, str | bytes):
        raise BenchError(f"detections: expected a list of records, found {type(detections).__name__}")
    found = []
    for index, record in enumerate(detections):
        place = f"detections[{index}]"
        if not isinstance(record, Mapping):
            raise BenchError(f"{place}: expected an object, found {type(record).__name__}")
        _known(record, place, sizes, categories)
        kept = {k: record[k] for k in ("image_id", "category_id")}
        kept |= {"id": index + 1, "iscrowd": 0, "score": _number(record, "score", place)}
        if iou_type == "bbox":
            kept["bbox"] = _box(record, place)
            kept["area"] = kept["bbox"][2] * kept["bbox"][3]
        else:
            kept["segmentation"] = _rle(record.get("segmentation"), place, sizes[record["image_id"]])
        found.append(kept)
    if iou_type == "segm" and found:
        from pycocotools import mask

        _check_rle_totals([d["segmentation"] for d in found], "detections")
        for start in range(0, len(found), 200):  # mask.area overflows beyond 255 masks
            chunk = found[start : start + 200]
            for kept, area in zip(chunk, mask.area([d["segmentation"] for d in chunk]), strict=True):
                kept["area"] = float(area)
                kept["bbox"] = [0.0, 0.0, 0.0, 0.0]
    return found


def _known(record: Any, place: str, sizes: Mapping[int, Any], categories: set[int]) -> None:
    for key, known in (("image_id", sizes), ("category_id", categories)):
        if _integer(record, key, place) not in known:
            raise BenchError(f"{place}: {key} {record[key]} is not in the annotations; are both of the same split?")


def _integer(record: Any, key: str, place: str) -> int:
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise BenchError(f"{place}: {key!r} should be an integer, found {value!r:.40}")
    return value


def _number(record: Mapping[str, Any], key: str, place: str) -> float:
    value = record.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not -1e300 < value < 1e300:
        raise BenchError(f"{place}: {key!r} should be a finite number, found {value!r:.40}")
    return value


def _box(record: Mapping[str, Any], place: str) -> list[float]:
    box = record.get("bbox")
    if (
        not isinstance(box, Sequence)
        or len(box) != 4
        or not all(isinstance(v, int | float) and not isinstance(v, bool) and -1e150 < v < 1e150 for v in box)
        or box[2] < 0
        or box[3] < 0
    ):
        raise BenchError(f"{place}: bbox {box!r:.80} is not [x, y, width, height] of finite numbers, sizes 0 or more")
    return list(box)


def _rle(value: Any, place: str, size: tuple[int, int]) -> dict[str, Any]:
    """A compressed RLE with ``counts`` in bytes; its total is still to be checked."""
    if not isinstance(value, Mapping) or not isinstance(value.get("counts"), str | bytes | list):
        raise BenchError(f"{place}: segmentation should be RLE, an object with size and counts, found {value!r:.40}")
    if list(value.get("size") or ()) != list(size):
        raise BenchError(f"{place}: RLE size {value.get('size')} differs from the image's [height, width] {list(size)}")
    counts = value["counts"]
    if isinstance(counts, list):
        from pycocotools import mask

        if not all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts) or sum(
            counts
        ) != math.prod(size):
            raise BenchError(f"{place}: RLE counts do not add up to the {math.prod(size)} pixels of {list(size)}")
        return mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    if isinstance(counts, str):
        try:
            counts = counts.encode("ascii")
        except UnicodeEncodeError as error:
            raise BenchError(f"{place}: RLE counts hold {error.object[error.start]!r}; write the ASCII form") from error
    return {"size": list(size), "counts": counts}


def _truth_rle(record: Mapping[str, Any], place: str, size: tuple[int, int]) -> dict[str, Any]:
    """A ground-truth mask, polygons or RLE, as compressed RLE."""
    value = record.get("segmentation")
    if not isinstance(value, list):
        rle = _rle(value, place, size)
        _check_rle_totals([rle], place)
        return rle
    from pycocotools import mask

    for polygon in value:
        if (
            not isinstance(polygon, list)
            or len(polygon) < 6
            or len(polygon) % 2
            or not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e6 for v in polygon)
        ):
            raise BenchError(f"{place}: polygon {polygon!r:.60} is not a list of three or more x, y pairs")
    if not value:
        raise BenchError(f"{place}: segmentation is empty; an object has a polygon or an RLE")
    return mask.merge(mask.frPyObjects(value, *size))


def _check_rle_totals(rles: Sequence[Mapping[str, Any]], name: str, block: int = 20_000) -> None:
    """Refuse RLE strings that do not describe exactly their image's pixels; pycocotools would read beyond the image."""
    for start in range(0, len(rles), block):
        chunk = rles[start : start + block]
        totals = rle_pixels([rle["counts"] for rle in chunk])
        for offset in np.flatnonzero(totals != [math.prod(rle["size"]) for rle in chunk]).tolist():
            place = f"{name}[{start + offset}]" if name == "detections" else name
            raise BenchError(
                f"{place}: RLE counts do not describe the pixels of {chunk[offset]['size']}; encode it again"
            )


def rle_pixels(counts: Sequence[bytes]) -> np.ndarray:
    """How many pixels each compressed RLE string describes: int64 (n,); -1 for a string that is not valid.

    The format (maskApi.c): numbers in groups of five bits, lowest first, each in a byte of 48 + group + 32 if another
    group follows, the last group's highest bit being the sign; from the fourth number on, the difference to the number
    two places before.
    """
    size = np.fromiter(map(len, counts), dtype=np.int64, count=len(counts))
    values = np.frombuffer(b"".join(counts), dtype=np.uint8).astype(np.int64) - 48
    string_of_byte = np.repeat(np.arange(len(counts)), size)
    valid = size > 0
    valid[string_of_byte[(values < 0) | (values > 63)]] = False
    last = (values & 32) == 0
    valid[valid] &= last[np.cumsum(size)[valid] - 1]
    usable = valid[string_of_byte]
    values, last, string_of_byte = values[usable], last[usable], string_of_byte[usable]
    if not values.size:
        return np.full(len(counts), -1, dtype=np.int64)

    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    groups = ends - starts + 1
    string = string_of_byte[starts]
    valid[string[groups > 6]] = False
    shift = 5 * (np.arange(len(values)) - np.repeat(starts, groups))
    numbers = np.add.reduceat((values & 31) << shift.clip(max=30), starts)
    numbers -= np.where(values[ends] & 16, 1 << (5 * groups.clip(max=6)), 0)

    # undo the differences: running sums over every other number, the very first number standing alone
    first = np.searchsorted(string, string)
    place = np.arange(len(numbers)) - first
    chain = 3 * string + np.where(place == 0, 0, 1 + place % 2)
    order = np.argsort(chain, kind="stable")
    running = np.cumsum(numbers[order])
    chain_start = np.searchsorted(chain[order], chain[order])
    runs = np.empty_like(numbers)
    runs[order] = running - running[chain_start] + numbers[order][chain_start]
    valid[string[runs < 0]] = False
    totals = np.zeros(len(counts), dtype=np.int64)
    np.add.at(totals, string, runs)
    return np.where(valid, totals, -1)
