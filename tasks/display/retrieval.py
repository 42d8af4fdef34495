"""Retrieval for people: a query, the first five of the gallery, and where the right one stands; in both directions.

Only the queries that are shown are ranked, a block of them at a time against the gallery; scores are those of the metric. Where the
run looked at the best again, the order after that stands beside the plain one; where it compared all pairs, that order is the only one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from beit3_bench.tasks.display import Display, Entry, Line, Listing, Picture, Samples, Shown, listed
from beit3_bench.tasks.display.breakdowns import Breakdown, by_kind, words_kind, words_of, words_order
from beit3_bench.tasks.embedding import embeddings_of
from beit3_bench.tasks.false_negatives import TITLES, Annotations
from beit3_bench.tasks.metrics.recall import CUTS, gallery_order, unit_rows
from beit3_bench.tasks.reranking import OF_IMAGE, OF_TEXT, Pairs, all_scores, kinds, row_id, sample_id

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example, Row, Split, Task

TOP = 5
EDGES = (8, 10, 12, 15)
BLOCK = 256
"""Queries that are ranked at once."""
DIRECTIONS = {"image": "TR", "text": "IR"}
"""Kind of a query -> the direction in which it asks."""


@dataclass(frozen=True)
class Ranking:
    """The gallery as one query sees it.

    rank: of the best right answer, from 1.  top: the first of the gallery with their scores.  right: that answer and its score.
    """

    rank: int
    top: list[tuple[Example, float]]
    right: tuple[Example, float]


@dataclass(frozen=True)
class Scored:
    """What a query is compared with. scores, order: of the gallery (n,); order decides between equal scores, the smaller first."""

    gallery: Sequence[Example]
    scores: np.ndarray
    order: np.ndarray

    def first(self, count: int) -> list[tuple[Example, float]]:
        """The best, with their scores."""
        count = min(count, len(self.scores))
        least = np.partition(self.scores, -count)[-count]
        best = np.flatnonzero(self.scores >= least)
        best = best[np.lexsort((self.order[best], -self.scores[best]))][:count]
        return [(self.gallery[k], float(self.scores[k])) for k in best.tolist()]

    def ranking(self, right: np.ndarray) -> Ranking:
        """right: bool (n,), at least one."""
        own = np.flatnonzero(right)
        best = int(own[np.lexsort((self.order[own], -self.scores[own]))[0]])
        before = (self.scores > self.scores[best]) | (
            (self.scores == self.scores[best]) & (self.order < self.order[best])
        )
        return Ranking(1 + int(before.sum()), self.first(TOP), (self.gallery[best], float(self.scores[best])))


class RetrievalDisplay(Display):
    """A query's score is the mean of its hits at 1, 5 and 10; the mean of both directions is the mean recall. Where the split comes with
    `false_negatives.Annotations`, what people judged right beyond COCO's own is marked by its source.

    all_scores: float32 (images that have a row, texts) of a run that compared all pairs; None of another.
    """

    groups: ClassVar[Mapping[str, str]] = {f"{name}/": f"False negatives: {title}" for name, title in TITLES.items()}

    def __init__(self, task: Task, split: Split, rows: Mapping[str, Row], scores: Mapping[str, Mapping[str, float]]):
        super().__init__(task, split, rows, scores)
        images, texts = kinds(split)
        there = [image for image in images if image.id in rows]
        self.all_scores = all_scores(there, rows, len(texts)) if there else None
        if self.all_scores is not None:
            targets = {image.target for image in there}
            self.examples = {e.id: e for e in split.examples if e.target in targets}

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
        """Minus the rank of the right answer, after the second pass where there is one."""
        chosen = list(ids)
        ranks = {
            name: ranking.rank for name, ranking in self._ranked(chosen).items()
        }  # none where all pairs were compared
        ranks |= {name: ranking.rank for name, ranking in self._looked_again(chosen).items()}
        return {name: float(-rank) for name, rank in ranks.items()}

    def said(self, ids: Sequence[str]) -> Mapping[str, str]:
        """The text, or the file of the picture, that stands first; of a second pass, where there is one."""
        chosen = [i for i in ids if i in self.examples]
        first = {name: ranking.top[0][0] for name, ranking in self._ranked(chosen).items()}
        first |= {name: again.first(1)[0][0] for name, again in self._candidates(chosen).items()}
        return {name: _in_words(example) for name, example in first.items()}

    def truth(self, example: Example) -> str:
        """The texts of a picture, or the file of the picture that a text is of."""
        return listed(
            _in_words(e) for e in self.split.examples if e.target == example.target and e.kind != example.kind
        )

    def show(self, ids: Sequence[str]) -> list[Shown]:
        plain, again = self._ranked(ids), self._looked_again(ids)
        return [self._query(self.examples[name], plain.get(name), again.get(name)) for name in ids]

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

    def _ranked(self, ids: Sequence[str]) -> dict[str, Ranking]:
        """Query -> the gallery by cosine; none where all pairs were compared."""
        answers: dict[str, Ranking] = {}
        if self.all_scores is not None:
            return answers
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
                    answers[query.id] = Scored(gallery, row, order).ranking(targets == query.target)
        return answers

    def _looked_again(self, ids: Sequence[str]) -> dict[str, Ranking]:
        """Query -> its candidates of the second pass by their scores; without those whose right answers were no candidates."""
        answers: dict[str, Ranking] = {}
        for name, candidates in self._candidates(ids).items():
            right = np.array([e.target == self.examples[name].target for e in candidates.gallery], dtype=bool)
            if right.any():
                answers[name] = candidates.ranking(right)
        return answers

    def _candidates(self, ids: Sequence[str]) -> dict[str, Scored]:
        """Query -> what a second pass compared it with; none where there was no such pass."""
        if self.all_scores is not None:
            return dict(self._compared(self.all_scores, ids))
        images, texts = kinds(self.split)
        if not images or not all(row_id(image) in self.rows for image in images):
            return {}
        pairs = Pairs.of(images, self.rows, len(texts))
        order = gallery_order(np.array([e.target for e in images]))
        found: dict[str, Scored] = {}
        for own, others, asked, columns, places in (
            (images, texts, pairs.asked_by(OF_IMAGE), ("image", "text"), np.arange(len(texts))),
            (texts, images, pairs.asked_by(OF_TEXT), ("text", "image"), order),
        ):
            of = {e.id: n for n, e in enumerate(own)}
            query, candidate = (vars(asked)[column] for column in columns)
            for name in (i for i in ids if i in of):
                mine = np.flatnonzero(query == of[name])
                if len(mine):
                    gallery = [others[k] for k in candidate[mine].tolist()]
                    found[name] = Scored(gallery, asked.score[mine], places[candidate[mine]])
        return found

    def _compared(self, scores: np.ndarray, ids: Sequence[str]) -> Iterator[tuple[str, Scored]]:
        """Query -> the whole gallery, of a run that compared all pairs."""
        images, texts = kinds(self.split)
        images = [image for image in images if image.id in self.rows]
        order = gallery_order(np.array([e.target for e in images]))
        row, column = ({e.id: n for n, e in enumerate(several)} for several in (images, texts))
        for name in ids:
            if name in row:
                yield name, Scored(texts, scores[row[name]], np.arange(len(texts)))
            else:
                yield name, Scored(images, scores[:, column[name]], order)

    def _query(self, query: Example, plain: Ranking | None, again: Ranking | None) -> Shown:
        """plain: by cosine; None where all pairs were compared, which ``again`` then is."""
        size = sum(e.kind != query.kind for e in self.examples.values())
        what = "texts" if query.kind == "image" else "pictures"
        last, both = plain or again, plain is not None and again is not None
        assert last is not None
        title = f"First {len(last.top)} of {size:,} {what}"
        listings, lines = [], []
        if again is not None and both:
            lines.append(Line("rank after re-ranking", f"{again.rank:,} of {size:,}", again.rank == 1))
            listings.append(Listing(f"{title}, re-ranked", tuple(self._entry(e, v, query, None) for e, v in again.top)))
            title = f"{title}, by cosine"
        which = "rank by cosine" if both else "rank of the right one"
        lines.append(Line(which, f"{last.rank:,} of {size:,}", last.rank == 1))

        def entry(example: Example, score: float) -> Entry:
            return self._entry(example, score, query, None if plain is None else score)

        listings.append(Listing(title, tuple(entry(*one) for one in last.top)))
        if last.rank > TOP:
            which = "The right one, by cosine" if both else "The right one"
            listings.append(Listing(which, (entry(*last.right),), last.rank))
        pictures = (Picture(query.images[0], "The picture that texts are looked for"),) if query.images else ()
        return Shown(query.id, query.text or "", pictures, tuple(lines), tuple(listings))

    def _entry(self, example: Example, score: float, query: Example, share: float | None) -> Entry:
        good = example.target == query.target
        picture = None
        if example.images:
            text = next((e.text for e in self.examples.values() if e.kind == "text" and e.target == example.target), "")
            picture = Picture(example.images[0], f"A picture that people describe as: {text}")
        also = "" if good else " and ".join(self._judged_right(query).get(sample_id(example), ()))
        value = f"{score:.3f}, also right by {also}" if also else f"{score:.3f}"
        return Entry(example.text or "", picture, value, None if share is None else max(share, 0.0), good or None)

    def _judged_right(self, query: Example) -> Mapping[str, Sequence[str]]:
        """Id of an image or sentence -> by whom it is right for a query."""
        annotations: Annotations | None = self.split.truth
        return {} if annotations is None else annotations.right_for(DIRECTIONS[query.kind], sample_id(query))


def _in_words(example: Example) -> str:
    """A text, or the name of a picture's file."""
    return PurePath(example.image_names[0]).name if example.images else str(example.text)
