"""Result records of a detector, checked and in columns, in which half a million of them take a tenth of the memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from operator import itemgetter
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.coco_truth import (
    Identity,
    are_numbers,
    box,
    check_rle,
    compressed,
    first_wrong_rle,
    number,
    reference,
    wrong_rle,
)

_BLOCK = 2_000
"""Records checked at once."""
_AREAS = 200
"""Masks measured at once: mask.area overflows beyond 255."""


@dataclass(frozen=True)
class Masks:
    """Compressed RLEs of some images.  counts: str or bytes.  sizes: [height, width] of each one's image."""

    counts: list[str | bytes]
    sizes: list[list[int]]

    def __len__(self) -> int:
        return len(self.counts)

    def areas(self) -> np.ndarray:
        """Pixels of each: float64 (n,)."""
        from pycocotools import mask

        blocks = [mask.area(part(self, start, start + _AREAS)) for start in range(0, len(self), _AREAS)]
        return np.concatenate([np.zeros(0), *blocks])


Shapes = np.ndarray | Masks
"""Boxes x, y, width, height in pixels, float64 (n, 4); or masks."""


def part(shapes: Shapes, start: int, end: int) -> Any:
    """Some that stand side by side, as pycocotools takes them."""
    if not isinstance(shapes, Masks):
        return shapes[start:end]
    both = zip(shapes.sizes[start:end], shapes.counts[start:end], strict=True)
    return [{"size": size, "counts": counts} for size, counts in both]


def picked(shapes: Shapes, places: np.ndarray) -> Shapes:
    """Those at some places, in their order."""
    if not isinstance(shapes, Masks):
        return shapes[places]
    chosen = places.tolist()
    return Masks([shapes.counts[i] for i in chosen], [shapes.sizes[i] for i in chosen])


@dataclass(frozen=True)
class Detections:
    """Checked detections in the order of their list.

    image, category: int64 (n,), places in the sorted ids.  score, area: float64 (n,), the area as `COCO.loadRes` has it: of the box, or of
    the mask.
    """

    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    area: np.ndarray
    shapes: Shapes

    @classmethod
    def of(
        cls,
        records: Iterable[Mapping[str, Any]],
        iou_type: str,
        sizes: Mapping[Identity, tuple[int, int]],
        categories: Collection[Identity],
    ) -> Detections:
        """Official result records, checked; of each only what this IoU type needs.

        Args:
            sizes: height and width of the images, by id.

        Raises:
            BenchError: no list, or a record that is malformed, with its index.
        """
        if not isinstance(records, (Sequence, Iterator)) or isinstance(records, str | bytes):
            raise BenchError(f"detections: expected a list of records, found {type(records).__name__}")
        known = _Known(
            {i: n for n, i in enumerate(sorted(sizes))},  # type: ignore[type-var]  # ids are of one kind
            {c: n for n, c in enumerate(sorted(categories))},  # type: ignore[type-var]
            {i: list(size) for i, size in sizes.items()},
        )
        blocks: list[_Block] = []
        rest = iter(records)
        for start in count(0, _BLOCK):
            block = list(islice(rest, _BLOCK))
            if not block:
                break
            blocks.append(known.read(block, start, iou_type))
        image, category = (
            np.concatenate([np.zeros(0, dtype=np.int64), *(block[i] for block in blocks)]) for i in range(2)
        )
        score = np.concatenate([np.zeros(0), *(block[2] for block in blocks)])
        if iou_type == "bbox":
            shapes = np.concatenate([np.zeros((0, 4)), *(block[3] for block in blocks)])
            return cls(image, category, score, shapes[:, 2] * shapes[:, 3], shapes)
        by_place = [known.sizes[i] for i in known.images]
        masks = Masks(list(chain.from_iterable(block[3] for block in blocks)), [by_place[i] for i in image.tolist()])
        wrong = first_wrong_rle(masks.counts, np.array([math.prod(size) for size in masks.sizes], dtype=np.int64))
        if wrong is not None:
            raise wrong_rle(f"detections[{wrong}]", masks.sizes[wrong])
        return cls(image, category, score, masks.areas(), masks)

    def records(self) -> Iterator[dict[str, Any]]:
        """As `COCO.loadRes` makes them of a result file, images and categories by their places."""
        columns = (self.image.tolist(), self.category.tolist(), self.score.tolist(), self.area.tolist())
        for index, (image, category, score, area) in enumerate(zip(*columns, strict=True)):
            record = {
                "image_id": image,
                "category_id": category,
                "id": index + 1,
                "iscrowd": 0,
                "score": score,
                "area": area,
            }
            if isinstance(self.shapes, Masks):
                counts = self.shapes.counts[index]
                counts = counts.encode("ascii") if isinstance(counts, str) else counts
                yield record | {"segmentation": {"size": self.shapes.sizes[index], "counts": counts}, "bbox": [0.0] * 4}
            else:
                yield record | {"bbox": self.shapes[index].tolist()}


_Block = tuple[np.ndarray, np.ndarray, np.ndarray, Any]
"""Places of images and categories, scores, and boxes (n, 4) or the counts of masks."""
_IDS, _RLE = itemgetter("image_id", "category_id", "score"), itemgetter("size", "counts")


@dataclass(frozen=True)
class _Known:
    """Places of the ids that detections may have, and [height, width] of their images.

    Reads records a block at a time: all at once where they are as nearly all are, else one by one, to say what is wrong with the first
    that is, or to take what is merely unusual.
    """

    images: dict[Identity, int]
    categories: dict[Identity, int]
    sizes: dict[Identity, list[int]]

    def read(self, block: list[Any], start: int, iou_type: str) -> _Block:
        """Args:
            start: number of the first record.

        Raises:
            BenchError: a record that is malformed.
        """
        try:
            return self._at_once(block, iou_type)
        except (LookupError, TypeError):
            return self._one_by_one(block, start, iou_type)

    def _at_once(self, block: list[Any], iou_type: str) -> _Block:
        if set(map(type, block)) != {dict}:
            raise TypeError
        images, categories, scores = zip(*map(_IDS, block), strict=True)
        if not {*map(type, images), *map(type, categories)} <= {int, str} or not are_numbers(scores):
            raise TypeError
        return (
            np.array([self.images[i] for i in images]),
            np.array([self.categories[c] for c in categories]),
            np.array(scores, dtype=np.float64),
            self._boxes(block) if iou_type == "bbox" else self._counts(block, images),
        )

    def _boxes(self, block: list[Any]) -> np.ndarray:
        sides = [record["bbox"] for record in block]
        flat = list(chain.from_iterable(sides))
        if set(map(type, sides)) != {list} or set(map(len, sides)) != {4} or not are_numbers(flat):
            raise TypeError
        boxes = np.array(flat, dtype=np.float64).reshape(-1, 4)
        if boxes[:, 2:].min() < 0:
            raise TypeError
        return boxes

    def _counts(self, block: list[Any], images: Sequence[Identity]) -> list[str]:
        masks = [record["segmentation"] for record in block]
        sizes, counts = zip(*map(_RLE, masks), strict=True)
        if set(map(type, masks)) != {dict} or set(map(type, counts)) != {str} or not "".join(counts).isascii():
            raise TypeError
        if list(sizes) != [self.sizes[i] for i in images]:
            raise TypeError
        return list(counts)

    def _one_by_one(self, block: list[Any], start: int, iou_type: str) -> _Block:
        images, categories = set(self.images), set(self.categories)
        places: list[tuple[int, int, float]] = []
        shapes: list[Any] = []
        for index, record in enumerate(block, start):
            place = f"detections[{index}]"
            if not isinstance(record, (dict, Mapping)):
                raise BenchError(f"{place}: expected an object, found {type(record).__name__}")
            image = reference(record, "image_id", images, place)
            category = reference(record, "category_id", categories, place)
            places.append((self.images[image], self.categories[category], number(record, "score", place)))
            if iou_type == "bbox":
                shapes.append(box(record, place))
            else:
                height, width = self.sizes[image]
                check_rle(record.get("segmentation"), place, (height, width))
                shapes.append(compressed(record["segmentation"], (height, width))["counts"])
        image_places, category_places, scores = zip(*places, strict=True)
        return (
            np.array(image_places),
            np.array(category_places),
            np.array(scores, dtype=np.float64),
            np.array(shapes, dtype=np.float64) if iou_type == "bbox" else shapes,
        )
