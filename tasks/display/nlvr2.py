"""NLVR2 for people: the sentence, its two pictures, and how sure the model was."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from beit3_bench.tasks.display import Display, Line, Picture, Samples, Shown
from beit3_bench.tasks.display.breakdowns import (
    Breakdown,
    by_kind,
    confusions,
    reliability,
    words_kind,
    words_of,
    words_order,
)

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example, Row

EDGES = (8, 12, 16, 20, 25)


class NLVR2Display(Display):
    """A row's margin is the difference of two scores whose softmax is a probability."""

    def samples(self) -> Samples:
        given = super().samples()
        sure = {i: confidence for i, row in self.rows.items() if (confidence := _sure(row)) is not None}
        return Samples(given.ids, given.metric, given.values, sure)

    def shown(self, example: Example, row: Row) -> Shown:
        said = bool(row["label"])
        right = None if example.target is None else said == example.target
        sure = _sure(row)
        lines = [Line("answer", str(said) + ("" if sure is None else f", {100 * sure:.0f} % sure"), right)]
        lines += [] if example.target is None else [Line("truth", self.truth(example))]
        pictures = tuple(
            Picture(path, f"{side.capitalize()} picture of: {example.text}", side)
            for side, path in zip(("left", "right"), example.images, strict=True)
        )
        classes = () if example.target is None else (self.truth(example),)
        return Shown(example.id, example.text or "", pictures, tuple(lines), classes=classes)

    def breakdowns(self) -> list[Breakdown]:
        values = self.scores.get("accuracy", {})
        examples = [self.examples[i] for i in values if i in self.examples]
        clusters = {e.id: e.cluster for e in examples}
        lengths = {e.id: words_kind(words_of(e.text), EDGES) for e in examples}
        truth = {e.id: f"truth is {bool(e.target)}" for e in examples}
        sure = [
            (confidence, values[e.id], e.cluster)
            for e in examples
            if (confidence := _sure(self.rows[e.id])) is not None
        ]
        pairs = [(e.cluster, str(bool(e.target)), str(bool(self.rows[e.id]["label"]))) for e in examples]
        return [
            *by_kind("By truth", "accuracy", "fraction", values, truth, clusters),
            *by_kind(
                "By length of the sentence", "accuracy", "fraction", values, lengths, clusters, words_order(EDGES)
            ),
            *confusions(pairs),
            *reliability([s for s, _, _ in sure], [right for _, right, _ in sure], [cluster for _, _, cluster in sure]),
        ]


def _sure(row: Row) -> float | None:
    """Probability of the answer that was given."""
    margin = row.get("margin")
    return 1 / (1 + math.exp(-min(abs(margin), 500.0))) if isinstance(margin, (int, float)) else None
