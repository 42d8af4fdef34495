"""Classification for people: the class, and the five that the model took it for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.tasks.display import Display, Entry, Line, Listing, Picture, Samples, Shown
from beit3_bench.tasks.display.breakdowns import LOWEST, Breakdown, by_kind, confusions, reliability
from beit3_bench.tasks.embedding import embeddings_of
from beit3_bench.tasks.metrics.topk import topk_classes, zero_shot_scores, zero_shot_weights

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example, Row, Split, Task

TOP = 5
BLOCK = 4096


class ClassDisplay(Display):
    """What `best` says of each image: its first classes, and their scores where there are any.

    names: of the classes, in the order of their numbers.
    calibrated: whether scores are probabilities, which can be held against how often the class is right.
    """

    calibrated = True

    def __init__(
        self,
        task: Task,
        split: Split,
        rows: Mapping[str, Row],
        scores: Mapping[str, Mapping[str, float]],
        names: Sequence[str],
    ):
        super().__init__(task, split, rows, scores)
        self.names = list(names)
        self.examples = {i: e for i, e in self.examples.items() if e.kind == "image"}
        self.best = self.read_best()

    def read_best(self) -> dict[str, tuple[list[int], list[float]]]:
        """Image -> its first classes, and their probabilities (none where the row holds none)."""
        return {i: (list(self.rows[i]["top5"]), _numbers(self.rows[i].get("probabilities"))) for i in self.examples}

    def value_text(self, score: float) -> tuple[str, float | None]:
        """A score in words, and as the share of a bar."""
        return f"{100 * score:.1f} %", score

    def samples(self) -> Samples:
        given = super().samples()
        sure = {i: scores[0] for i, (_, scores) in self.best.items() if scores and 0 <= scores[0] <= 1}
        return Samples(given.ids, given.metric, given.values, sure)

    def said(self, ids: Sequence[str]) -> Mapping[str, str]:
        """The first class."""
        return {i: self.name(self.best[i][0][0]) for i in ids if i in self.best}

    def truth(self, example: Example) -> str:
        return self.name(example.target)

    def shown(self, example: Example, row: Row) -> Shown:
        classes, scores = self.best[example.id]
        truth = self.truth(example)
        entries = []
        for k, c in enumerate(classes[:TOP]):
            value, share = self.value_text(scores[k]) if k < len(scores) else ("", None)
            entries.append(Entry(self.name(c), None, value, share, c == example.target or None))
        said = self.name(classes[0])
        picture = Picture(example.images[0], f"Picture of the class {truth}, taken for {said}")
        lines = (Line("answer", said, classes[0] == example.target), Line("truth", truth))
        return Shown(
            example.id, truth, (picture,), lines, (Listing(f"First {len(entries)} classes", tuple(entries)),), (truth,)
        )

    def name(self, number: int) -> str:
        return self.names[number] if 0 <= number < len(self.names) else f"class {number}"

    def breakdowns(self) -> list[Breakdown]:
        values = {i: value for i, value in self.scores.get("top1", {}).items() if i in self.examples}
        clusters = {i: self.examples[i].cluster for i in values}
        kinds = {i: self.name(self.examples[i].target) for i in values}
        pairs = [(clusters[i], kinds[i], self.name(self.best[i][0][0])) for i in values]
        sure = self.samples().confidence
        known = [i for i in values if i in sure] if self.calibrated else []
        return [
            *by_kind("By class", "top-1", "fraction", values, kinds, clusters, lowest=LOWEST),
            *confusions(pairs),
            *reliability([sure[i] for i in known], [values[i] for i in known], [clusters[i] for i in known], "top-1"),
        ]


class NamedClassDisplay(ClassDisplay):
    """ImageNet as retrieval of the class text: classes are ranked by cosine, which is no probability."""

    calibrated = False

    def read_best(self) -> dict[str, tuple[list[int], list[float]]]:
        texts = [e for e in self.split.examples if e.kind == "text" and e.id in self.rows]
        features = embeddings_of(texts, self.rows)
        classes = max(e.target for e in texts) + 1
        weights = zero_shot_weights(features.reshape(classes, -1, features.shape[-1]))
        images = list(self.examples.values())
        best: dict[str, tuple[list[int], list[float]]] = {}
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            scores = zero_shot_scores(embeddings_of(block, self.rows), weights)
            first = topk_classes(scores, TOP)
            values = np.take_along_axis(scores, first, axis=1)
            best |= {e.id: (c, v) for e, c, v in zip(block, first.tolist(), values.tolist(), strict=True)}
        return best

    def value_text(self, score: float) -> tuple[str, float | None]:
        return f"cosine {score:.3f}", max(score, 0.0)

    def samples(self) -> Samples:
        """The model is as sure as the first class is ahead of the second."""
        given = Display.samples(self)
        sure = {i: min(scores[0] - scores[1], 1.0) for i, (_, scores) in self.best.items() if len(scores) > 1}
        return Samples(given.ids, given.metric, given.values, sure)


def _numbers(value: Any) -> list[float]:
    return [float(x) for x in value] if isinstance(value, (list, np.ndarray)) else []
