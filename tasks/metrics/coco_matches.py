"""Average precision of resampled images without matching again.

COCOeval matches detections with objects within one image, so drawing images anew changes no match: only how often each
match counts. Here the matches of all images are laid out once, sorted by category and score, and the twelve COCO
statistics of a resample are computed from integer weights of the images (how often each was drawn). With all weights
one this is COCOeval.accumulate and summarize. Copies of an image follow each other directly among detections of equal
score.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from beit3_bench.backbones.errors import BenchError
from beit3_bench.tasks.base import ClusterTable

STATISTICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_maxdets1", "AR_maxdets10", "AR_maxdets100", "AR_small", "AR_medium", "AR_large"),
)
"""Names of COCOeval.stats, in its order."""

_AREAS = 4  # all, small, medium, large, as in COCOeval's parameters
_EPSILON = np.spacing(1.0)


@dataclass(frozen=True)
class Matches:
    """The matches of one evaluation, laid out for weighted counting.

    Segments are (area, category, threshold), in this order: ``areas * categories * thresholds`` of them. Ranked lists
    are concatenated; within a list, entries follow the order in which COCOeval counts detections.

    prefix: ``bbox`` or ``segm``.
    objects: float32 (images, areas * categories), objects that count, per image.
    ranked: image of every detection whose own area is in range, per (area, category).
    corrected, correction: image, and +1 or -1, where ranked and counted detections differ at a threshold, per segment:
        a true positive whose own area is out of range is added, an ignored detection in range is taken away.
    hits: image of every true positive, per segment.
    ranked_upto, corrected_upto: how many entries of ``ranked`` and ``corrected`` come up to and including each hit.
    ranked_start, corrected_start, hit_start: where each segment begins in the lists; one more for the end of hits.
    among_first: {1, 10}: bool, hits of area "all" that are among the image's first detections of the category.
    recall_steps: float64 (101,), the recall values at which precision is read.
    """

    prefix: str
    categories: int
    thresholds: np.ndarray
    objects: np.ndarray
    ranked: np.ndarray
    corrected: np.ndarray
    correction: np.ndarray
    hits: np.ndarray
    ranked_upto: np.ndarray
    corrected_upto: np.ndarray
    ranked_start: np.ndarray
    corrected_start: np.ndarray
    hit_start: np.ndarray
    among_first: dict[int, np.ndarray]
    recall_steps: np.ndarray

    def statistics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The twelve statistics of R resamples, fractions (R,); NaN without any object. weights: (R, images)."""
        objects = np.rint(weights.astype(np.float32) @ self.objects).astype(np.int64)
        drawn = np.rint(weights).astype(np.int32)
        rows = np.empty((len(weights), len(STATISTICS)))

        def fill(start: int) -> None:
            count = _WeightedCount(self)
            for row in range(start, len(rows), threads):
                rows[row] = count.statistics(drawn[row], objects[row])

        threads = min(os.cpu_count() or 1, 4, len(rows))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, range(threads)))
        return {f"{self.prefix}/{name}": rows[:, i] for i, name in enumerate(STATISTICS)}


class _WeightedCount:
    """Counts one resample after the other in the same buffers; fresh arrays of this size cost more than the counting."""

    def __init__(self, matches: Matches):
        self.matches = m = matches
        self.shape = (_AREAS, m.categories, len(m.thresholds))
        self.length = np.diff(m.hit_start)
        hits, whole = len(m.hits), np.int32
        self.weight, self.right, self.counted, self.other = (np.zeros(hits, dtype=whole) for _ in range(4))
        self.ranked_weight = np.zeros(len(m.ranked), dtype=whole)
        self.hits_upto, self.ranked_upto, self.corrected_upto = (
            np.zeros(len(values) + 1, dtype=whole) for values in (m.hits, m.ranked, m.corrected)
        )
        self.precision, self.reached, self.gained = np.zeros(hits), np.zeros(hits), np.zeros(hits)
        # segments are kept apart by whole numbers, falling, for one running maximum from the right through all of them
        self.apart = np.repeat(np.arange(len(self.length), 0, -1, dtype=np.float64), self.length)
        self.at_50, self.at_75 = (int(np.argmin(abs(m.thresholds - t))) for t in (0.5, 0.75))

    def statistics(self, weights: np.ndarray, objects: np.ndarray) -> list[float]:
        """In the order of STATISTICS. weights: int32 (images,); objects: int64 (areas * categories,)."""
        precision, recall, first = self.precision_and_recall(weights, objects)
        present = objects.reshape(_AREAS, -1) > 0

        def mean(values: np.ndarray, area: int) -> float:
            kept = values[present[area]]
            return float(kept.mean()) if kept.size else float("nan")

        return [
            mean(precision[0], 0),
            mean(precision[0, :, self.at_50], 0),
            mean(precision[0, :, self.at_75], 0),
            *(mean(precision[area], area) for area in (1, 2, 3)),
            *(mean(first[limit], 0) for limit in (1, 10)),
            *(mean(recall[area], area) for area in range(_AREAS)),
        ]

    def precision_and_recall(
        self, weights: np.ndarray, objects: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
        """Interpolated precision averaged over recall steps, and recall: both (areas, categories, thresholds).

        Also the recall with the first 1 and 10 detections of an image, (categories, thresholds) for area "all".
        Segments without objects hold zeros.
        """
        m, shape = self.matches, self.shape
        np.take(weights, m.hits, out=self.weight, mode="clip")
        np.cumsum(self.weight, out=self.hits_upto[1:])
        np.cumsum(np.take(weights, m.ranked, out=self.ranked_weight, mode="clip"), out=self.ranked_upto[1:])
        np.cumsum(weights[m.corrected] * m.correction, out=self.corrected_upto[1:])

        # true positives and all that count up to each hit; precision there, then the best at or after it (adding whole
        # numbers costs 3e-13 of precision at most)
        hits_before = self.hits_upto[m.hit_start]
        np.subtract(self.hits_upto[1:], np.repeat(hits_before[:-1], self.length), out=self.right)
        np.take(self.ranked_upto, m.ranked_upto, out=self.counted, mode="clip")
        self.counted += np.take(self.corrected_upto, m.corrected_upto, out=self.other, mode="clip")
        before = self.ranked_upto[m.ranked_start] + self.corrected_upto[m.corrected_start]
        self.counted -= np.repeat(before, self.length)
        np.add(self.counted, _EPSILON, out=self.precision)
        np.divide(self.right, self.precision, out=self.precision)
        self.precision += self.apart
        np.maximum.accumulate(self.precision[::-1], out=self.precision[::-1])
        self.precision -= self.apart

        # a hit counts for the recall steps that it is the first to reach
        steps, start = _steps_reached(objects, m.recall_steps)
        np.add(self.right, np.repeat(np.repeat(start, shape[2]), self.length), out=self.other)
        np.take(steps, self.other, out=self.reached, mode="clip")
        np.subtract(self.reached[1:], self.reached[:-1], out=self.gained[1:])
        nonempty = self.length > 0
        begin = m.hit_start[:-1][nonempty]
        self.gained[begin] = self.reached[begin]
        self.gained *= self.precision
        summed = np.zeros(len(self.length))
        if begin.size:
            summed[nonempty] = np.add.reduceat(self.gained, begin)

        count = np.repeat(objects, shape[2]).astype(np.float64).clip(min=1).reshape(shape)
        first = {limit: self._hits_among_first(limit).reshape(shape[1:]) / count[0] for limit in m.among_first}
        recall = np.diff(hits_before).reshape(shape) / count
        return summed.reshape(shape) / len(m.recall_steps), recall, first

    def _hits_among_first(self, limit: int) -> np.ndarray:
        segments = self.shape[1] * self.shape[2]
        mask = self.matches.among_first[limit]
        nonempty = self.length[:segments] > 0
        hits = np.zeros(segments, dtype=np.int64)
        if mask.size:
            hits[nonempty] = np.add.reduceat(
                self.weight[: len(mask)] * mask, self.matches.hit_start[:segments][nonempty]
            )
        return hits


class MatchTable(ClusterTable):
    """A cluster table of images whose ``sums`` are the statistics themselves: AP is no ratio of sums.

    It serves wherever a `ClusterTable` does, together with `estimate_ap`. Several evaluations of the same images (boxes
    and masks) share one table.
    """

    def __init__(self, ids: Sequence[str], evaluations: Sequence[Matches]):
        super().__init__(list(ids), {})
        self.evaluations = list(evaluations)

    def sums(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Statistics of R resamples (R,) from weights (R, n); without weights, of the images as they are."""
        rows = np.ones((1, len(self.ids))) if weights is None else np.asarray(weights)
        found: dict[str, np.ndarray] = {}
        for matches in self.evaluations:
            found |= matches.statistics(rows)
        return {name: values[0] for name, values in found.items()} if weights is None else found

    def joined(self, other: MatchTable) -> MatchTable:
        """This table's and the other's statistics of the same images.

        Raises:
            BenchError: the tables are of different images.
        """
        if self.ids != other.ids:
            raise BenchError("evaluations of different images cannot share a table; evaluate both on the same split")
        return MatchTable(self.ids, [*self.evaluations, *other.evaluations])


def estimate_ap(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The statistics of a `MatchTable`, which come ready made."""
    return dict(sums)


def lay_out(evaluator: Any, prefix: str) -> Matches:
    """Lay out a `pycocotools.cocoeval.COCOeval` after its ``evaluate()``, with its default parameters."""
    parameters = evaluator._paramsEval
    images, categories, thresholds = len(parameters.imgIds), len(parameters.catIds), np.array(parameters.iouThrs)
    limit = parameters.maxDets[-1]
    objects = np.zeros((images, _AREAS * categories), dtype=np.float32)
    parts = [[_Part.empty(len(thresholds))] * categories for _ in range(_AREAS)]
    for category in range(categories):
        start = category * _AREAS * images
        cells = [(i, e) for i, e in enumerate(evaluator.evalImgs[start : start + images]) if e is not None]
        if not cells:
            continue
        member = [i for i, _ in cells]
        kept = [len(e["dtScores"][:limit]) for _, e in cells]
        scores = np.array([score for _, e in cells for score in e["dtScores"][:limit]], dtype=np.float64)
        order = np.argsort(-scores, kind="mergesort")
        image = np.repeat(member, kept)[order]
        place = (np.arange(len(scores)) - np.repeat(np.cumsum([0, *kept[:-1]]), kept))[order]
        ids = (d for _, e in cells for d in e["dtIds"][:limit])
        sizes = np.array([evaluator.cocoDt.anns[d]["area"] for d in ids], dtype=np.float64)[order]
        for area, (smallest, largest) in enumerate(parameters.areaRng):
            found = [evaluator.evalImgs[start + area * images + i] for i in member]
            objects[member, area * categories + category] = [np.count_nonzero(e["gtIgnore"] == 0) for e in found]
            matched = np.concatenate([e["dtMatches"][:, :limit] for e in found], axis=1)[:, order] != 0
            ignored = np.concatenate([e["dtIgnore"][:, :limit] for e in found], axis=1)[:, order].astype(bool)
            inside = (sizes >= smallest) & (sizes <= largest)
            parts[area][category] = _Part.of(image, place, inside, matched, ignored)
    ordered = [part for row in parts for part in row]
    ranked_before = np.cumsum([0, *(len(part.ranked) for part in ordered)])
    corrected_before = np.cumsum([0, *(len(part.corrected) for part in ordered)])
    corrections = np.concatenate([part.corrected_count for part in ordered])
    places = _join([part.place for part in parts[0]])
    return Matches(
        prefix=prefix,
        categories=categories,
        thresholds=thresholds,
        objects=objects,
        ranked=_join([part.ranked for part in ordered]),
        corrected=_join([part.corrected for part in ordered]),
        correction=_join([part.correction for part in ordered]).astype(np.int32),
        hits=_join([part.hits for part in ordered]),
        ranked_upto=_join([n + p.ranked_upto for n, p in zip(ranked_before[:-1], ordered, strict=True)]),
        corrected_upto=_join([n + p.corrected_upto for n, p in zip(corrected_before[:-1], ordered, strict=True)]),
        ranked_start=np.repeat(ranked_before[:-1], len(thresholds)),
        corrected_start=np.cumsum(corrections) - corrections,
        hit_start=np.cumsum([0, *np.concatenate([part.hit_count for part in ordered])]),
        among_first={n: places < n for n in parameters.maxDets[:-1]},
        recall_steps=np.array(parameters.recThrs),
    )


@dataclass(frozen=True)
class _Part:
    """The lists of one area and category, all thresholds in turn; counts are per threshold."""

    ranked: np.ndarray
    corrected: np.ndarray
    correction: np.ndarray
    hits: np.ndarray
    place: np.ndarray
    ranked_upto: np.ndarray
    corrected_upto: np.ndarray
    corrected_count: np.ndarray
    hit_count: np.ndarray

    @classmethod
    def of(
        cls, image: np.ndarray, place: np.ndarray, inside: np.ndarray, matched: np.ndarray, ignored: np.ndarray
    ) -> _Part:
        """From ranked detections (n,): image, place within the image, own area in range; (thresholds, n): matches."""
        hit, counted = matched & ~ignored, ~ignored
        changed = counted != inside
        _, at = np.nonzero(hit)
        return cls(
            ranked=image[inside],
            corrected=image[np.nonzero(changed)[1]],
            correction=np.where(counted, 1, -1)[changed],
            hits=image[at],
            place=place[at],
            ranked_upto=np.cumsum(inside)[at],
            corrected_upto=np.cumsum(changed.ravel())[np.flatnonzero(hit)],
            corrected_count=changed.sum(axis=1),
            hit_count=hit.sum(axis=1),
        )

    @classmethod
    def empty(cls, thresholds: int) -> _Part:
        none, zeros = np.zeros(0, dtype=np.int64), np.zeros(thresholds, dtype=np.int64)
        return cls(none, none, none, none, none, none, none, zeros, zeros)


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([*parts, np.zeros(0)]).astype(np.intp)


def _steps_reached(objects: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many recall steps c of n objects reach, for c = 0..n and each n in a row, and where each row starts.

    Decided by the same floating-point division as in COCOeval, so that 7 of ten objects reach 0.7 or not as there. No hit
    reaches no step. steps: evenly spaced from 0 to 1.
    """
    end = np.cumsum(objects + 1)
    start = (end - objects - 1).astype(np.int32)
    c = np.arange(int(end[-1])) - np.repeat(start, objects + 1)
    recall = c / np.repeat(objects.clip(min=1), objects + 1)
    last = np.rint(recall * (len(steps) - 1)).astype(np.int64)
    reached = last + (steps[last] <= recall)
    reached[start] = 0
    return reached.astype(np.float64), start
