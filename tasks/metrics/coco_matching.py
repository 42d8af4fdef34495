"""From detections and objects to their matches, as COCOeval makes them, laid out for weighted counting.

Matches `COCOeval.evaluate` (pycocotools/cocoeval.py): within an image and category, detections choose by falling score
among the objects that are still free, the one of largest overlap, an ignored one (crowd, or of another size) only where
no other fits. Overlaps come from the same compiled function, so that the result is the same to the last bit; only pairs
that overlap are looked at, once for all thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from beit3_bench.tasks.metrics.coco_detections import Detections, Masks, Shapes, part, picked
from beit3_bench.tasks.metrics.coco_matches import AREAS, Bundle, Lists, Matches
from beit3_bench.tasks.metrics.coco_truth import Identity

_BUNDLE_RUNS = 4096  # counted together: about as many as stay in a processor's cache
_FREE, _TAKEN, _IGNORED = 0, 1, 2


def match(
    objects: Sequence[Mapping[str, Any]],
    detections: Detections,
    iou_type: str,
    image_ids: Sequence[Identity],
    category_ids: Sequence[Identity],
) -> Matches:
    """Match checked records of some images.

    Args:
        objects: image_id, category_id, id, area, iscrowd, and ``bbox`` or ``segmentation`` as compressed RLE.
        iou_type: ``"bbox"`` or ``"segm"``.
        image_ids, category_ids: sorted; objects elsewhere are left out. The order of images is that of the weights.
    """
    from pycocotools.cocoeval import Params

    parameters = Params(iou_type)
    thresholds = np.array(parameters.iouThrs)
    places = {image: i for i, image in enumerate(image_ids)}, {category: i for i, category in enumerate(category_ids)}
    there = [o for o in objects if o["image_id"] in places[0]]
    truth = _Sorted.of(_columns(there, iou_type, *places), len(category_ids))
    kept_detections = _Sorted.of(detections, len(category_ids)).first_in_each_cell(parameters.maxDets[-1])
    crowd, unnamed = (
        np.array([bool(flag) for flag in flags], dtype=bool)[truth.position]
        for flags in (
            [o["iscrowd"] for o in there],
            [o["id"] == 0 for o in there],
        )  # COCOeval takes a match with 0 for none
    )
    candidates = _candidates(truth, crowd, kept_detections, float(thresholds[0]))
    rank = np.lexsort(
        (np.arange(len(kept_detections.image)), kept_detections.image, -kept_detections.score, kept_detections.category)
    )
    ends = np.searchsorted(kept_detections.category[rank], np.arange(len(category_ids) + 1))
    layout = _Layout(len(category_ids), len(thresholds), tuple(parameters.maxDets[:-1]))
    per_image = np.full(len(image_ids), np.nan)
    for area, (smallest, largest) in enumerate(parameters.areaRng):
        ignored = crowd | (truth.area < smallest) | (truth.area > largest)
        state = _choose(candidates, ignored, crowd, unnamed, thresholds, len(kept_detections.image))
        inside = (kept_detections.area >= smallest) & (kept_detections.area <= largest)
        counts = np.flatnonzero(~ignored)
        if area == 0:
            objects_of = np.bincount(truth.cell[counts], minlength=len(image_ids) * len(category_ids))
            per_image = _each_alone(
                kept_detections, objects_of, state, inside, len(image_ids), np.array(parameters.recThrs)
            )
        groups = np.argsort(truth.category[counts], kind="stable")
        of_category = np.searchsorted(truth.category[counts[groups]], np.arange(len(category_ids) + 1))
        for category in range(len(category_ids)):
            members = counts[groups[of_category[category] : of_category[category + 1]]]
            ranked = rank[ends[category] : ends[category + 1]]
            chosen = state[:, ranked]
            layout.add(
                area,
                category,
                truth.image[members],
                kept_detections.image[ranked],
                kept_detections.place[ranked],
                chosen == _TAKEN,
                (chosen == _FREE) & inside[ranked],
            )
    return layout.matches(iou_type, per_image, thresholds, np.array(parameters.recThrs))


def matched_pairs(
    objects: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]], iou_type: str, threshold: float = 0.5
) -> dict[int, int]:
    """Which object each detection of one image finds, as `match` has it for objects of all sizes: position of the detection ->
    position of the object. Detections that find none are absent; a crowd may be found by several.

    Args:
        objects, detections: as of `match`.  threshold: least overlap.
    """
    categories = sorted({record["category_id"] for record in (*objects, *detections)})
    place: dict[Identity, int] = {category: i for i, category in enumerate(categories)}
    truth, guesses = (
        _Sorted.of(_columns([{**r, "image_id": 0} for r in records], iou_type, {0: 0}, place), len(categories))
        for records in (objects, detections)
    )
    crowd = np.array([bool(o["iscrowd"]) for o in objects], dtype=bool)[truth.position]
    pairs: dict[int, int] = {}
    _choose(
        _candidates(truth, crowd, guesses, threshold),
        crowd,
        crowd,
        np.zeros_like(crowd),
        np.array([threshold]),
        len(guesses.image),
        pairs,
    )
    return {int(guesses.position[d]): int(truth.position[o]) for d, o in pairs.items()}


def _columns(
    records: Sequence[Mapping[str, Any]],
    iou_type: str,
    images: Mapping[Identity, int],
    categories: Mapping[Identity, int],
) -> Detections:
    """Checked records, of objects (which have no score) or detections."""
    if iou_type == "bbox":
        shapes: Shapes = np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4)
    else:
        rles = [r["segmentation"] for r in records]
        shapes = Masks([rle["counts"] for rle in rles], [rle["size"] for rle in rles])
    return Detections(
        np.array([images[r["image_id"]] for r in records], dtype=np.int64),
        np.array([categories[r["category_id"]] for r in records], dtype=np.int64),
        np.array([r.get("score", 0.0) for r in records], dtype=np.float64),
        np.array([r["area"] for r in records], dtype=np.float64),
        shapes,
    )


@dataclass(frozen=True)
class _Sorted:
    """Objects or detections sorted by cell (image and category), detections by falling score within it.

    position: in their own order.  cell: number of the cell.  place: within the cell.
    """

    position: np.ndarray
    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    area: np.ndarray
    shapes: Shapes
    cell: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, columns: Detections, categories: int) -> _Sorted:
        cell = columns.image * categories + columns.category
        order = np.lexsort((-columns.score, cell))  # stable
        cell = cell[order]
        place = np.arange(len(cell)) - np.searchsorted(cell, cell)
        return cls(
            order,
            columns.image[order],
            columns.category[order],
            columns.score[order],
            columns.area[order],
            picked(columns.shapes, order),
            cell,
            place,
        )

    def first_in_each_cell(self, limit: int) -> _Sorted:
        keep = np.flatnonzero(self.place < limit)
        if len(keep) == len(self.place):
            return self
        return _Sorted(
            self.position[keep],
            self.image[keep],
            self.category[keep],
            self.score[keep],
            self.area[keep],
            picked(self.shapes, keep),
            self.cell[keep],
            self.place[keep],
        )


def _candidates(
    truth: _Sorted, crowd: np.ndarray, detections: _Sorted, least: float
) -> list[tuple[int, list[tuple[int, float]]]]:
    """Each detection that overlaps objects of its cell by ``least`` or more: its number, and (object, IoU) of those.

    Detections come cell by cell, the best of a cell first; objects as they stand in the file.
    """
    from pycocotools import mask

    candidates: list[tuple[int, list[tuple[int, float]]]] = []
    cells = np.intersect1d(truth.cell, detections.cell)
    bounds = [
        np.searchsorted(records.cell, cells, side).tolist()
        for records in (truth, detections)
        for side in ("left", "right")
    ]
    crowds = crowd.astype(int).tolist()
    for first, last, start, end in zip(*bounds, strict=True):
        overlap = mask.iou(part(detections.shapes, start, end), part(truth.shapes, first, last), crowds[first:last])
        rows, columns = np.nonzero(overlap >= least)
        before = -1
        values = overlap[rows, columns].tolist()
        for row, column, value in zip(rows.tolist(), columns.tolist(), values, strict=True):
            if row != before:
                candidates.append((start + row, []))
                before = row
            candidates[-1][1].append((first + column, value))
    return candidates


def _choose(
    candidates: Sequence[tuple[int, list[tuple[int, float]]]],
    ignored: np.ndarray,
    crowd: np.ndarray,
    unnamed: np.ndarray,
    thresholds: np.ndarray,
    detections: int,
    pairs: dict[int, int] | None = None,
) -> np.ndarray:
    """What each detection is at each threshold: uint8 (thresholds, detections), free, taken by an object, or ignored.

    pairs: gets the object of each detection that has one, at the last threshold.
    """
    state = np.full((len(thresholds), detections), _FREE, dtype=np.uint8)
    limits = [min(t, 1 - 1e-10) for t in thresholds.tolist()]
    is_ignored, is_crowd, is_unnamed = ignored.tolist(), crowd.tolist(), unnamed.tolist()
    gone: set[tuple[int, int]] = set()  # (object, threshold)
    rows, columns, values = [], [], []
    for detection, fitting in candidates:
        regular = [pair for pair in fitting if not is_ignored[pair[0]]]
        others = [pair for pair in fitting if is_ignored[pair[0]]]
        for row, limit in enumerate(limits):
            best, chosen = limit, -1
            for number, overlap in regular:
                if overlap >= best and (number, row) not in gone:
                    best, chosen = overlap, number
            if chosen < 0:
                for number, overlap in others:
                    if overlap >= best and (is_crowd[number] or (number, row) not in gone):
                        best, chosen = overlap, number
            if chosen >= 0:
                gone.add((chosen, row))
                what = _IGNORED if is_ignored[chosen] else _FREE if is_unnamed[chosen] else _TAKEN
                rows.append(row)
                columns.append(detection)
                values.append(what)
                if pairs is not None:
                    pairs[detection] = chosen
    state[rows, columns] = values
    return state


def _each_alone(
    detections: _Sorted,
    objects: np.ndarray,
    state: np.ndarray,
    inside: np.ndarray,
    images: int,
    recall_steps: np.ndarray,
) -> np.ndarray:
    """AP of each image by itself, (images,); NaN without objects.

    objects: int64, of each cell.  state: (thresholds, n), of detections in the order of ``detections``.  inside: bool (n,).
    """
    kept = np.flatnonzero(objects[detections.cell] > 0)
    cell, place, state = detections.cell[kept], detections.place[kept], state[:, kept]
    hit = state == _TAKEN
    counted = hit | ((state == _FREE) & inside[kept])
    first = np.arange(len(kept)) - place
    right, seen = (np.cumsum(x, axis=1) for x in (hit, counted))
    right, seen = (x - x[:, first] + y[:, first] for x, y in ((right, hit), (seen, counted)))
    best = right / (seen + np.spacing(1.0))
    for last in range(int(place.max(initial=0)), 0, -1):
        at = np.flatnonzero(place == last)
        best[:, at - 1] = np.maximum(best[:, at - 1], best[:, at])
    reached = [np.searchsorted(recall_steps, n / objects[cell], side="right") * (n > 0) for n in (right, right - hit)]
    gained = best * (reached[0] - reached[1]) / len(recall_steps)
    categories = len(objects) // images
    present = (objects.reshape(images, categories) > 0).sum(axis=1)
    total = np.bincount(cell // categories, weights=gained.mean(axis=0), minlength=images)
    return np.where(present > 0, total / present.clip(min=1), np.nan)


class _Layout:
    """Collects the matches of one area and category after the other."""

    def __init__(self, categories: int, thresholds: int, limits: tuple[int, ...]):
        self.categories, self.thresholds, self.limits = categories, thresholds, limits
        self.runs = np.zeros(AREAS * categories * thresholds, dtype=np.int64)
        self.run_start = np.zeros_like(self.runs)
        self.total = 0
        self.lists: dict[Any, list[tuple[np.ndarray, np.ndarray]]] = {}

    def _put(self, what: Any, images: np.ndarray, number: np.ndarray | int) -> None:
        self.lists.setdefault(what, []).append((images, np.broadcast_to(number, images.shape)))

    def _joined(self, what: Any, lists: int) -> Lists:
        parts = self.lists.get(what, [])
        none = np.zeros(0, dtype=np.int64)
        images, number = (np.concatenate([none, *(part[i] for part in parts)]) for i in (0, 1))
        return Lists.of(images, number, lists)

    def add(
        self,
        area: int,
        category: int,
        objects: np.ndarray,
        image: np.ndarray,
        place: np.ndarray,
        hit: np.ndarray,
        miss: np.ndarray,
    ) -> None:
        """objects: images of the objects that count.  image, place: of detections (n,), the best first, place within the
        image.  hit, miss: (thresholds, n), true and counted false positives.
        """
        group = area * self.categories + category
        self._put("objects", objects, group)
        row, at = np.nonzero(hit)
        if not row.size:
            return
        self._put("true positives", image[at], group)
        if area == 0:
            for limit in self.limits:
                self._put(limit, image[at[place[at] < limit]], category)
        # a hit begins a run if it is the first of its threshold or follows a miss
        missed = np.cumsum(miss, axis=1)[row, at]
        begins = np.ones(len(row), dtype=bool)
        begins[1:] = (row[1:] != row[:-1]) | (missed[1:] != missed[:-1])
        run = np.cumsum(begins) - 1
        first = (row * hit.shape[1] + at)[begins]
        wrong = np.flatnonzero(miss)
        of_run = np.searchsorted(first, wrong)
        wrong, of_run = wrong[of_run < len(first)], of_run[of_run < len(first)]
        same = row[begins][of_run] == wrong // hit.shape[1]
        self._put("hits", image[at], self.total + run)
        self._put("misses", image[wrong[same] % hit.shape[1]], self.total + of_run[same])
        segments = slice(group * self.thresholds, (group + 1) * self.thresholds)
        count = np.bincount(row[begins], minlength=self.thresholds)
        self.runs[segments] = count
        self.run_start[segments] = self.total + np.cumsum(count) - count
        self.total += len(first)

    def matches(self, prefix: str, per_image: np.ndarray, thresholds: np.ndarray, recall_steps: np.ndarray) -> Matches:
        groups = AREAS * self.categories
        hits, misses = (self._joined(what, self.total) for what in ("hits", "misses"))
        return Matches(
            prefix=prefix,
            per_image=per_image,
            categories=self.categories,
            thresholds=thresholds,
            objects=self._joined("objects", groups),
            true_positives=self._joined("true positives", groups),
            first_true_positives={limit: self._joined(limit, self.categories) for limit in self.limits},
            bundles=[self._bundle(segments, hits, misses) for segments in _bundled(self.runs)],
            recall_steps=recall_steps,
        )

    def _bundle(self, segments: np.ndarray, hits: Lists, misses: Lists) -> Bundle:
        length = int(self.runs[segments].max())
        position = np.arange(length)[:, None]
        run = np.where(position < self.runs[segments], self.run_start[segments] + position, -1).ravel()
        return Bundle(segments, segments // self.thresholds, length, hits.picked(run), misses.picked(run))


def _bundled(runs: np.ndarray) -> Iterator[np.ndarray]:
    """Segments that have runs, grouped by similar length, about as many runs per group as stay in a processor's cache."""
    order = np.argsort(-runs, kind="stable")
    order = order[runs[order] > 0]
    while order.size:
        longest = runs[order[0]]
        many = max(1, _BUNDLE_RUNS // longest)
        similar = np.count_nonzero(runs[order[:many]] >= 0.8 * longest - 1)
        yield order[:similar]
        order = order[similar:]
