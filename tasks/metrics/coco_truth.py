"""The one reader of COCO instance records, for scoring, running, checking and training alike.

Taken is what pycocotools takes: ids that are numbers (whole floats, too) or text, ``"segmentation": []`` for an object
without mask, polygons of fewer than three points beside others. Refused, by file and record, is what it would misread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError

Identity = int | str
POLYGON = 6
"""Numbers of the shortest polygon: x and y of three points."""
_LARGEST = 1e150  # its square is finite
_FURTHEST = 1e6  # of a polygon's coordinates; pycocotools computes with 32-bit integers
_BLOCK = 1_000
"""Strings counted at once: so many, with what is made from them, stay in a processor's cache."""


@dataclass(frozen=True)
class CocoTruth:
    """Checked shallow copies of the records of an instances file, every ``iscrowd`` filled in, ids as `identity_of`.

    annotations: None for a file without (test splits).
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]] | None
    categories: list[dict[str, Any]]

    @property
    def sizes(self) -> dict[Identity, tuple[int, int]]:
        """Height and width of each image, by id."""
        return {image["id"]: (image["height"], image["width"]) for image in self.images}


def read_truth(content: Any, source: str, shapes: Sequence[str], optional: bool = False) -> CocoTruth:
    """Check the content of an instances file.

    Args:
        source: named in errors.
        shapes: what annotations must have right: ``bbox``, ``segm`` or both. With ``segm`` alone a mask is required.
        optional: ``annotations`` may be absent.

    Raises:
        BenchError: a missing key, an id that comes twice or is text here and a number there, an object of an unknown image
            or category, a box that is not four finite numbers, a mask that is none or of another size than its image.
    """
    if not isinstance(content, Mapping):
        raise BenchError(f"{source}: expected an object with images, annotations and categories, found {content!r:.40}")
    parts: dict[str, list[dict[str, Any]]] = {}
    for key in ("images", "annotations", "categories"):
        records = content.get(key)
        if key == "annotations" and optional and key not in content:
            continue
        if not isinstance(records, list):
            raise BenchError(f"{source}: key {key!r} is missing or no list; is this an instances file?")
        parts[key] = [_identified(record, f"{source}: {key}[{index}]") for index, record in enumerate(records)]
        _unique(parts[key], f"{source}: {key}")
    if parts.get("annotations") and not (parts["images"] and parts["categories"]):
        raise BenchError(
            f"{source}: lists {len(parts['images'])} images and {len(parts['categories'])} categories; get the file again"
        )
    for index, image in enumerate(parts["images"]):
        for key in ("height", "width"):
            image[key] = _pixels(image, key, f"{source}: images[{index}]")
    known = {"image_id": identities(parts["images"]), "category_id": identities(parts["categories"])}
    truth = CocoTruth(parts["images"], parts.get("annotations"), parts["categories"])
    if truth.annotations is not None:
        _number_annotations(truth.annotations)
        _check_annotations(truth.annotations, truth.sizes, known, source, shapes)
    return truth


def _check_annotations(
    annotations: list[dict[str, Any]],
    sizes: Mapping[Identity, tuple[int, int]],
    known: Mapping[str, set[Identity]],
    source: str,
    shapes: Sequence[str],
) -> None:
    strings: list[tuple[str, Mapping[str, Any]]] = []
    for index, record in enumerate(annotations):
        place = f"{source}: annotations[{index}]"
        for key, ids in known.items():
            record[key] = reference(record, key, ids, place, "images" if key == "image_id" else "categories")
        number(record, "area", place)
        record.setdefault("iscrowd", 0)
        if record["iscrowd"] not in (0, 1):
            raise BenchError(f"{place}: iscrowd is {record['iscrowd']!r:.40}, expected 0 or 1; mend this record")
        if "bbox" in shapes:
            box(record, place)
        if "segm" in shapes:
            mask = record.get("segmentation")
            if isinstance(mask, list) and mask:
                check_polygons(mask, place)
            elif mask is not None and mask != []:
                rle = check_rle(mask, place, sizes[record["image_id"]])
                if not isinstance(rle["counts"], list):
                    strings.append((place, rle))
            if "bbox" not in shapes and not has_mask(mask):
                short = f"polygon {mask[0]!r:.60} is not a list of three or more x, y pairs" if mask else None
                state = "is empty" if "segmentation" in record else "is missing"
                problem = short or f"segmentation {state}; an object has a polygon or an RLE"
                raise BenchError(f"{place}: {problem}; mend this record, or score boxes")
    _check_rle_strings(strings)


# ---- ids --------------------------------------------------------------------------------------------------------------


def identity_of(value: Any) -> Identity | None:
    """An id as a number, where it is one or a whole float, or as text; None where it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value and value.isprintable():  # it names rows, files and lines of a report
        return value
    return None


def identities(records: Iterable[Mapping[str, Any]]) -> set[Identity]:
    return {record["id"] for record in records}


def reference(
    record: Mapping[str, Any], key: str, ids: set[Identity], place: str, where: str = "annotations"
) -> Identity:
    """``record[key]``, which must be one of ``ids``. Text and numbers are different ids, as in pycocotools."""
    if type(record) is dict and type(value := record.get(key)) is int and value in ids:  # nearly always
        return value
    value = identity_of(record.get(key)) if isinstance(record, Mapping) else None
    text = bool(ids) and isinstance(next(iter(ids)), str)
    if value is None or isinstance(value, str) != text:
        given = record.get(key) if isinstance(record, Mapping) else record
        kind = f"text, as the ids of the {where} are" if text else "an integer"
        raise BenchError(f"{place}: {key!r} should be {kind}, found {given!r:.40}; mend this record")
    if value not in ids:
        raise BenchError(f"{place}: {key} {value!s:.40} is not in the {where}; are both of the same split?")
    return value


def _identified(record: Any, place: str) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise BenchError(f"{place}: expected an object, found {type(record).__name__}; is this an instances file?")
    identity = identity_of(record.get("id"))
    if identity is None:
        raise BenchError(f"{place}: 'id' should be an integer, found {record.get('id')!r:.40}; mend this record")
    return {**record, "id": identity}


def _unique(records: Sequence[Mapping[str, Any]], source: str) -> None:
    """Ids must be of one kind, and each its own: pycocotools sorts them, and keeps the last of equal ones."""
    seen: set[Identity] = set()
    for index, record in enumerate(records):
        identity = record["id"]
        if identity in seen:
            raise BenchError(f"{source}[{index}]: id {identity!s:.40} comes twice; remove the duplicate")
        if isinstance(identity, str) != isinstance(records[0]["id"], str):
            raise BenchError(
                f"{source}[{index}]: id {identity!r:.40} and that of the first record are text and number; write all as numbers"
            )
        seen.add(identity)


def _number_annotations(annotations: list[dict[str, Any]]) -> None:
    """Ids of annotations only have to differ; COCOeval computes with them as numbers, and takes 0 for none."""
    names = [record["id"] for record in annotations]
    if not any(isinstance(name, str) for name in names):
        return
    spelt = [int(name) if name.isdecimal() and name.isascii() else None for name in names]
    usable = None not in spelt and len(set(spelt)) == len(spelt)
    for place, (record, value) in enumerate(zip(annotations, spelt, strict=True), 1):
        record["id"] = value if usable else place


# ---- numbers ----------------------------------------------------------------------------------------------------------


def _is_number(value: Any, limit: float = _LARGEST) -> bool:
    if type(value) is not float and (not isinstance(value, (int, float)) or isinstance(value, bool)):
        return False
    return -limit < value < limit


def are_numbers(values: Sequence[Any], limit: float = _LARGEST) -> bool:
    """Whether all values are finite numbers; quick where they are Python's own, as from a file of millions."""
    if not values:
        return True
    if not set(map(type, values)) <= {int, float}:
        return all(_is_number(value, limit) for value in values)
    return -limit < min(values) and max(values) < limit and not math.isnan(sum(values))


def number(record: Mapping[str, Any], key: str, place: str) -> float:
    """``record[key]``, a finite number."""
    value = record.get(key)
    if not _is_number(value):
        raise BenchError(f"{place}: {key!r} should be a finite number, found {value!r:.40}; mend this record")
    return value  # type: ignore[return-value]


def _pixels(record: Mapping[str, Any], key: str, place: str) -> int:
    value = record.get(key)
    if not _is_number(value) or int(value) != value:  # type: ignore[arg-type]
        raise BenchError(f"{place}: {key!r} should be an integer, found {value!r:.40}; mend this record")
    if value < 1:  # type: ignore[operator]
        raise BenchError(f"{place}: {key} is {value}, and an image has at least one pixel; mend this record")
    return int(value)  # type: ignore[arg-type]


def box(record: Mapping[str, Any], place: str) -> list[float]:
    """``record["bbox"]``: x, y, width, height, finite, sizes 0 or more."""
    sides = record.get("bbox")
    if (
        not isinstance(sides, (list, Sequence))
        or len(sides) != 4
        or not are_numbers(sides)
        or sides[2] < 0
        or sides[3] < 0
    ):
        raise BenchError(
            f"{place}: bbox {sides!r:.80} is not [x, y, width, height] of finite numbers, sizes 0 or more; mend this record"
        )
    return list(sides)


# ---- masks ------------------------------------------------------------------------------------------------------------


def check_polygons(polygons: Sequence[Any], place: str) -> None:
    """Raise unless these are lists of numbers, short ones among them or not."""
    for polygon in polygons:
        if not isinstance(polygon, list) or not are_numbers(polygon, _FURTHEST):
            raise BenchError(
                f"{place}: polygon {polygon!r:.60} is not a list of x, y pairs in pixels; mend this record"
            )


def has_mask(segmentation: Any) -> bool:
    """Whether a checked ``segmentation`` covers anything: an RLE, or a polygon of three points or more."""
    if isinstance(segmentation, list):
        return any(len(polygon) >= POLYGON for polygon in segmentation)
    return segmentation is not None


def short_polygons(segmentation: Any) -> int:
    """How many polygons of an object have fewer than three points; 0 for an RLE."""
    return sum(len(p) < POLYGON for p in segmentation) if isinstance(segmentation, list) else 0


def valid_polygons(segmentation: Sequence[list[float]]) -> list[list[float]]:
    """The polygons that detectron2 trains on (`load_coco_json`): x and y of three points or more."""
    return [p for p in segmentation if len(p) >= POLYGON and len(p) % 2 == 0]


def polygons_rle(polygons: Sequence[list[float]], size: tuple[int, int]) -> dict[str, Any]:
    """The union of checked polygons as compressed RLE, as pycocotools makes it: a left-over number is dropped, a polygon of
    fewer than three points covers nothing (as the first of all it stops pycocotools).
    """
    from pycocotools import mask

    return mask.merge(mask.frPyObjects([p[: len(p) // 2 * 2] for p in polygons if len(p) >= POLYGON], *size))


def check_rle(value: Any, place: str, size: tuple[int, int]) -> Mapping[str, Any]:
    """The value, an RLE of an image of ``size`` (height, width); strings are counted by `first_wrong_rle`."""
    if not isinstance(value, (dict, Mapping)) or not isinstance(value.get("counts"), (str, bytes, list)):
        raise BenchError(
            f"{place}: segmentation should be RLE, an object with size and counts, found {value!r:.40}; encode it again"
        )
    if not isinstance(value.get("size"), (list, Sequence)) or list(value["size"]) != list(size):
        raise BenchError(
            f"{place}: RLE size {value.get('size')!r:.40} differs from the image's [height, width] {list(size)}; "
            "encode it again"
        )
    counts = value["counts"]
    if isinstance(counts, list):
        whole = all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts)
        if not whole or sum(counts) != math.prod(size):
            raise BenchError(
                f"{place}: RLE counts do not add up to the {math.prod(size)} pixels of {list(size)}; encode it again"
            )
    elif isinstance(counts, str) and not counts.isascii():
        strange = next(character for character in counts if not character.isascii())
        raise BenchError(f"{place}: RLE counts hold {strange!r}; write the ASCII form")
    return value


def compressed(value: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """A checked RLE with ``counts`` in bytes."""
    counts = value["counts"]
    if isinstance(counts, list):
        from pycocotools import mask

        return mask.frPyObjects({"size": list(size), "counts": counts}, *size)
    return {"size": list(size), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}


def first_wrong_rle(counts: Sequence[str | bytes], pixels: np.ndarray) -> int | None:
    """The first RLE string that does not describe exactly its image's pixels, beyond which pycocotools would read; None where all do.

    pixels: int64 (n,), of each one's image.
    """
    for start in range(0, len(counts), _BLOCK):
        block = [c.encode("ascii") if isinstance(c, str) else c for c in counts[start : start + _BLOCK]]
        wrong = np.flatnonzero(rle_pixels(block) != pixels[start : start + _BLOCK])
        if len(wrong):
            return start + int(wrong[0])
    return None


def _check_rle_strings(placed: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuse those of `first_wrong_rle`."""
    pixels = np.array([math.prod(rle["size"]) for _, rle in placed], dtype=np.int64)
    wrong = first_wrong_rle([rle["counts"] for _, rle in placed], pixels)
    if wrong is not None:
        place, rle = placed[wrong]
        raise wrong_rle(place, rle["size"])


def wrong_rle(place: str, size: Sequence[int]) -> BenchError:
    """Of an RLE string of an image of ``size`` (height, width)."""
    return BenchError(f"{place}: RLE counts do not describe the pixels of {list(size)}; encode it again")


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

    # undo the differences: running sums over every other number, the very first number standing alone. The others lie in two columns,
    # each string beginning a line; the last cell of a string of odd length is none of it
    count = np.bincount(string, minlength=len(counts))
    place = np.arange(len(numbers)) - np.repeat(np.cumsum(count) - count, count)
    lines = count // 2
    begin = np.cumsum(lines) - lines
    cell = (2 * np.repeat(begin, count) + place - 1)[place > 0]
    grid = np.zeros(2 * int(lines.sum()), dtype=np.int64)
    grid[cell] = numbers[place > 0]
    sums = np.concatenate([np.zeros((1, 2), dtype=np.int64), grid.reshape(-1, 2).cumsum(axis=0)])
    runs = numbers
    runs[place > 0] = (sums[1:] - np.repeat(sums[begin], lines, axis=0)).ravel()[cell]
    valid[string[runs < 0]] = False
    totals = np.zeros(len(counts), dtype=np.int64)
    np.add.at(totals, string, runs)
    return np.where(valid, totals, -1)
