"""Soft-NMS (Bodla et al. 2017, Algorithm 1): a slow, plain reference in float64.

Repeat: take the box with the highest remaining score; multiply the score of every other remaining box by a factor that
falls with its overlap; drop those below a minimal score. Widths are ``x2 - x1`` (the paper's code adds one pixel; see
``plus_one``). Equal scores: the lower index is taken first.
"""

from __future__ import annotations

import numpy as np

from beit3_bench.errors import BenchError

METHODS = ("linear", "gaussian")


def soft_nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray | None = None,
    method: str = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
    plus_one: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Kept boxes in order of falling decayed score.

    Args:
        boxes: float (n, 4), xyxy in pixels.
        scores: float (n,).
        labels: int (n,) to treat each class by itself and merge by score; None treats all boxes together.
        method: ``"linear"`` multiplies by 1 - IoU where IoU >= iou_threshold; ``"gaussian"`` by exp(-IoU^2 / sigma)
            everywhere, without threshold.
        min_score: after each round, boxes whose score is below it are dropped (so the very first may be below it).
        plus_one: widths and heights count ``x2 - x1 + 1`` pixels, as in the code of the paper.

    Returns:
        (keep, scores): int64 (k,) indices and float64 (k,) decayed scores.

    Raises:
        BenchError: shapes that do not fit, values that are not finite, an unknown method, sigma not above 0.
    """
    boxes, scores = np.asarray(boxes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if boxes.shape != (len(scores), 4) or scores.ndim != 1 or (labels is not None and len(labels) != len(scores)):
        raise BenchError(
            f"boxes {boxes.shape} and scores {scores.shape} do not fit; expected (n, 4), (n,) and n labels"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise BenchError("boxes or scores are not finite; the detector diverged")
    if method not in METHODS or sigma <= 0:
        raise BenchError(f"soft-NMS method {method!r} with sigma {sigma}: take linear or gaussian, and sigma above 0")

    def decay(overlap: np.ndarray) -> np.ndarray:
        if method == "gaussian":
            return np.exp(-(overlap**2) / sigma)
        return np.where(overlap >= iou_threshold, 1 - overlap, 1.0)

    groups = [np.arange(len(scores))]
    if labels is not None:
        labels = np.asarray(labels)
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    keep, kept_scores = [], []
    for remaining in groups:
        current = scores[remaining]
        while remaining.size:
            best = int(np.argmax(current))
            keep.append(int(remaining[best]))
            kept_scores.append(float(current[best]))
            others = np.arange(remaining.size) != best
            overlap = box_iou(boxes[remaining[best]], boxes[remaining[others]], plus_one)
            remaining, current = remaining[others], current[others] * decay(overlap)
            remaining, current = remaining[current >= min_score], current[current >= min_score]
    order = np.argsort(-np.array(kept_scores), kind="stable")
    return np.array(keep, dtype=np.int64)[order], np.array(kept_scores)[order]


def box_iou(box: np.ndarray, others: np.ndarray, plus_one: bool = False) -> np.ndarray:
    """IoU (n,) of one xyxy box (4,) with n others (n, 4); 0 where both are empty."""
    extra = 1.0 if plus_one else 0.0
    corner = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2]) + extra
    intersection = corner.clip(min=0).prod(axis=1)
    union = (box[2:] - box[:2] + extra).prod() + (others[:, 2:] - others[:, :2] + extra).prod(axis=1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
