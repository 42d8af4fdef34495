"""Segmentation for people: prediction and truth over the picture, and the classes with their IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.display import Display, Entry, LabelMap, Line, Listing, Picture, Shown
from beit3_bench.tasks.label_maps import dense_histogram, read_label, small_map, whole_map
from beit3_bench.tasks.metrics.segmentation import AREAS, IGNORE, per_class

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example, Row

CLASSES = 8
"""Classes of a picture that are listed, the largest first."""


class SegmentationDisplay(Display):
    """The score of a picture is the share of its pixels that are right."""

    groups: ClassVar[Mapping[str, str]] = {"IoU/": "IoU by class", "Acc/": "Accuracy by class"}

    def shown(self, example: Example, row: Row) -> Shown:
        names = self.split.labels or ()
        maps, lines = [], []
        if "preview" in row:
            maps.append(_layer("prediction", whole_map(row["preview"]), names))
        else:
            lines.append(Line("prediction", "this run keeps no maps; run it again to see them"))
        if example.truth_files:
            try:
                maps.append(_layer("truth", whole_map(small_map(read_label(example.truth_files[0]))), names))
            except BenchError as error:
                lines.append(Line("truth", str(error)))
        listings: list[Listing] = []
        classes: tuple[str, ...] = ()
        if "classes" in row:
            areas = dict(zip(AREAS, dense_histogram(row), strict=True))
            each = per_class(areas)["IoU"]
            largest = [c for c in np.argsort(-areas["union"], kind="stable")[:CLASSES].tolist() if areas["union"][c]]
            entries = tuple(Entry(names[c], None, f"IoU {100 * each[c]:.1f}", float(each[c])) for c in largest)
            listings.append(Listing("Classes, the largest first", entries, None))
            classes = tuple(names[c] for c in np.flatnonzero(areas["label"]).tolist())
        picture = Picture(example.images[0], f"Picture {example.id} with its label maps", maps=tuple(maps))
        return Shown(example.id, "", (picture,), tuple(lines), tuple(listings), classes)


def _layer(name: str, classes: np.ndarray, names: Sequence[str]) -> LabelMap:
    known = np.where(classes == IGNORE, -1, classes)
    there, counts = np.unique(known[known >= 0], return_counts=True)
    largest = there[np.argsort(-counts, kind="stable")].tolist()
    legend: dict[int, Any] = {c: names[c] for c in largest if c < len(names)}
    return LabelMap(name, known, legend)
