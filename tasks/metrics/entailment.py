"""Accuracy of visual entailment, over all samples and over those of one gold label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from beit3_bench.tasks.scores import ClusterTable


def entailment_table(
    predicted: Sequence[int] | np.ndarray, gold: Sequence[int] | np.ndarray, clusters: Sequence[str], labels: int
) -> ClusterTable:
    """Counts per cluster (the image). Column ``confusion``: (n, labels * labels), row-major, gold label first.

    Args:
        predicted, gold: indices of labels, int (n,).
        clusters: the image of each sample.
    """
    cells = np.asarray(gold, dtype=np.int64) * labels + np.asarray(predicted, dtype=np.int64)
    return ClusterTable.collect(clusters, {"confusion": np.eye(labels * labels)[cells]})


def confusion_of(sums: Mapping[str, np.ndarray]) -> np.ndarray:
    """Samples by gold label (rows) and predicted label: (..., labels, labels)."""
    cells = np.asarray(sums["confusion"])
    labels = round(cells.shape[-1] ** 0.5)
    return cells.reshape(*cells.shape[:-1], labels, labels)


def right_of_samples(columns: Mapping[str, np.ndarray], label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How many samples of each cluster are right, and how many there are: (n,) each. label: of that gold label alone."""
    confusion = confusion_of(columns)
    right, samples = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1)
    return (right.sum(axis=-1), samples.sum(axis=-1)) if label is None else (right[..., label], samples[..., label])


def entailment_accuracy(sums: Mapping[str, np.ndarray], labels: Sequence[str]) -> dict[str, np.ndarray]:
    """``accuracy`` and ``accuracy/LABEL`` (fractions; NaN for a label without a sample); leading axes are kept."""
    confusion = confusion_of(sums)
    right, samples = np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        by_label = right / samples
    overall = np.asarray(right.sum(axis=-1) / samples.sum(axis=-1))
    return {"accuracy": overall} | {f"accuracy/{label}": by_label[..., i] for i, label in enumerate(labels)}
