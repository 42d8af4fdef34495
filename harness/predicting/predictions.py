"""What a model says of a picture: to be read, to be kept as JSON, to be looked at."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from beit3_bench.harness.pictures.boxes import draw_boxes
from beit3_bench.harness.pictures.captions import Line, asked, captioned, said, with_bars
from beit3_bench.harness.pictures.label_maps import areas_of, draw_label_map, share
from beit3_bench.harness.pictures.sheets import fitted, grid

TOP = 5
"""Classes and texts that are shown of a ranking."""
MIN_SCORE = 0.5
"""Detections below are not drawn or printed, as in detectron2's demo; the record holds all."""
PRINTED = 10
"""Detections and classes of a label map that are printed."""
ANSWER_SIDE = 640
"""Pixels of the longer side of each picture of a pair."""


@dataclass(frozen=True)
class Asked:
    """The pictures that a prediction is of.

    names: as their owner calls them; two of a pair.  images: RGB, upright; none where the prediction is only read.
    """

    names: tuple[str, ...]
    images: tuple[Image.Image, ...]


@dataclass(frozen=True)
class Prediction(ABC):
    """Of one picture, or a pair. asked: which."""

    asked: Asked

    @abstractmethod
    def said(self) -> dict[str, Any]:
        """What the model says, as plain values."""

    @abstractmethod
    def lines(self) -> list[str]:
        """The same for reading, without the picture's name."""

    @abstractmethod
    def picture(self) -> Image.Image:
        """The picture with what is said of it drawn in or below; RGB."""

    def record(self) -> dict[str, Any]:
        """As `beit3-bench predict --json` prints it: ``image`` (``images`` of a pair), and `said`."""
        names = self.asked.names
        return {**({"image": names[0]} if len(names) == 1 else {"images": list(names)}), **self.said()}

    def __str__(self) -> str:
        return "\n".join([" and ".join(self.asked.names), *(f"  {line}" for line in self.lines())])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {' and '.join(self.asked.names)}: {'; '.join(self.lines())}>"

    def _repr_png_(self) -> bytes:
        """For notebooks."""
        buffer = io.BytesIO()
        self.picture().save(buffer, "PNG")
        return buffer.getvalue()

    def shown(self) -> Image.Image:
        """The picture, or the pair side by side."""
        if len(self.asked.images) == 1:
            return self.asked.images[0]
        return grid([fitted(image, (ANSWER_SIDE, ANSWER_SIDE)) for image in self.asked.images], columns=2, gap=8)


@dataclass(frozen=True, repr=False)
class Answered(Prediction):
    """An answer to a question."""

    question: str
    answer: str

    def said(self) -> dict[str, Any]:
        return {"question": self.question, "answer": self.answer}

    def lines(self) -> list[str]:
        return [f"{self.question}  {self.answer}"]

    def picture(self) -> Image.Image:
        return captioned(self.shown(), [asked(self.question), said(self.answer)])


@dataclass(frozen=True, repr=False)
class Described(Prediction):
    """A caption."""

    caption: str

    def said(self) -> dict[str, Any]:
        return {"caption": self.caption}

    def lines(self) -> list[str]:
        return [self.caption]

    def picture(self) -> Image.Image:
        return captioned(self.shown(), [said(self.caption)])


@dataclass(frozen=True, repr=False)
class Judged(Prediction):
    """A label of a text about a picture or a pair, and its probability."""

    text: str
    label: str
    probability: float

    def said(self) -> dict[str, Any]:
        return {"text": self.text, "label": self.label, "probability": round(self.probability, 6)}

    def lines(self) -> list[str]:
        return [f"{self.text}  {self.label} ({self.probability:.2f})"]

    def picture(self) -> Image.Image:
        return captioned(self.shown(), [asked(self.text), said(f"{self.label}  {self.probability:.2f}")])


MATCH = "match"
"""Scores of a model that compares pictures with texts and has no embeddings, on its own scale."""


@dataclass(frozen=True, repr=False)
class Ranked(Prediction):
    """Classes or texts, the best first.

    kind: what they are called (``"classes"``, ``"texts"``).  measure: what their scores are (``"probability"``, ``"cosine"``, `MATCH`).
    names, scores: of all, the best first.  labels: of the same, where the data calls them otherwise.
    most: how many are shown and kept.
    """

    kind: str
    measure: str
    names: tuple[str, ...]
    scores: tuple[float, ...]
    labels: tuple[str, ...] | None = None
    most: int = TOP

    def said(self) -> dict[str, Any]:
        entries = []
        for n, (name, score) in enumerate(list(zip(self.names, self.scores, strict=True))[: self.most]):
            label = {"label": self.labels[n]} if self.labels is not None and self.labels[n] != name else {}
            entries.append({"name": name, **label, self.measure: round(score, 6)})
        return {self.kind: entries}

    def lines(self) -> list[str]:
        best = list(zip(self.names, self.scores, strict=True))[: self.most]
        return [f"{self._number(score):>6}  {name}" for name, score in best]

    def _number(self, score: float) -> str:
        if self.measure == "cosine":
            return f"{score:.3f}"
        return "<0.01" if 0 < score < 0.005 else f"{score:.2f}"

    def picture(self) -> Image.Image:
        names, scores = self.names[: self.most], self.scores[: self.most]
        shares = scores
        if self.measure == MATCH:  # of any size: a bar is the share of its exponential
            powers = np.exp(np.array(self.scores) - max(self.scores))
            shares = tuple((powers / powers.sum())[: self.most].tolist())
        heading = f"{self.measure}; the best {len(names)} of {len(self.names):,} {self.kind}"
        if len(names) == len(self.names):
            heading = f"{self.measure} of {len(names)} {self.kind}" if len(names) > 1 else self.measure
        return with_bars(self.shown(), names, shares, [asked(heading)], [self._number(s) for s in scores])


@dataclass(frozen=True, repr=False)
class Found(Prediction):
    """A place among the pictures that were searched with a text. rank: from 1, of ``total``."""

    text: str
    cosine: float
    rank: int
    total: int

    def said(self) -> dict[str, Any]:
        return {"text": self.text, "rank": self.rank, "cosine": round(self.cosine, 6)}

    def lines(self) -> list[str]:
        return [f"{self.rank} of {self.total:,}, cosine {self.cosine:.3f}"]

    def picture(self) -> Image.Image:
        lines = [asked(self.text), Line(f"{self.rank} of {self.total:,}, cosine {self.cosine:.3f}")]
        return captioned(self.shown(), lines)


@dataclass(frozen=True, repr=False)
class Detected(Prediction):
    """Objects, the most certain first.

    labels: n names.  scores: (n,).  boxes: (n, 4), x1 y1 x2 y2 in pixels of the upright picture.
    masks: bool (n, H, W), or None.  min_score: of what is shown.
    """

    labels: tuple[str, ...]
    scores: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray | None = None
    min_score: float = MIN_SCORE

    def said(self) -> dict[str, Any]:
        width, height = self.asked.images[0].size
        return {"width": width, "height": height, "detections": [self._entry(n) for n in range(len(self.labels))]}

    def _entry(self, n: int) -> dict[str, Any]:
        entry = {
            "label": self.labels[n],
            "score": round(float(self.scores[n]), 6),
            "box": [round(float(v), 2) for v in self.boxes[n]],
        }
        if self.masks is not None:
            from pycocotools import mask

            coded = mask.encode(np.asfortranarray(self.masks[n], dtype=np.uint8))
            entry["mask"] = {"size": [int(v) for v in coded["size"]], "counts": coded["counts"].decode("ascii")}
        return entry

    def certain(self) -> list[int]:
        """Places of the objects that are shown."""
        return [n for n in range(len(self.labels)) if self.scores[n] >= self.min_score]

    def lines(self) -> list[str]:
        chosen = self.certain()
        if not chosen:
            return [self._nothing()]
        lines = []
        for n in chosen[:PRINTED]:
            x1, y1, x2, y2 = (round(float(v)) for v in self.boxes[n])
            lines.append(f"{self.scores[n]:.2f}  {self.labels[n]}  at {x1},{y1} to {x2},{y2}")
        more = len(chosen) - PRINTED
        return [*lines, f"and {more} more" if more > 0 else ""] if more > 0 else lines

    def _nothing(self) -> str:
        least = f"nothing of score {self.min_score:g} or above"
        return f"{least}; the best is {self.labels[0]} {self.scores[0]:.2f}" if self.labels else least

    def picture(self) -> Image.Image:
        chosen = self.certain()
        drawn = draw_boxes(
            self.shown(),
            self.boxes[chosen],
            [f"{self.labels[n]} {self.scores[n]:.2f}" for n in chosen],
            masks=None if self.masks is None else [self.masks[n] for n in chosen],
        )
        return drawn if chosen else captioned(self.shown(), [asked(self._nothing())])


@dataclass(frozen=True, repr=False)
class Segmented(Prediction):
    """A label map. label_map: uint8 (H, W), positions in ``names``."""

    label_map: np.ndarray
    names: Sequence[str]

    def said(self) -> dict[str, Any]:
        height, width = self.label_map.shape
        areas = areas_of(self.label_map)
        classes = [{"name": self.names[n], "share": round(a / self.label_map.size, 6)} for n, a in areas.items()]
        return {"width": width, "height": height, "classes": classes}

    def lines(self) -> list[str]:
        areas = list(areas_of(self.label_map).items())
        lines = [f"{share(area, self.label_map.size):>5}  {self.names[n]}" for n, area in areas[:PRINTED]]
        return [*lines, f"and {len(areas) - PRINTED} more classes"] if len(areas) > PRINTED else lines

    def picture(self) -> Image.Image:
        return draw_label_map(self.shown(), self.label_map, self.names)
