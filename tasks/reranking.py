"""A second look at what retrieval found first: a model that compares an image with a text scores the best of every query again; one
that finds nothing by itself scores all pairs.

Both directions look again at their own best by cosine (official `evaluation` of ALBEF's `Retrieval.py` and BLIP's
`train_retrieval.py`). A pair has one score, whoever asks for it, so the pairs are computed image by image: one example per image,
with every text that it is compared with; its pixels and what texts see of it are computed once.

Tie rule: of equal scores the one comes first that comes earlier in the gallery, as in `metrics.recall`: texts in the order of the
input, images in that of their sorted ids. What was not looked at again stays behind what was, in the order of the first pass (the
official code gives it -100, and leaves that order open).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Item, Matches
from beit3_bench.backbones.family import SecondPass
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, Split, Task
from beit3_bench.tasks.embedding import embeddings_of
from beit3_bench.tasks.metrics.recall import RetrievalRanks, gallery_order, nearest
from beit3_bench.tasks.scores import ClusterTable, Formula, Metric, Scores

PLAIN = "plain/"
"""Before the names of the first pass's metrics and columns, where there was a second."""
TEXT = "text:"
"""Before the id of a sentence, in the id of its example."""
OF_IMAGE, OF_TEXT = 1, 2
"""Who asks for a pair, as bits: the image, the text."""
ROW_SHAPE: Mapping[str, Any] = {"texts": np.ndarray, "asked": np.ndarray, "scores": np.ndarray}
ALL_PAIRS_SHAPE: Mapping[str, Any] = {"scores": np.ndarray}


def plain_metrics(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """The same metrics of the first pass, without values where there was no second; see `with_plain`."""
    formulas = {
        formula: None if formula is None else _plain_formula(formula)
        for formula in dict.fromkeys(metric.formula for metric in metrics)
    }
    return tuple(
        dataclasses.replace(
            metric, name=f"{PLAIN}{metric.name}", headline=False, formula=formulas[metric.formula], ratio=None
        )
        for metric in metrics
    )


def _plain_formula(formula: Formula) -> Formula:
    def estimate(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        plain = {name.removeprefix(PLAIN): value for name, value in sums.items() if name.startswith(PLAIN)}
        if not plain:
            return {}
        both = {name: value for name, value in sums.items() if not name.startswith(PLAIN)}
        return {f"{PLAIN}{name}": value for name, value in formula({**both, **plain}).items()}

    return estimate


def with_plain(table: ClusterTable, first: Mapping[str, np.ndarray], shared: Collection[str] = ()) -> None:
    """Put the columns of the first pass into the table of the second, of the same clusters. shared: those that both have alike."""
    table.columns |= {f"{PLAIN}{name}": column for name, column in first.items() if name not in shared}


def sample_id(example: Example) -> str:
    """The id of an image, or of a text's sentence, as the data set has it."""
    return example.target if example.kind == "image" else example.id.removeprefix(TEXT)


def row_id(image: Example) -> str:
    """Of an image's row in the second pass."""
    return f"match:{image.target}"


def kinds(split: Split) -> tuple[list[Example], list[Example]]:
    """Images and texts of a split, in its order."""
    of = {kind: [e for e in split.examples if e.kind == kind] for kind in ("image", "text")}
    return of["image"], of["text"]


class Reranking(Task):
    """The second pass of a task of images and texts, as the engine runs it; of one run, made from the rows of its first pass.

    A row is ``{"id", "texts": int32 (n,) places among the split's texts, "asked": uint8 (n,), "scores": float32 (n,)}``.
    """

    ability = Matches
    batch_size = 4  # an image has hundreds of texts
    row_shape = ROW_SHAPE
    metrics = ()
    splits: ClassVar[tuple[str, ...]] = ()
    default_split = ""

    def __init__(
        self, of: Task, pairs: Split, texts: Sequence[Example], embeddings: tuple[np.ndarray, np.ndarray] | None
    ):
        """pairs: what is compared.  embeddings: of the images by their place, and of the texts, where the cosine joins the score; None =
        it does not.
        """
        super().__init__(of.data_root)
        self.name = of.name  # type: ignore[misc]
        self.of, self.pairs, self.texts, self.embeddings = of, pairs, texts, embeddings

    def read(self, split: str) -> Split:
        """The pairs, which were made from the rows of the first pass and not from files."""
        return self.pairs

    def item(self, example: Example) -> Item:
        texts = tuple(self.texts[place].text or "" for place in example.meta["texts"].tolist())
        return Item(example.id, example.images, texts=texts)

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """Scores of every image with its texts; raises BenchError where there are not as many."""
        rows = []
        for example, value in zip(examples, values, strict=True):
            texts, scores = example.meta["texts"], np.asarray(value, np.float32)
            if len(scores) != len(texts):
                raise BenchError(f"row {example.id}: the model gave {len(scores)} scores for {len(texts)} texts")
            if self.embeddings is not None:
                image, text = self.embeddings[0][example.meta["place"]], self.embeddings[1][texts]
                scores = scores + np.einsum("nd,d->n", text, image, dtype=np.float32)
            rows.append({"id": example.id, "texts": texts, "asked": example.meta["asked"], "scores": scores})
        return rows

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Both passes together, by the task that they are of; split: its own."""
        return self.of.score(rows, split)


class AllPairs(Reranking):
    """Every image with every text of a split, for a model without a first pass.

    A row is ``{"id": the image's, "scores": float32 (texts,)}``, the texts in the order of the split (official ViLT,
    `objectives.compute_irtr_recall`, which drops captions of an image that are alike word for word; here they stay, as in other passes).
    """

    batch_size = 1  # of an image with thousands of texts: little is lost where a run is stopped
    row_shape = ALL_PAIRS_SHAPE

    def __init__(self, of: Task, split: Split):
        """split: of the task ``of``, whole."""
        images, texts = kinds(split)
        super().__init__(of, split.of([dataclasses.replace(image, kind="match") for image in images]), texts, None)
        self.all_texts = tuple(text.text or "" for text in texts)

    def item(self, example: Example) -> Item:
        """With one tuple of texts for all."""
        return Item(example.id, example.images, texts=self.all_texts)

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """Scores of every image with all texts; raises BenchError where there are not as many."""
        rows = []
        for example, value in zip(examples, values, strict=True):
            scores = np.asarray(value, np.float32)
            if len(scores) != len(self.texts):
                raise BenchError(f"row {example.id}: the model gave {len(scores)} scores for {len(self.texts)} texts")
            rows.append({"id": example.id, "scores": scores})
        return rows


def check_candidates(split: Split, second: SecondPass) -> None:
    """Raise where more candidates were asked for than the smaller gallery has; by default all of it are then compared.

    Raises:
        BenchError: says how many there are.
    """
    images, texts = kinds(split)
    most = min(len(images), len(texts))
    if second.given and second.candidates is not None and second.candidates > most:
        raise BenchError(
            f"rerank={second.candidates}: the gallery of split {split.name!r} has {len(images):,} images and {len(texts):,} texts; "
            f"give {most} or less, or off"
        )


def pairs_to_compare(rows: Mapping[str, Row], split: Split, candidates: int) -> list[Example]:
    """An example per image, with the texts that it is compared with: those that the image finds first, and those that find it."""
    images, texts = kinds(split)
    image_embeddings, text_embeddings = embeddings_of(images, rows), embeddings_of(texts, rows)
    order = gallery_order(np.array([e.target for e in images]))
    found = nearest(image_embeddings, text_embeddings, candidates, np.arange(len(texts)))
    finding = nearest(text_embeddings, image_embeddings, candidates, order)
    wanted = [dict.fromkeys(found[place].tolist(), OF_IMAGE) for place in range(len(images))]
    for text, several in enumerate(finding.tolist()):
        for place in several:
            wanted[place][text] = wanted[place].get(text, 0) | OF_TEXT
    return [
        Example(
            row_id(image),
            image.images,
            cluster=image.cluster,
            kind="match",
            names=image.names,
            meta={
                "place": place,
                "texts": np.fromiter(sorted(wanted[place]), np.int32, len(wanted[place])),
                "asked": np.array([wanted[place][text] for text in sorted(wanted[place])], np.uint8),
            },
        )
        for place, image in enumerate(images)
    ]


@dataclass(frozen=True)
class Pairs:
    """Scored pairs: place of the image, place of the text, score, and who asked for them."""

    image: np.ndarray
    text: np.ndarray
    score: np.ndarray
    asked: np.ndarray

    @classmethod
    def of(cls, images: Sequence[Example], rows: Mapping[str, Row], texts: int) -> Pairs:
        """Raises: BenchError: a row that is none of a second pass over these texts."""
        several = [rows[row_id(image)] for image in images]
        for row in several:
            shapes = {np.asarray(row[name]).shape for name in ROW_SHAPE}
            if len(shapes) != 1 or len(next(iter(shapes))) != 1:
                raise BenchError(f"row {row['id']}: texts, asked and scores are not of one length")
            if len(row["texts"]) and not 0 <= int(row["texts"].min()) <= int(row["texts"].max()) < texts:
                raise BenchError(f"row {row['id']}: names a text that is not among the {texts} of the split")
        place = np.repeat(np.arange(len(several)), [len(row["texts"]) for row in several])
        joined = [np.concatenate([row[name] for row in several]) for name in ("texts", "scores", "asked")]
        return cls(place, *joined)

    def asked_by(self, bit: int) -> Pairs:
        kept = (self.asked & bit) > 0
        return Pairs(self.image[kept], self.text[kept], self.score[kept], self.asked[kept])


def all_scores(images: Sequence[Example], rows: Mapping[str, Row], texts: int) -> np.ndarray | None:
    """Scores of all pairs, float32 (images, texts); None where a run has a first pass.

    Raises:
        BenchError: a row that is none of such a run over these texts.
    """
    if "scores" not in rows[images[0].id]:
        return None
    for image in images:
        shape = np.asarray(rows[image.id].get("scores")).shape
        if shape != (texts,):
            raise BenchError(f"row {image.id}: scores of shape {shape}; the split has {texts} texts")
    return np.stack([rows[image.id]["scores"] for image in images])


def reranked(plain: RetrievalRanks, pairs: Pairs, image_ids: np.ndarray) -> RetrievalRanks:
    """Ranks after the second pass, and as many first ones as of the first pass; where the right one was not looked at again, its rank of
    the first.
    """
    owner, order = plain.text_image_index, gallery_order(image_ids)
    by_image, by_text = pairs.asked_by(OF_IMAGE), pairs.asked_by(OF_TEXT)
    own = owner[by_image.text] == by_image.image
    text_ranks = _ranks(by_image.image, by_image.score, by_image.text, own, plain.text_ranks)
    right = owner[by_text.text] == by_text.image
    image_ranks = _ranks(by_text.text, by_text.score, order[by_text.image], right, plain.image_ranks)
    first_texts = _first(by_image.image, by_image.score, by_image.text, by_image.text, plain.first_texts)
    first_images = _first(by_text.text, by_text.score, order[by_text.image], by_text.image, plain.first_images)
    return RetrievalRanks(text_ranks, image_ranks, owner, first_texts, first_images)


def _ranks(query: np.ndarray, score: np.ndarray, order: np.ndarray, right: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """Rank from 1 of each query's best right candidate among its candidates; ``plain`` of those that have none.

    order: decides between equal scores, the smaller first.
    """
    place = np.lexsort((order, -score, query))  # by query, the best first
    counts = np.bincount(query, minlength=len(plain))
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank = np.arange(len(place)) - first[query[place]] + 1
    ranks = plain.copy()
    best = np.full(len(plain), np.iinfo(np.int64).max)
    np.minimum.at(best, query[place][right[place]], rank[right[place]])
    found = best < np.iinfo(np.int64).max
    ranks[found] = best[found]
    return ranks


def _first(query: np.ndarray, score: np.ndarray, order: np.ndarray, item: np.ndarray, plain: np.ndarray) -> np.ndarray:
    """The first items of each query: its candidates by score, then those of the first pass that are none; int64, as ``plain`` (n, k).

    item: the candidates.  order: decides between equal scores, the smaller first.
    """
    n, k = plain.shape
    if not k:
        return plain
    place = np.lexsort((order, -score, query))
    size = max(int(plain.max()), int(item.max(initial=0))) + 1
    rest = np.flatnonzero(~np.isin(np.arange(n)[:, None] * size + plain, query.astype(np.int64) * size + item))
    queries = np.concatenate([query[place], rest // k])
    items = np.concatenate([item[place], plain.reshape(-1)[rest]])
    by_query = np.argsort(queries, kind="stable")  # candidates stay before the others
    starts = np.searchsorted(queries[by_query], np.arange(n))
    return items[by_query][starts[:, None] + np.arange(k)].astype(np.int64)
