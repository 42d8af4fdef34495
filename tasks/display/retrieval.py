"""Retrieval for people: a query, the first five of the gallery, and where the right one stands; in both directions.

Only the queries that are shown are ranked, a block of them at a time against the gallery; scores are those of the metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from beit3_bench.tasks.display import Display, Entry, Line, Listing, Picture, Samples, Shown
from beit3_bench.tasks.display.breakdowns import Breakdown, by_kind, words_kind, words_of, words_order
from beit3_bench.tasks.embedding import embeddings_of
from beit3_bench.tasks.metrics.recall import CUTS, gallery_order, unit_rows

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example

TOP = 5
EDGES = (8, 10, 12, 15)
BLOCK = 256
"""Queries that are ranked at once."""


class RetrievalDisplay(Display):
    """A query's score is the mean of its hits at 1, 5 and 10; the mean of both directions is the mean recall."""

    def samples(self) -> Samples:
        values: dict[str, float] = {}
        for direction in ("TR", "IR"):
            hits = [self.scores.get(f"{direction}@{k}", {}) for k in CUTS]
            if all(hits):
                values |= {i: sum(at.get(i, 0.0) for at in hits) / len(CUTS) for i in hits[0] if i in self.examples}
        return Samples(tuple(self.examples), "mean_recall", values)

    def sections(self) -> Mapping[str, Sequence[str]]:
        kinds = {"image": "From image to text", "text": "From text to image"}
        return {title: [i for i, e in self.examples.items() if e.kind == kind] for kind, title in kinds.items()}

    def finer(self, ids: Iterable[str]) -> Mapping[str, float]:
        """Minus the rank of the right answer."""
        return {name: float(-rank) for name, (rank, _, _) in self._ranked(list(ids)).items()}

    def show(self, ids: Sequence[str]) -> list[Shown]:
        ranked = self._ranked(ids)
        return [self._query(self.examples[name], *ranked[name]) for name in ids]

    def breakdowns(self) -> list[Breakdown]:
        examples = self.examples
        found = []
        for name, title in (("IR@1", "IR@1 by length of the query"), ("IR@10", "IR@10 by length of the query")):
            values = {i: value for i, value in self.scores.get(name, {}).items() if i in examples}
            kinds = {i: words_kind(words_of(examples[i].text), EDGES) for i in values}
            clusters = {i: examples[i].cluster for i in values}
            found += by_kind(title, name, "percent", values, kinds, clusters, words_order(EDGES))
        return found

    # ---- ranking ----------------------------------------------------------------------------------------------------

    def _gallery(self, kind: str) -> tuple[list[Example], np.ndarray, np.ndarray]:
        """Examples of a kind, their embeddings (n, D), and what decides between equal scores (n,)."""
        examples = [e for e in self.examples.values() if e.kind == kind]
        embeddings, _ = unit_rows(embeddings_of(examples, self.rows), f"{kind} embeddings")
        images = np.array([e.target for e in examples])
        order = gallery_order(images) if kind == "image" else np.arange(len(examples))
        return examples, np.ascontiguousarray(embeddings, dtype=np.float32), order

    def _ranked(self, ids: Sequence[str]) -> dict[str, tuple[int, list[tuple[Example, float]], tuple[Example, float]]]:
        """Query -> rank of its best right answer, the first of the gallery with their cosines, and that answer."""
        answers: dict[str, tuple[int, list[tuple[Example, float]], tuple[Example, float]]] = {}
        for kind, other in (("image", "text"), ("text", "image")):
            queries = [self.examples[i] for i in ids if self.examples[i].kind == kind]
            if not queries:
                continue
            gallery, embeddings, order = self._gallery(other)
            targets = np.array([e.target for e in gallery])
            for start in range(0, len(queries), BLOCK):
                block = queries[start : start + BLOCK]
                vectors, _ = unit_rows(embeddings_of(block, self.rows), f"{kind} embeddings")
                scores = vectors.astype(np.float32) @ embeddings.T
                for query, row in zip(block, scores, strict=True):
                    own = np.flatnonzero(targets == query.target)
                    best = int(own[np.lexsort((order[own], -row[own]))[0]])
                    before = (row > row[best]) | ((row == row[best]) & (order < order[best]))
                    many = min(4 * TOP, len(row))
                    first = np.argpartition(-row, many - 1)[:many]
                    first = first[np.lexsort((order[first], -row[first]))][:TOP].tolist()
                    top = [(gallery[k], float(row[k])) for k in first]
                    answers[query.id] = (1 + int(before.sum()), top, (gallery[best], float(row[best])))
        return answers

    def _query(
        self, query: Example, rank: int, top: list[tuple[Example, float]], right: tuple[Example, float]
    ) -> Shown:
        size = sum(e.kind != query.kind for e in self.examples.values())
        entries = tuple(self._entry(e, cosine, query) for e, cosine in top)
        what = "texts" if query.kind == "image" else "pictures"
        listings = [Listing(f"First {len(entries)} of {size:,} {what}", entries)]
        if rank > TOP:
            listings.append(Listing("The right one", (self._entry(*right, query),), rank))
        pictures = (Picture(query.images[0], "The picture that texts are looked for"),) if query.images else ()
        lines = (Line("rank of the right one", f"{rank:,} of {size:,}", rank == 1),)
        return Shown(query.id, query.text or "", pictures, lines, tuple(listings))

    def _entry(self, example: Example, cosine: float, query: Example) -> Entry:
        good = example.target == query.target
        picture = None
        if example.images:
            text = next((e.text for e in self.examples.values() if e.kind == "text" and e.target == example.target), "")
            picture = Picture(example.images[0], f"A picture that people describe as: {text}")
        return Entry(example.text or "", picture, f"{cosine:.3f}", max(cosine, 0.0), good or None)
