"""What benchmarks of compositionality share: an image, its caption, and captions that say nearly the same and are wrong.

A question is a few images and a few texts; the first text is of the first image, the second of the second, further ones of none. Each
distinct image and each distinct text is looked at once, however many questions they stand in.

Two ways of scoring a pair: the cosine of image and text alone (dual encoders; ``plain/`` where there is another, too), and the match
score of a model that looks at both together. A family that has both gives both in one run, and the match score counts: it is what the
family's own protocol ranks by, for ALBEF the logit of its matching head, for BLIP that and the cosine (official `Retrieval.py`,
`train_retrieval.py`; the code of ARO scores BLIP the same way, `model_zoo/blip_models.py`). A family that compares images with texts and
embeds neither is asked for match scores alone.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Ability, Item, Matches
from beit3_bench.backbones.family import SecondPass
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, Split, Task
from beit3_bench.tasks.embedding import EmbeddingTask, embeddings_of
from beit3_bench.tasks.layouts.places import Picture, names_of
from beit3_bench.tasks.metrics.choices import best_texts, choice_table, tied
from beit3_bench.tasks.reranking import OF_IMAGE, PLAIN, ROW_SHAPE, Pairs, Reranking, row_id, with_plain
from beit3_bench.tasks.scores import ClusterTable, Scores

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

SCORES = ("cosine", "match")
_AT_ONCE = 4096
"""Questions whose embeddings are compared in one product."""

NOT_DRAWN = "is over questions that share their images and texts, which cannot be drawn one by one"
"""`Metric.no_ratio` of these tasks."""


@dataclass(frozen=True)
class Case:
    """A question.

    images, texts: places in `Questions.images` and `Questions.texts`.
    groups: what numbers are given by.  cluster: the unit of resampling.
    """

    id: str
    images: tuple[int, ...]
    texts: tuple[int, ...]
    groups: tuple[str, ...]
    cluster: str


@dataclass(frozen=True)
class Questions:
    """`Split.truth`: the cases of a split in the order of its files, and their images and texts, each once."""

    cases: tuple[Case, ...]
    images: tuple[Example, ...]
    texts: tuple[Example, ...]

    def of(self, cases: Sequence[Case]) -> Questions:
        """Some of the cases, with their images and texts."""
        images = sorted({place for case in cases for place in case.images})
        texts = sorted({place for case in cases for place in case.texts})
        of_image, of_text = ({place: k for k, place in enumerate(places)} for places in (images, texts))
        renumbered = tuple(
            dataclasses.replace(
                case,
                images=tuple(of_image[place] for place in case.images),
                texts=tuple(of_text[place] for place in case.texts),
            )
            for case in cases
        )
        return Questions(
            renumbered, tuple(self.images[place] for place in images), tuple(self.texts[place] for place in texts)
        )

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, images) and texts (n, texts) of the cases, int64."""
        return np.array([case.images for case in self.cases]), np.array([case.texts for case in self.cases])


@dataclass
class Gathering:
    """Questions as a reader finds them; images and texts that come again are the same ones."""

    cases: list[Case] = field(default_factory=list)
    images: dict[str, Example] = field(default_factory=dict)
    texts: dict[str, Example] = field(default_factory=dict)
    _image_places: dict[str, int] = field(default_factory=dict)
    _text_places: dict[str, int] = field(default_factory=dict)

    def add(
        self,
        name: str,
        pictures: Sequence[tuple[str, Picture]],
        texts: Sequence[str],
        groups: Sequence[str],
        cluster: str = "",
    ) -> None:
        """A question.

        Args:
            name: its id.  pictures: each with the id of the image.  groups, cluster: see `Case`; "" = the first image.
        """
        cluster = cluster or pictures[0][0]
        images = []
        for image, picture in pictures:
            if image not in self.images:
                self._image_places[image] = len(self.images)
                identity = f"image:{image}"
                self.images[image] = Example(
                    identity, (picture.path,), None, cluster, image, "image", {"of": []}, (), names_of(picture)
                )
            self.images[image].meta["of"].append([name, *groups])
            images.append(self._image_places[image])
        for number, text in enumerate(texts):
            if text not in self.texts:
                self._text_places[text] = len(self.texts)
                self.texts[text] = Example(f"text:{name}/{number}", (), text, cluster, None, "text", {"of": []})
            self.texts[text].meta["of"].append([name, number])
        places = tuple(self._text_places[text] for text in texts)
        self.cases.append(Case(name, tuple(images), places, tuple(groups), cluster))

    def questions(self) -> Questions:
        return Questions(tuple(self.cases), tuple(self.images.values()), tuple(self.texts.values()))


class Compositionality(EmbeddingTask):
    """A benchmark of questions; subclasses say where they are and what is measured.

    `metrics` are those that count, and behind them `reranking.plain_metrics` of them.
    """

    splits: ClassVar[tuple[str, ...]] = ("test",)
    default_split = "test"
    instead: ClassVar[tuple[type[Ability], ...]] = (Matches,)
    asks_as = "coco-retrieval"
    score_files = ()

    @dataclass
    class Options:
        """score: what pairs are scored by, cosine or match; default: match where the model's file has a matching head."""

        score: str | None = None

        def __post_init__(self) -> None:
            if self.score not in (None, *SCORES):
                raise ValueError(f"score is {self.score!r}; give one of {', '.join(SCORES)}")

    def ask(self, ability: type[Ability]) -> None:
        super().ask(ability)
        self.feature = None  # type: ignore[misc, assignment]
        self.row_shape = ROW_SHAPE  # type: ignore[misc]
        if self.options.score == "cosine":
            raise BenchError("score=cosine: this model compares an image with a text and embeds neither; leave it out")

    @abstractmethod
    def gather(self, split: str) -> Questions:
        """The questions of a split.

        Raises:
            BenchError: a file or key that is missing, a question without an answer.
        """

    def read(self, split: str) -> Split:
        """Image examples (``image:ID``) and text examples (``text:...``), or, where pairs are all that a model is asked about, one
        example per image with every text that it is compared with (``match:ID``); the truth are `Questions`.
        """
        return self._split(split, self.gather(split))

    def _split(self, name: str, questions: Questions) -> Split:
        if self.ability is Matches:
            return Split(name, tuple(pair_examples(questions)), truth=questions)
        return Split(name, (*questions.images, *questions.texts), truth=questions)

    def limited(self, split: Split, n: int) -> Split:
        """n questions, spread evenly over the files' order (which is by kind), with their images and texts."""
        cases = split.truth.cases
        if len(cases) <= n:
            return split
        chosen = split.truth.of([cases[i * len(cases) // n] for i in range(n)])
        return dataclasses.replace(self._split(split.name, chosen), notes=split.notes)

    # ---- asking ---------------------------------------------------------------------------------------------------

    def item(self, example: Example) -> Item:
        texts = example.meta["texts"] if example.kind == "match" else ()
        return Item(example.id, example.images, example.text, tuple(texts))

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """Embeddings, or match scores of the pairs of each image as `reranking.Reranking` has them."""
        if self.ability is not Matches:
            return super().rows(examples, values, split, ahead)
        return [
            {
                "id": example.id,
                "texts": np.array(example.meta["places"], np.int32),
                "asked": np.full(len(example.meta["places"]), OF_IMAGE, np.uint8),
                "scores": np.asarray(value, np.float32),
            }
            for example, value in zip(examples, values, strict=True)
        ]

    def second_rows(self, split: Split, alone: bool) -> Mapping[str, Mapping[str, Any]]:
        return {row_id(image): ROW_SHAPE for image in split.truth.images}

    def second_wanted(self) -> str:
        return "score=match" if self.options.score == "match" and self.ability is not Matches else ""

    def check_second(self, split: Split, second: SecondPass) -> None:
        """Every pair of a question is compared, so that no number of candidates can be too large."""

    def second_pass(self, rows: Mapping[str, Row], split: Split, second: SecondPass) -> tuple[Task, Split]:
        questions: Questions = split.truth
        embeddings = None
        if second.adds_first:
            embeddings = (embeddings_of(questions.images, rows), embeddings_of(questions.texts, rows))
        pairs = split.of(
            [
                dataclasses.replace(
                    example,
                    meta={
                        "place": place,
                        "texts": np.array(example.meta["places"], np.int32),
                        "asked": np.full(len(example.meta["places"]), OF_IMAGE, np.uint8),
                    },
                )
                for place, example in enumerate(pair_examples(questions))
            ]
        )
        return Reranking(self, pairs, questions.texts, embeddings), pairs

    # ---- scores ---------------------------------------------------------------------------------------------------

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Shares of questions that are answered rightly, fractions: by match score where rows hold any, and then those by cosine, too."""
        questions: Questions = split.truth
        scored = scores_of_cases(questions, rows)
        counted, plain = scored.get("match", scored.get("cosine")), scored.get("cosine")
        assert counted is not None
        table = self.table(counted, questions)
        notes = self.notes(questions)
        if ties := tied(counted, questions.places[1]):
            notes.append(f"{ties:,} of {len(counted):,} questions are wrong because two texts score the same")
        metrics = self.metrics
        if "match" not in scored or plain is None:
            metrics = tuple(metric for metric in metrics if not metric.name.startswith(PLAIN))
        else:
            with_plain(table, self.table(plain, questions).columns)
        counts = {"questions": len(questions.cases), "images": len(questions.images), "texts": len(questions.texts)}
        ids = [case.id for case in questions.cases]
        samples = {
            name: dict(zip(ids, hits.astype(float).tolist(), strict=True))
            for name, hits in self.right(counted, questions).items()
        }
        return Scores.of(metrics, table, counts, notes, samples, self.chance(split))

    def right(self, scores: np.ndarray, questions: Questions) -> dict[str, np.ndarray]:
        """Measure -> whether a question is right by it, bool (n,), from scores (n, images, texts)."""
        return {"accuracy": best_texts(scores, questions.places[1])}

    def table(self, scores: np.ndarray, questions: Questions) -> ClusterTable:
        """Statistics per cluster from scores (n, images, texts)."""
        groups = [case.groups for case in questions.cases]
        names = list(dict.fromkeys(name for of_case in groups for name in of_case))
        clusters = [case.cluster for case in questions.cases]
        return choice_table(self.right(scores, questions), groups, clusters, names)

    def notes(self, questions: Questions) -> list[str]:
        """What a reader of a number must know of the questions."""
        return []

    @abstractmethod
    def chance(self, split: Split) -> float:
        """What guessing scores on the headline, a fraction."""

    # ---- people ---------------------------------------------------------------------------------------------------

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.compositionality import QuestionDisplay

        return QuestionDisplay(self, split, rows, scores)


def pair_examples(questions: Questions) -> list[Example]:
    """One example per image, with the places and the words of the texts of all its questions."""
    compared: list[dict[int, None]] = [{} for _ in questions.images]
    for case in questions.cases:
        for image in case.images:
            compared[image] |= dict.fromkeys(case.texts)
    return [
        dataclasses.replace(
            image,
            id=row_id(image),
            kind="match",
            meta={**image.meta, "places": list(places), "texts": [questions.texts[place].text for place in places]},
        )
        for image, places in zip(questions.images, compared, strict=True)
    ]


def scores_of_cases(questions: Questions, rows: Mapping[str, Row]) -> dict[str, np.ndarray]:
    """``"cosine"``, ``"match"`` or both, as there are rows -> scores of the pairs of each question, float32 (n, images, texts)."""
    images, texts = questions.places
    scored = {}
    if questions.images[0].id in rows:
        of_images, of_texts = embeddings_of(questions.images, rows), embeddings_of(questions.texts, rows)
        blocks = [slice(start, start + _AT_ONCE) for start in range(0, len(images), _AT_ONCE)]
        scored["cosine"] = np.concatenate(
            [np.einsum("nid,ntd->nit", of_images[images[block]], of_texts[texts[block]]) for block in blocks]
        )
    if row_id(questions.images[0]) in rows:
        pairs = Pairs.of(questions.images, rows, len(questions.texts))
        keys = pairs.image.astype(np.int64) * len(questions.texts) + pairs.text
        order = np.argsort(keys, kind="stable")
        wanted = images[:, :, None].astype(np.int64) * len(questions.texts) + texts[:, None, :]
        found = np.searchsorted(keys[order], wanted)
        found = np.minimum(found, len(keys) - 1)
        if not (keys[order][found] == wanted).all():
            raise BenchError("rows of match scores lack pairs of the questions; run again with --overwrite")
        scored["match"] = pairs.score[order][found]
    return scored
