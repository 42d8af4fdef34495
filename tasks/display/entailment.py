"""Visual entailment for people: the picture, the sentence, and what each label was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from beit3_bench.tasks.display import Display, Entry, Line, Listing, Picture, Samples, Shown
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

EDGES = (4, 6, 8, 10, 13)


class EntailmentDisplay(Display):
    """A row's scores are those of the labels, on a scale whose softmax is a probability."""

    groups: ClassVar[Mapping[str, str]] = {"accuracy/": "By label"}

    def samples(self) -> Samples:
        given = super().samples()
        sure = {i: float(shares.max()) for i, row in self.rows.items() if (shares := _shares(row)) is not None}
        return Samples(given.ids, given.metric, given.values, sure)

    def shown(self, example: Example, row: Row) -> Shown:
        said, truth, shares = str(row["label"]), self.truth(example), _shares(row)
        lines = [Line("answer", said, said == truth), Line("truth", truth)]
        listings = []
        if shares is not None:
            order = np.argsort(-shares, kind="stable").tolist()
            names = self.split.labels or tuple(map(str, range(len(shares))))
            entries = [
                Entry(names[k], None, f"{100 * shares[k]:.1f} %", float(shares[k]), names[k] == truth or None)
                for k in order
            ]
            listings.append(Listing("Probabilities", tuple(entries), None))
        picture = Picture(example.images[0], f"Picture that the sentence is about: {example.text}")
        return Shown(example.id, example.text or "", (picture,), tuple(lines), tuple(listings), (truth,))

    def breakdowns(self) -> list[Breakdown]:
        values = self.scores.get("accuracy", {})
        examples = [self.examples[i] for i in values if i in self.examples]
        clusters = {e.id: e.cluster for e in examples}
        lengths = {e.id: words_kind(words_of(e.text), EDGES) for e in examples}
        sure = self.samples().confidence
        known = [e for e in examples if e.id in sure]
        return [
            *by_kind(
                "By length of the sentence", "accuracy", "fraction", values, lengths, clusters, words_order(EDGES)
            ),
            *confusions([(e.cluster, str(e.target), str(self.rows[e.id]["label"])) for e in examples]),
            *reliability([sure[e.id] for e in known], [values[e.id] for e in known], [e.cluster for e in known]),
        ]


def _shares(row: Row) -> np.ndarray | None:
    """Softmax of the scores; None where the row holds none."""
    scores = row.get("scores")
    if not isinstance(scores, list) or not scores:
        return None
    powers = np.exp(np.asarray(scores, dtype=np.float64) - max(scores))
    return powers / powers.sum()
