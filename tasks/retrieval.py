"""Image-text retrieval on Flickr30K (1K test) and COCO (5K test), Karpathy splits.

Protocol (BEiT-3 paper, section 3.1.4; official `RetrievalHandler`): cosine similarity over the whole split. Each image is encoded
once and each caption once; the official loader encodes the image once per caption. Families whose protocol looks at the best of
each query again do so (`reranking`), and both numbers are given; a model that compares images with texts alone compares all pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Ability, Matches
from beit3_bench.backbones.family import SecondPass
from beit3_bench.errors import INSTALL_LINES, BenchError
from beit3_bench.tasks import false_negatives
from beit3_bench.tasks.contract import Example, Item, Row, ScoreInputs, Split, Task
from beit3_bench.tasks.embedding import EmbeddingTask, embeddings_of
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.false_negatives import Annotations, Judged, misfit
from beit3_bench.tasks.layouts.captions import CaptionData, read_captions
from beit3_bench.tasks.layouts.places import names_of
from beit3_bench.tasks.metrics.recall import (
    CUTS,
    RetrievalRanks,
    estimate_recalls,
    ranks_of_scores,
    recall_table,
    retrieval_ranks,
    unit_rows,
)
from beit3_bench.tasks.reranking import (
    ALL_PAIRS_SHAPE,
    ROW_SHAPE,
    TEXT,
    AllPairs,
    Pairs,
    Reranking,
    all_scores,
    check_candidates,
    kinds,
    pairs_to_compare,
    plain_metrics,
    reranked,
    row_id,
    sample_id,
    with_plain,
)
from beit3_bench.tasks.scores import ClusterTable, Metric, Scores

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

ARRAYS = ("image_embeddings", "image_ids", "text_embeddings", "text_image_ids")
TEXT_IDS = "text_ids"
"""An array that a file may have besides: the ids of its texts."""
METRICS = (
    Metric(
        "mean_recall",
        headline=True,
        formula=estimate_recalls,
        no_ratio="looks for each sample among all others, and among fewer it is easier to find",
    ),
    *(Metric(f"{direction}@{k}", formula=estimate_recalls) for direction in ("TR", "IR") for k in CUTS),
)
PAIRS_UNASKED = 10_000_000
"""So many pairs are compared unasked: all of Flickr30K's test split (5 million), not those of COCO's (125 million)."""
COUNTS = {"images", "texts", *false_negatives.NAMES.values()}
"""Columns that are the same in both passes."""
PLAIN_METRICS, PLAIN_JUDGED = plain_metrics(METRICS), plain_metrics(false_negatives.METRICS)


class Retrieval(EmbeddingTask):
    """What Flickr30K and COCO retrieval share; subclasses say where the files are."""

    splits: ClassVar[tuple[str, ...]] = ("test", "val")
    default_split = "test"
    metrics = (*METRICS, *PLAIN_METRICS)
    instead: ClassVar[tuple[type[Ability], ...]] = (Matches,)
    split_file = ""
    training_splits: tuple[str, ...] = ("train",)
    score_files = ()

    @dataclass
    class Options:
        """rerank: how many of a query's best are looked at again, or off; default: as the model's family does, 256 on COCO and 128 on
        Flickr30K for ALBEF and BLIP.
        all_pairs: yes, to compare more than 10 million pairs with a model that has no embeddings (ViLT); fewer are compared unasked.
        """

        rerank: str | None = None
        all_pairs: bool = False

        def __post_init__(self) -> None:
            if self.rerank not in (None, "off") and not (
                self.rerank.isascii() and self.rerank.isdigit() and int(self.rerank)
            ):
                raise ValueError(f"rerank is {self.rerank!r}; give a whole number, 1 or more, or off")

    def read(self, split: str) -> Split:
        """Image examples (``image:ID``) and text examples (``text:SENTENCE``); a text's target is its image's id."""
        data = self._captions()
        examples = []
        for image in data.select(split):
            if not image.sentences:
                raise BenchError(
                    f"{data.source}: image {image.id} has no sentences; retrieval needs at least one per image"
                )
            file = data.picture(image.path)
            identity, names = f"image:{image.id}", names_of(file)
            examples.append(
                Example(identity, (file.path,), cluster=image.id, target=image.id, kind="image", names=names)
            )
            examples += [
                Example(f"{TEXT}{sentence}", text=text, cluster=image.id, target=image.id, kind="text")
                for sentence, text in image.sentences
            ]
        return Split(split, tuple(examples))

    def _captions(self) -> CaptionData:
        karpathy = read_facts(self.name).data.karpathy
        return read_captions(self.data_root, self.split_file, karpathy.image_folder or None if karpathy else None)

    def limited(self, split: Split, n: int) -> Split:
        """The first n images with all their texts."""
        kept = {e.target for e in [e for e in split.examples if e.kind == "image"][:n]}
        return split.of([e for e in split.examples if e.target in kept])

    def second_rows(self, split: Split, alone: bool) -> Mapping[str, Mapping[str, Any]]:
        images, _ = kinds(split)
        if alone:
            return {image.id: ALL_PAIRS_SHAPE for image in images}
        return {row_id(image): ROW_SHAPE for image in images}

    def second_wanted(self) -> str:
        return "" if self.options.rerank in (None, "off") else f"rerank={self.options.rerank}"

    def check_second(self, split: Split, second: SecondPass) -> None:
        check_candidates(split, second)

    def second_leave(self, split: Split, second: SecondPass) -> str | None:
        images, texts = kinds(split)
        many = second.alone and len(images) * len(texts) > PAIRS_UNASKED
        return "all_pairs=yes" if many and not self.options.all_pairs else None

    def second_pass(self, rows: Mapping[str, Row], split: Split, second: SecondPass) -> tuple[Task, Split]:
        if second.candidates is None:
            compared = AllPairs(self, split)
            return compared, compared.pairs
        images, texts = kinds(split)
        embeddings = (embeddings_of(images, rows), embeddings_of(texts, rows)) if second.adds_first else None
        pairs = split.of(pairs_to_compare(rows, split, second.candidates))
        return Reranking(self, pairs, texts, embeddings), pairs

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Recalls in percent; the gallery is the whole split. Where there was a second pass, its recalls, and those of the first, if any.
        Where the split comes with `false_negatives.Annotations`, what they say, too.
        """
        images, texts = kinds(split)
        image_ids, text_image_ids = (np.array([e.target for e in several]) for several in (images, texts))
        names = [e.id for e in images], [e.id for e in texts]
        judged, notes = _judged(split.truth, [e.target for e in images], [sample_id(e) for e in texts])
        if (compared := all_scores(images, rows, len(texts))) is not None:
            ranks = ranks_of_scores(compared, image_ids, text_image_ids, first=0 if judged is None else judged.first)
            scores = score_ranks(ranks, image_ids, names, {"pairs": compared.size}, judged=judged)
        else:
            pairs = Pairs.of(images, rows, len(texts)) if row_id(images[0]) in rows else None
            embeddings = embeddings_of(images, rows), embeddings_of(texts, rows)
            scores = score_embeddings(embeddings[0], image_ids, embeddings[1], text_image_ids, names, pairs, judged)
        scores.notes += notes
        return scores

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.retrieval import RetrievalDisplay

        return RetrievalDisplay(self, split, rows, scores)

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        """Score an ``.npz`` with image_embeddings (n, D), image_ids (n,), text_embeddings (m, D), text_image_ids (m,); and of COCO, where
        the file has text_ids (m,), too, and `false_negatives` has annotations.
        """
        path = inputs.predictions
        try:
            with np.load(path, allow_pickle=False) as file:
                missing = [name for name in ARRAYS if name not in file]
                if missing:
                    raise BenchError(f"{path}: array {missing[0]!r} is missing; the file needs {', '.join(ARRAYS)}")
                arrays = {name: file[name] for name in ARRAYS}
                text_ids = file.get(TEXT_IDS)
        except FileNotFoundError as error:
            raise BenchError(f"{path}: predictions not found; give an .npz file") from error
        except MemoryError as error:
            raise BenchError(f"{path}: its arrays do not fit into memory; write float32 arrays") from error
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            pickled = "pickle" in str(error)  # numpy says how to load it unsafely; nothing here does
            reason = "what would have to be unpickled is not read" if pickled else " ".join(str(error).split())[:150]
            reason = "it is a single array" if isinstance(error, TypeError) and "context manager" in reason else reason
            raise BenchError(
                f"{path}: not an .npz file of plain arrays ({reason}); write it with "
                f"numpy.savez(FILE, {', '.join(f'{name}=...' for name in ARRAYS)})"
            ) from error
        except Exception as error:
            if type(error).__name__ != "BadZipFile":
                raise
            raise BenchError(f"{path}: a damaged .npz file ({error}); write it again with numpy.savez") from error
        for name in ("image_ids", "text_image_ids"):
            arrays[name] = _as_ids(arrays[name])
        if text_ids is not None and text_ids.shape != arrays["text_image_ids"].shape:
            raise BenchError(
                f"{path}: {TEXT_IDS} has the shape {text_ids.shape}, text_image_ids {arrays['text_image_ids'].shape}"
            )
        try:
            judged, notes = cls.judged(arrays["image_ids"], None if text_ids is None else _as_ids(text_ids))
            scores = score_embeddings(**arrays, judged=judged)
        except BenchError as error:
            raise BenchError(f"{path}: {error}") from error
        scores.notes += notes
        return scores

    @classmethod
    def judged(cls, image_ids: np.ndarray, text_ids: np.ndarray | None) -> tuple[Judged | None, list[str]]:
        """What people judged of the samples of a file, and what there is to say of it; here nothing."""
        return None, []

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def training_split(self) -> Split:
        """One pair per caption, as the official index files."""
        data = self._captions()
        pairs = []
        for image in data.select(*self.training_splits):
            file = data.picture(image.path)
            pairs += [
                Example(f"pair:{sentence}", (file.path,), text, image.id, image.id, names=names_of(file))
                for sentence, text in image.sentences
            ]
        return Split("train", tuple(pairs))

    def training_item(self, example: Example) -> Item:
        """A pair is its own class: other captions of its image count as negatives, as in the official loss."""
        return self.item(example)


def _as_ids(ids: np.ndarray) -> np.ndarray:
    """Ids that went through a table of floats are whole numbers again."""
    return ids.astype(np.int64) if ids.dtype.kind == "f" and _whole(ids) else ids


def _whole(ids: np.ndarray) -> bool:
    """Whether floats are whole numbers that their type holds exactly; beyond, neighbouring ids would have become one."""
    exact = 2.0 ** (np.finfo(ids.dtype).nmant + 1)
    return bool((np.abs(ids) <= exact).all() and (ids == np.trunc(ids)).all())


def score_embeddings(
    image_embeddings: np.ndarray,
    image_ids: np.ndarray,
    text_embeddings: np.ndarray,
    text_image_ids: np.ndarray,
    sample_ids: tuple[Sequence[str], Sequence[str]] = ((), ()),
    pairs: Pairs | None = None,
    judged: Judged | None = None,
) -> Scores:
    """Recalls of given embeddings by cosine; arrays as in `metrics.recall.retrieval_ranks`, of any length.

    Args:
        sample_ids: names of the image queries and the text queries, for values per sample.
        pairs: scored in a second pass, whose recalls are then given, and those by cosine as ``plain/``.
        judged: further right answers, whose metrics are then given, too.
    """
    image_embeddings, image_line = unit_rows(image_embeddings, "image_embeddings")
    text_embeddings, text_line = unit_rows(text_embeddings, "text_embeddings")
    first = 0 if judged is None else judged.first
    ranks = retrieval_ranks(image_embeddings, image_ids, text_embeddings, text_image_ids, first=first)
    plain: RetrievalRanks | None = None
    counts: dict[str, int] = {}
    if pairs is not None:
        ranks, plain, counts = reranked(ranks, pairs, image_ids), ranks, {"pairs": len(pairs.score)}
    notes = [line for line in (image_line, text_line) if line is not None]
    return score_ranks(ranks, image_ids, sample_ids, counts, notes, plain, judged)


def score_ranks(
    ranks: RetrievalRanks,
    image_ids: np.ndarray,
    sample_ids: tuple[Sequence[str], Sequence[str]],
    counts: Mapping[str, int],
    notes: Sequence[str] = (),
    plain: RetrievalRanks | None = None,
    judged: Judged | None = None,
) -> Scores:
    """Recalls of ranks.

    Args:
        image_ids, sample_ids, judged: as of `score_embeddings`.  counts: beside those of images and texts.
        plain: ranks of a first pass, whose recalls are given as ``plain/``.
    """
    table, metrics = _table(ranks, image_ids, judged), (*METRICS, *false_negatives.METRICS)
    if plain is not None:
        metrics = (*metrics, *PLAIN_METRICS, *PLAIN_JUDGED)
        with_plain(table, _table(plain, image_ids, judged).columns, shared=COUNTS)
    queries = {"TR": (sample_ids[0], ranks.text_ranks), "IR": (sample_ids[1], ranks.image_ranks)}
    return Scores.of(
        metrics,
        table,
        {"images": len(ranks.text_ranks), "texts": len(ranks.image_ranks), **counts},
        notes=list(notes),
        samples={
            f"{direction}@{k}": dict(zip(ids, np.where(ranked <= k, 100.0, 0.0).tolist(), strict=True))
            for direction, (ids, ranked) in queries.items()
            for k in CUTS
            if ids
        },
        chance=random_mean_recall(np.bincount(ranks.text_image_index)),
    )


def _judged(
    annotations: Annotations | None, images: Sequence[str], texts: Sequence[str]
) -> tuple[Judged | None, list[str]]:
    """Annotations by places, or a note that they are not of these samples. images, texts: ids."""
    if annotations is None:
        return None, []
    if wrong := misfit(annotations, images, texts):
        return None, [f"no ECCV Caption and CxC: {wrong}; they are measured on the whole split alone"]
    return Judged.of(annotations, images, texts), []


def _table(ranks: RetrievalRanks, image_ids: np.ndarray, judged: Judged | None) -> ClusterTable:
    table = recall_table(ranks, image_ids)
    if judged is not None:
        table.columns |= judged.columns(ranks)
    return table


def random_mean_recall(captions: np.ndarray) -> float:
    """Expected mean recall (percent) of random rankings; captions: how many each image has."""
    total, n = int(captions.sum()), len(captions)
    image_recall = [min(k / n, 1.0) for k in CUTS]
    text_recall = []
    for k in CUTS:
        # 1 - P(none of the image's c texts is among the k drawn of all texts)
        missed = [
            float(np.prod([(total - c - i) / (total - i) if total > i else 0.0 for i in range(k)]))
            for c in captions.tolist()
        ]
        text_recall.append(1.0 - float(np.mean(np.clip(missed, 0.0, 1.0))))
    return 100 * float(np.mean(image_recall + text_recall))


class Flickr30K(Retrieval):
    """Flickr30K, 1,000 test images with 5 captions each."""

    name = "flickr30k"
    split_file = "dataset_flickr30k.json"
    layout = """\
DATA_ROOT/
  dataset_flickr30k.json        Karpathy's split file
  flickr30k-images/*.jpg        31,783 images (the split file uses 31,014 of them)"""


class CocoRetrieval(Retrieval):
    """COCO, 5,000 test images with 25,010 captions."""

    name = "coco-retrieval"
    split_file = "dataset_coco.json"
    training_splits = ("train", "restval")
    metrics = (
        *Retrieval.metrics,
        *false_negatives.METRICS,
        *PLAIN_JUDGED,
    )
    scoring_options = ("eccv",)
    layout = """\
DATA_ROOT/
  dataset_coco.json             Karpathy's split file
  train2014/*.jpg               COCO images; the split file says which folder an image is in
  val2014/*.jpg"""

    @dataclass
    class Options(Retrieval.Options):
        """eccv: folder of the annotations of ECCV Caption and CxC, or off; default: those of the package eccv-caption, where it is
        installed and the split is the released test.
        """

        eccv: str | None = None

    def read(self, split: str) -> Split:
        """As `Retrieval.read`, with the annotations of false negatives as the split's truth, where there are any.

        Raises:
            BenchError: annotations that were named and are not of this split.
        """
        whole, given = super().read(split), self.options.eccv
        if given is None:
            folder = false_negatives.find_annotations() if self._is_released_test(whole) else None
        else:
            folder = None if given == "off" else Path(given)
        if folder is None:
            return whole
        annotations = false_negatives.read_annotations(folder)
        images, texts = kinds(whole)
        wrong = misfit(annotations, [e.target for e in images], [sample_id(e) for e in texts])
        if wrong and given is not None:
            raise BenchError(
                f"{folder}: the annotations are not of split {split!r} in {self.data_root}: {wrong}; give those of this split, or "
                "-o eccv=off"
            )
        return dataclasses.replace(whole, truth=annotations)

    def options_in_force(self) -> dict[str, Any]:
        """With the contents of annotations, wherever they lie."""
        given = super().options_in_force()
        if given["eccv"] in (None, "off"):
            return given
        return {**given, "eccv": false_negatives.contents_of(Path(given["eccv"]))}

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        scores = super().score(rows, split)
        if split.truth is None and self.options.eccv is None and self._is_released_test(split):
            scores.notes.append(
                f"no ECCV Caption and CxC (false negatives): {INSTALL_LINES[false_negatives.PACKAGE]}, then score the run again"
            )
        return scores

    @classmethod
    def judged(cls, image_ids: np.ndarray, text_ids: np.ndarray | None) -> tuple[Judged | None, list[str]]:
        """By the installed package's annotations, where the file names its texts."""
        folder = None if text_ids is None else false_negatives.find_annotations()
        if text_ids is None or folder is None:
            return None, []
        return _judged(
            false_negatives.read_annotations(folder), *([str(i) for i in ids.tolist()] for ids in (image_ids, text_ids))
        )

    def _is_released_test(self, split: Split) -> bool:
        """As far as the numbers of its images and texts tell."""
        released = read_facts(self.name).data.splits[self.default_split]
        return split.name == self.default_split and tuple(map(len, kinds(split))) == (released.images, released.texts)
