"""Top-1 and top-5 accuracy, and zero-shot class weights from prompt templates.

Ties: a class comes before the right one if its score is strictly greater, or equal with a lower class index, so that a
constant output scores at chance. The prompt ensemble is CLIP's (Prompt_Engineering_for_ImageNet notebook): normalise
every text feature, average over the templates, normalise again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.scores import ClusterTable

CUTS = (1, 5)


def class_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank from 1 of the right class: int64 (n,).

    Args:
        scores: float (n, classes), logits, cosines or probabilities; greater is better.
        labels: int (n,) in 0..classes-1.

    Raises:
        BenchError: shapes that do not fit, a score that is NaN, a label out of range.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != (len(scores),) or labels.dtype.kind not in "iu":
        raise BenchError(
            f"scores {scores.dtype} {scores.shape} and labels {labels.dtype} {labels.shape} do not fit; "
            "expected float (n, classes) and int (n,)"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= scores.shape[1]))
    if wrong.size:
        raise BenchError(f"labels[{wrong[0]}] is {labels[wrong[0]]}, but there are {scores.shape[1]} classes")
    bad = np.flatnonzero(np.isnan(scores).any(axis=1))
    if bad.size:
        raise BenchError(f"scores: {bad.size} rows hold NaN, the first is row {bad[0]}; the model diverged")
    right = np.take_along_axis(scores, labels[:, None], axis=1)
    before = (scores > right) | ((scores == right) & (np.arange(scores.shape[1]) < labels[:, None]))
    return 1 + np.count_nonzero(before, axis=1)


def topk_classes(scores: np.ndarray, k: int = 5) -> np.ndarray:
    """The k best classes of each row, best first, lower index first among equals: int64 (n, min(k, classes))."""
    scores = np.asarray(scores)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def topk_accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """``top1`` and ``top5`` as fractions."""
    return accuracy_of_ranks(class_ranks(scores, labels))


def accuracy_of_ranks(ranks: np.ndarray) -> dict[str, float]:
    """``top1`` and ``top5`` as fractions, from ranks counted from 1."""
    if len(ranks) == 0:
        raise BenchError("accuracy of no images; the split is empty")
    return {f"top{k}": float(np.count_nonzero(np.asarray(ranks) <= k) / len(ranks)) for k in CUTS}


def topk_table(ranks: np.ndarray, image_ids: Sequence[str]) -> ClusterTable:
    """Hits per image. Columns: ``images``, ``top1``, ``top5``."""
    ranks = np.asarray(ranks)
    columns = {"images": np.ones(len(ranks))} | {f"top{k}": (ranks <= k).astype(np.float64) for k in CUTS}
    return ClusterTable.collect(list(image_ids), columns)


def estimate_topk(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``top1`` and ``top5`` as fractions from the column sums of `topk_table`; leading axes are kept."""
    return {f"top{k}": np.asarray(sums[f"top{k}"] / sums["images"]) for k in CUTS}


def zero_shot_weights(text_features: np.ndarray) -> np.ndarray:
    """Class weights of unit length (classes, D) from text features (classes, templates, D) of any length.

    Raises:
        BenchError: another shape, a feature that is zero or not finite, templates that cancel out.
    """
    features = np.asarray(text_features)
    if features.ndim != 3 or features.dtype.kind != "f":
        raise BenchError(
            f"text features: expected float (classes, templates, D), found {features.dtype} {features.shape}"
        )
    return _unit(_unit(features, "text feature").mean(axis=1), "mean text feature")


def zero_shot_scores(image_features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cosines (n, classes) of image features (n, D) of any length with class weights (classes, D) of unit length."""
    return _unit(np.asarray(image_features), "image feature") @ np.asarray(weights).T


def _unit(rows: np.ndarray, what: str) -> np.ndarray:
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not (np.isfinite(length) & (length > 0)).all():
        place = tuple(int(i) for i in np.argwhere(~(np.isfinite(length) & (length > 0)))[0][:-1])
        raise BenchError(f"{what} {place} has no direction (zero or not finite); encode it again")
    return rows / length
