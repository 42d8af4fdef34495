"""Average precision of resampled images without matching again.

COCOeval matches detections with objects within one image, so drawing images anew changes no match: only how often each
match counts. Here the matches of all images are laid out once, sorted by category and score, and the twelve COCO
statistics of a resample are computed from integer weights of the images (how often each was drawn). With all weights
one this is COCOeval.accumulate and summarize. Copies of an image follow each other directly among detections of equal
score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.scores import ClusterTable

STATISTICS = (
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_maxdets1", "AR_maxdets10", "AR_maxdets100", "AR_small", "AR_medium", "AR_large"),
)
"""Names of COCOeval.stats, in its order."""

AREAS = 4  # all, small, medium, large, as in COCOeval's parameters
_BLOCK = 64  # resamples at a time: a row of their weights is a few cache lines
_STRETCH = 32
_EPSILON = np.spacing(1.0)


@dataclass(frozen=True)
class Lists:
    """Lists of images, one after the other; an image may come more than once in a list.

    images: int32, all lists in turn.  bounds: int32 (lists + 1,), where each begins and the last one ends.
    """

    images: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, number: np.ndarray, lists: int) -> Lists:
        """From the images of all lists and the number of each one's list."""
        order = np.argsort(number, kind="stable")
        return cls(images[order].astype(np.int32), bounds_of(np.bincount(number, minlength=lists)))

    def counts(self, weights: np.ndarray) -> np.ndarray:
        """Sum of the weights of each list. weights: float32 (images, R), whole numbers -> float32 (lists, R), exact
        below 2**24.
        """
        import torch

        bags = (torch.from_numpy(array) for array in (self.images, self.bounds))
        images, bounds = bags
        return torch.nn.functional.embedding_bag(
            images, torch.from_numpy(weights), bounds, mode="sum", include_last_offset=True
        ).numpy()

    def picked(self, lists: np.ndarray) -> Lists:
        """Some of the lists in a new order; -1 is an empty one."""
        length = np.append(np.diff(self.bounds), 0)[lists]
        bounds = bounds_of(length)
        start = np.append(self.bounds[:-1], 0)[lists]
        return Lists(self.images[np.repeat(start - bounds[:-1], length) + np.arange(bounds[-1])], bounds)


@dataclass(frozen=True)
class Bundle:
    """Segments of similar length, counted together.

    A run is a stretch of true positives without a counted false positive in between; only at its end can precision be at
    its best. Runs are numbered position by position: the first run of all segments, then the second one ...; shorter
    segments are filled up with empty runs.

    segments: int64 (S,).  groups: int64 (S,), their area and category.  length: runs of the longest segment.
    hits, misses: true positives of each of the ``length * S`` runs, and counted false positives since the run before.
    """

    segments: np.ndarray
    groups: np.ndarray
    length: int
    hits: Lists
    misses: Lists


@dataclass(frozen=True)
class Matches:
    """The matches of one evaluation, laid out for weighted counting.

    A group is (area, category), a segment (area, category, threshold), in this order. False positives that come after
    the last true positive of a segment change nothing and are left out.

    prefix: ``bbox`` or ``segm``.  categories: how many there are.
    per_image: AP of each image by itself, a fraction; NaN without objects.
    objects: for each group the images of the objects that count.
    true_positives: for each group the images of true positives at all thresholds.
    first_true_positives: {1, 10}: the same of area "all", among the image's first detections of the category.
    bundles: runs of true positives of all segments that have any.
    recall_steps: float64 (101,), the recall values at which precision is read, evenly spaced from 0 to 1.
    """

    prefix: str
    per_image: np.ndarray
    categories: int
    thresholds: np.ndarray
    objects: Lists
    true_positives: Lists
    first_true_positives: dict[int, Lists]
    bundles: list[Bundle]
    recall_steps: np.ndarray

    def statistics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The twelve statistics of R resamples, fractions (R,); NaN without any object. weights: (R, images)."""
        blocks = [self._block(weights[start : start + _BLOCK]) for start in range(0, len(weights), _BLOCK)]
        rows = np.concatenate(blocks, axis=1)
        return {f"{self.prefix}/{name}": rows[i] for i, name in enumerate(STATISTICS)}

    def category_precision(self, weights: np.ndarray) -> np.ndarray:
        """AP of each category in R resamples, fractions (categories, R); NaN without objects. weights: (R, images)."""
        by_image = np.ascontiguousarray(np.rint(weights).T, dtype=np.float32)
        objects, precision = self._counted(by_image)
        return np.where(objects[0] > 0, precision[0].mean(axis=1), np.nan)

    def per_category(self) -> list[float]:
        """AP of each category on the images as they are; NaN for one without objects."""
        return self.category_precision(np.ones((1, len(self.per_image))))[:, 0].tolist()

    def _block(self, weights: np.ndarray) -> np.ndarray:
        """Statistics in the order of STATISTICS, (12, r)."""
        by_image = np.ascontiguousarray(np.rint(weights).T, dtype=np.float32)
        objects, precision = self._counted(by_image)
        present = objects > 0
        divisor = len(self.thresholds) * objects.clip(min=1)
        recall = self.true_positives.counts(by_image).reshape(present.shape) / divisor
        first = {limit: hits.counts(by_image) / divisor[0] for limit, hits in self.first_true_positives.items()}
        at_50, at_75 = (int(np.argmin(abs(self.thresholds - t))) for t in (0.5, 0.75))
        average = precision.mean(axis=2)

        def mean(values: np.ndarray, area: int) -> np.ndarray:
            kept = present[area]
            with np.errstate(invalid="ignore"):
                return np.where(kept, values, 0).sum(axis=0) / kept.sum(axis=0)

        return np.stack(
            [
                mean(average[0], 0),
                mean(precision[0, :, at_50], 0),
                mean(precision[0, :, at_75], 0),
                *(mean(average[area], area) for area in (1, 2, 3)),
                *(mean(first[limit], 0) for limit in (1, 10)),
                *(mean(recall[area], area) for area in range(AREAS)),
            ]
        )

    def _counted(self, by_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Objects (areas, categories, r), and precision averaged over recall steps (areas, categories, thresholds, r)."""
        objects = self.objects.counts(by_image).astype(np.float64)
        precision = np.zeros((len(objects) * len(self.thresholds), by_image.shape[1]))
        for bundle in self.bundles:
            precision[bundle.segments] = self._precision(bundle, by_image, objects[bundle.groups])
        shape = (AREAS, self.categories, len(self.thresholds), by_image.shape[1])
        return objects.reshape(shape[:2] + shape[3:]), precision.reshape(shape)

    def _precision(self, bundle: Bundle, by_image: np.ndarray, objects: np.ndarray) -> np.ndarray:
        """Interpolated precision of each segment averaged over the recall steps, (S, r).  objects: (S, r)."""
        shape = (bundle.length, *objects.shape)
        right, counted = (lists.counts(by_image).reshape(shape) for lists in (bundle.hits, bundle.misses))
        _accumulate(np.add, right)
        _accumulate(np.add, counted)
        counted += right

        # precision at the end of each run, then the best there or later
        best = counted.astype(np.float64)
        best += _EPSILON
        np.divide(right, best, out=best)
        _accumulate(np.maximum, best[::-1])

        # a run counts for the recall steps that it is the first to reach, by the floating-point comparison of COCOeval, so
        # that 7 of ten objects reach 0.7 or not as there; before the first true positive, ``best`` is that of the first
        last_step = len(self.recall_steps) - 1
        recall = np.divide(right, objects.clip(min=1))
        step = np.rint(recall * last_step).astype(np.intp)
        reached = step + (np.take(self.recall_steps, step, mode="clip") <= recall)
        reached[1:] -= reached[:-1].copy()
        best *= reached
        return best.sum(axis=0) / len(self.recall_steps)


def _accumulate(ufunc: np.ufunc, values: np.ndarray) -> None:
    """``ufunc.accumulate(values, axis=0, out=values)``, many columns at a time: stretches first, then their ends."""
    length = len(values)
    if length <= 2 * _STRETCH:
        for row in range(1, length):
            ufunc(values[row], values[row - 1], out=values[row])
        return
    whole = length - length % _STRETCH
    stretches = values[:whole].reshape(-1, _STRETCH, *values.shape[1:])  # a view: only the first axis is cut
    for row in range(1, _STRETCH):
        ufunc(stretches[:, row], stretches[:, row - 1], out=stretches[:, row])
    ends = stretches[:, -1].copy()
    _accumulate(ufunc, ends)
    ufunc(stretches[1:], ends[:-1, None], out=stretches[1:])
    for row in range(whole, length):
        ufunc(values[row], values[row - 1], out=values[row])


class MatchTable(ClusterTable):
    """A cluster table of images whose ``sums`` are the statistics themselves: AP is no ratio of sums.

    It serves wherever a `ClusterTable` does, together with `estimate_ap`. Several evaluations of the same images (boxes
    and masks) share one table.
    """

    centred = True

    def __init__(self, ids: Sequence[str], evaluations: Sequence[Matches]):
        super().__init__(list(ids), {})
        self.evaluations = list(evaluations)

    def sums(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Statistics of R resamples (R,) from weights (R, n); without weights, of the images as they are."""
        rows = np.ones((1, len(self.ids))) if weights is None else np.asarray(weights)
        statistics: dict[str, np.ndarray] = {}
        for matches in self.evaluations:
            statistics |= matches.statistics(rows)
        return {name: values[0] for name, values in statistics.items()} if weights is None else statistics

    def joined(self, other: MatchTable) -> MatchTable:
        """This table's and the other's statistics of the same images.

        Raises:
            BenchError: the tables are of different images.
        """
        if self.ids != other.ids:
            raise BenchError("evaluations of different images cannot share a table; evaluate both on the same split")
        return MatchTable(self.ids, [*self.evaluations, *other.evaluations])


class CategoryTable(MatchTable):
    """AP of each category by its name, in place of the twelve statistics of all of them."""

    def __init__(self, ids: Sequence[str], matches: Matches, names: Sequence[str]):
        super().__init__(ids, [matches])
        self.names = list(names)

    def sums(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        rows = np.ones((1, len(self.ids))) if weights is None else np.asarray(weights)
        (matches,) = self.evaluations
        blocks = [matches.category_precision(rows[start : start + _BLOCK]) for start in range(0, len(rows), _BLOCK)]
        values = dict(zip(self.names, np.concatenate(blocks, axis=1), strict=True))
        return {name: each[0] for name, each in values.items()} if weights is None else values


def estimate_ap(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The statistics of a `MatchTable`, which come ready made."""
    return dict(sums)


def bounds_of(length: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
