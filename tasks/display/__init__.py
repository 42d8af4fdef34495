"""What of a run's samples people look at, in plain values: pictures with what is drawn on them, lines, ranked lists.

`Task.display` gives a `Display`; the pages of the harness show it and know no task. Everything here is what the data and the rows say,
as it stands there; escaping and sizes are the page's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from beit3_bench.tasks.display.breakdowns import Breakdown

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example, Row, Split, Task

State = Literal["truth", "missed", "matched", "false", "ignored"]
"""Of a box or mask: an object (found, or missed at every score), a detection that found one, one that found none, or a crowd."""

LONGEST = 2_000
"""Characters of a row's value that the default display shows."""


@dataclass(frozen=True)
class Mark:
    """A box on a picture, with a mask where there is one.

    box: x, y, width, height in pixels of the upright image.
    score: of a detection, 0 to 1; of an object, the score of the detection that found it; None where none did.
    mask: COCO RLE (``size`` [height, width], ``counts``) of the upright image.
    """

    box: tuple[float, float, float, float]
    label: str
    state: State
    score: float | None = None
    mask: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class LabelMap:
    """A class for every pixel.

    name: of the layer, ``"prediction"`` or ``"truth"``.
    classes: integer (H, W) in the proportions of the image, of any size; negative where there is nothing to show.
    names: class -> its name, of those that are there, the largest first.
    """

    name: str
    classes: np.ndarray
    names: Mapping[int, str]


@dataclass(frozen=True)
class Picture:
    """An image file. size: width and height in which ``marks`` are given; None without marks."""

    path: str
    alt: str
    caption: str = ""
    size: tuple[int, int] | None = None
    marks: tuple[Mark, ...] = ()
    maps: tuple[LabelMap, ...] = ()


@dataclass(frozen=True)
class Line:
    """A named value. good: whether it is right; None where that is no question."""

    name: str
    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Entry:
    """A place in a ranked list: a text, a picture, or both. share: 0 to 1, drawn as a bar."""

    text: str = ""
    picture: Picture | None = None
    value: str = ""
    share: float | None = None
    good: bool | None = None


@dataclass(frozen=True)
class Listing:
    """A ranked list; ``first`` numbers its first entry, None for a list without numbers."""

    title: str
    entries: tuple[Entry, ...]
    first: int | None = 1


@dataclass(frozen=True)
class Shown:
    """One sample. classes: what it can be filtered by."""

    id: str
    heading: str = ""
    pictures: tuple[Picture, ...] = ()
    lines: tuple[Line, ...] = ()
    listings: tuple[Listing, ...] = ()
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Samples:
    """Of every sample that can be shown, by id in the order of the split; what is not known of one is absent.

    values: its score, in the unit of the metric ``metric``; the mean over samples is that metric, where it is a mean.
    confidence: how sure the model was of its answer, 0 to 1.
    finer: what tells samples of one score apart, greater is better, from `Display.finer`.
    """

    ids: tuple[str, ...]
    metric: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    confidence: Mapping[str, float] = field(default_factory=dict)


class Display:
    """What a run can show; this one serves tasks that declare nothing: id, pictures, what the data and the row say.

    Class attributes:
        groups: prefixes of metric names of a result -> title; the metrics of one prefix are a breakdown of their own.

    Attributes:
        rows: by id; of the examples of ``split`` that the run has, and of its second pass.
        scores: metric -> {id: value}, the values per sample that the run has kept (`Scores.samples`); empty for a submission.
    """

    groups: ClassVar[Mapping[str, str]] = {}

    def __init__(self, task: Task, split: Split, rows: Mapping[str, Row], scores: Mapping[str, Mapping[str, float]]):
        self.task, self.split, self.rows, self.scores = task, split, rows, scores
        self.examples: dict[str, Example] = {e.id: e for e in split.examples if e.id in rows}

    def samples(self) -> Samples:
        """All samples, with the values of the headline where it has some, else of the first metric that has."""
        headline = next(metric.name for metric in self.task.metrics if metric.headline)
        metric = headline if headline in self.scores else next(iter(self.scores), "")
        return Samples(tuple(self.examples), metric, dict(self.scores.get(metric, {})))

    def sections(self) -> Mapping[str, Sequence[str]]:
        """Title -> ids of the samples that are chosen from apart; one section has no title."""
        return {"": self.samples().ids}

    def finer(self, ids: Iterable[str]) -> Mapping[str, float]:
        """What tells some samples of one score apart, greater is better; empty = nothing does."""
        return {}

    def said(self, ids: Sequence[str]) -> Mapping[str, str]:
        """What was predicted for some samples, in a line; nothing of those whose row says it itself, as an answer does."""
        return {}

    def truth(self, example: Example) -> str:
        """What would have been right for a sample, in a line; "" where that is no matter of words, or not public."""
        target = example.target
        if isinstance(target, bool | str):
            return str(target)
        if isinstance(target, int):
            labels = self.split.labels
            return labels[target] if labels is not None and target < len(labels) else ""
        if isinstance(target, list) and target and all(isinstance(text, str) for text in target):
            return listed(target)
        return ""

    def show(self, ids: Sequence[str]) -> list[Shown]:
        """Some samples, in this order."""
        return [self.shown(self.examples[name], self.rows[name]) for name in ids]

    def shown(self, example: Example, row: Row) -> Shown:
        """One sample."""
        truth = self.truth(example)
        lines = [Line("truth", truth[:LONGEST])] if truth else []
        lines += [Line(key, value_text(value)[:LONGEST]) for key, value in row.items() if key != "id"]
        return Shown(
            example.id,
            example.text or "",
            tuple(Picture(path, f"Picture {n} of sample {example.id}") for n, path in enumerate(example.images, 1)),
            tuple(lines),
            classes=(truth,) if isinstance(example.target, (str, bool, int)) and truth else (),
        )

    def breakdowns(self) -> list[Breakdown]:
        """Numbers by kind of sample, beside those that the result has already (``groups``)."""
        return []


def listed(texts: Iterable[str]) -> str:
    """Texts in one line, the commonest first, with how often each stands there: ``white (8), grey``."""
    counts = Counter(texts).most_common()
    separator = "; " if any("," in text or " " in text for text, _ in counts) else ", "
    return separator.join(f"{text} ({count})" if count > 1 else text for text, count in counts)


def value_text(value: Any) -> str:
    """A value of a row in a line: arrays by type and shape."""
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {'x'.join(map(str, value.shape))}"
    return value if isinstance(value, str) else str(value)
