"""Label maps of ADE20K: grey PNG files, the model's numbering, areas and small maps per image as rows hold them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.backbones.label_images import read_map
from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.segmentation import AREAS, IGNORE, NO_CLASS, reduce_zero_label

CLASSES = 150


def read_label(path: str | Path) -> np.ndarray:
    """An annotation of ADE20K in the model's numbering: 0..149, and 255 where nothing is evaluated.

    Raises:
        BenchError: as `read_map`, and for values other than 0..150 and 255.
    """
    values = read_map(path, "annotation")
    wrong = (values > CLASSES) & (values != IGNORE) | (values < 0)
    if wrong.any():
        raise BenchError(
            f"{path}: annotation holds {int(values[wrong][0])}; ADE20K has 0 (other) and classes 1..{CLASSES}"
        )
    return reduce_zero_label(values)


def read_prediction(path: str | Path, label: np.ndarray, zero_based: bool) -> np.ndarray:
    """A prediction in the model's numbering wherever ``label`` is evaluated: 0..149, or `NO_CLASS` where a prediction that
    counts from 1 holds 0 (other), as in the official ``utils_eval.py`` of CSAILVision/sceneparsing.

    Raises:
        BenchError: as `read_map`; another size than the label's; a value that is no class on an evaluated pixel.
    """
    values = read_map(path, "prediction")
    if values.shape != label.shape:
        raise BenchError(
            f"{path}: prediction is {size_of(values)}, its annotation {size_of(label)}; resize it to the image's size"
        )
    first = 0 if zero_based else 1
    classes = values.astype(np.int64) - first
    wrong = (label != IGNORE) & ((values < 0) | (classes >= CLASSES))
    if wrong.any():
        value = int(values[wrong][0])
        hint = "is --zero-based right?" if zero_based else "0 (other) counts as wrong"
        raise BenchError(f"{path}: prediction holds {value}; classes are {first}..{CLASSES - 1 + first}; {hint}")
    return classes


def size_of(values: np.ndarray) -> str:
    return f"{values.shape[1]}x{values.shape[0]}"


@dataclass(frozen=True)
class Numbering:
    """How a prediction does when it is read as counting from 1 and as counting from 0.

    right: of the evaluated pixels, by the reading that was asked for.  otherwise: by the other one.
    zeros: evaluated pixels of `NO_CLASS`.  last: whether a pixel holds 150, which only a count from 1 has.
    """

    evaluated: int = 0
    right: int = 0
    otherwise: int = 0
    zeros: int = 0
    last: bool = False

    @classmethod
    def of(cls, classes: np.ndarray, label: np.ndarray, zero_based: bool) -> Numbering:
        """Of one prediction as `read_prediction` gives it."""
        kept = label != IGNORE
        predicted, truth = classes[kept], label[kept]
        other = predicted + (-1 if zero_based else 1)
        return cls(
            int(kept.sum()),
            int((predicted == truth).sum()),
            int((other == truth).sum()),
            int((predicted == NO_CLASS).sum()),
            not zero_based and bool((classes == CLASSES - 1).any()),
        )

    def __add__(self, other: Numbering) -> Numbering:
        return Numbering(
            self.evaluated + other.evaluated,
            self.right + other.right,
            self.otherwise + other.otherwise,
            self.zeros + other.zeros,
            self.last or other.last,
        )

    def chance(self, areas: np.ndarray, zero_based: bool) -> float:
        """How many pixels would be right by the other reading if its classes fell on the evaluated pixels at random.

        areas: int64 (4, classes), summed histograms of all predictions by the reading that was asked for.
        """
        predicted, label = (areas[AREAS.index(name)].astype(np.float64) for name in ("prediction", "label"))
        other = np.append(predicted[1:], 0.0) if zero_based else np.append(self.zeros, predicted[:-1])
        return float(other @ label) / max(self.evaluated, 1)

    def notes(self, folder: Path, first_zero: Path | None, zero_based: bool, chance: float) -> list[str]:
        """Lines on how the predictions were read; the other reading is spoken of where it is better, and better than chance.

        Args:
            first_zero: a file with zeros on evaluated pixels.  chance: see `chance`.

        Raises:
            BenchError: there are zeros, nothing tells that they are not the first class, and read so more pixels are right.
        """
        better = self.otherwise > max(self.right, chance) and not self.last
        share = f"{self.otherwise / max(self.evaluated, 1):.1%} of the evaluated pixels would be right instead of "
        share += f"{self.right / max(self.evaluated, 1):.1%}"
        if zero_based:
            return [f"{folder}: read as classes 1..{CLASSES}, {share}; is --zero-based right?"] if better else []
        if better and first_zero is not None:
            raise BenchError(
                f"{first_zero}: prediction holds 0; classes are 1..{CLASSES}; read as classes 0..{CLASSES - 1}, {share}; "
                "if they count from 0, give --zero-based"
            )
        notes = [f"{folder}: read as classes 0..{CLASSES - 1} (--zero-based), {share}"] if better else []
        if self.zeros:
            notes.append(
                f"{self.zeros:,} of {self.evaluated:,} evaluated pixels are predicted as 0 (other): wrong, and of no class, "
                "as in the official utils_eval.py"
            )
        return notes


# ---- rows ------------------------------------------------------------------------------------------------------------


def sparse_histogram(histogram: np.ndarray) -> dict[str, list[int]]:
    """An image's areas as lists over the classes that are there: classes, intersect, prediction, label.

    histogram: int64 (4, classes), rows as `AREAS`; the union follows from the others.
    """
    rows = dict(zip(AREAS, np.asarray(histogram), strict=True))
    present = np.flatnonzero(rows["union"])
    return {"classes": present.tolist(), **{name: rows[name][present].tolist() for name in AREAS if name != "union"}}


def dense_histogram(row: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `sparse_histogram`: int64 (4, 150)."""
    dense = np.zeros((len(AREAS), CLASSES), dtype=np.int64)
    at = {name: dense[i] for i, name in enumerate(AREAS)}
    for name in ("intersect", "prediction", "label"):
        at[name][row["classes"]] = row[name]
    at["union"][:] = at["prediction"] + at["label"] - at["intersect"]
    return dense


PREVIEW = 192
"""Pixels of the longer side of a `small_map`."""


def small_map(classes: np.ndarray) -> dict[str, list[int]]:
    """Every k-th pixel of a label map in runs, to be looked at: ``size`` [height, width], and class and length of each run in turn.

    classes: integer (H, W).
    """
    step = -(-max(classes.shape) // PREVIEW)
    small = classes[step // 2 :: step, step // 2 :: step]
    flat = small.ravel().astype(np.int64)
    starts = np.flatnonzero(np.diff(flat, prepend=flat[0] - 1))
    lengths = np.diff(starts, append=len(flat))
    return {"size": list(small.shape), "runs": np.stack([flat[starts], lengths], axis=1).ravel().tolist()}


def whole_map(small: Mapping[str, list[int]]) -> np.ndarray:
    """The inverse of `small_map`: int64 (h, w) of the reduced size.

    Raises:
        BenchError: runs that are not of that size.
    """
    pairs = np.asarray(small["runs"], dtype=np.int64).reshape(-1, 2)
    height, width = small["size"]
    if not 0 < height * width <= PREVIEW**2 or (pairs[:, 1] < 0).any() or pairs[:, 1].sum() != height * width:
        raise BenchError(
            f"a label map of {height}x{width} pixels has runs of {pairs[:, 1].sum()}; run again with --overwrite"
        )
    return np.repeat(pairs[:, 0], pairs[:, 1]).reshape(height, width)


def encode_png(classes: np.ndarray, zero_based: bool) -> np.ndarray:
    """Classes 0..149 (H, W) as the bytes of a grey PNG (1..150, or 0..149): uint8 (n,)."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((classes + (0 if zero_based else 1)).astype(np.uint8)).save(buffer, "PNG")
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)
