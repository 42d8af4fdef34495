"""Mean IoU of semantic segmentation, from per-image class histograms.

Matches IoUMetric of mmsegmentation (``intersect_and_union`` and ``total_area_to_metrics`` with its default
``nan_to_num=None``): areas are summed over all images first; a class that is absent from predictions and truth is left
out of the means, a class that is only predicted has IoU 0 and no Acc.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.scores import ClusterTable

IGNORE = 255
NO_CLASS = -1
"""A prediction that is wrong wherever the label is evaluated, and of no class."""
AREAS = ("intersect", "union", "prediction", "label")


def reduce_zero_label(label: np.ndarray) -> np.ndarray:
    """ADE20K's numbering to the model's: 0 (other) becomes 255 (ignored), 1..150 become 0..149; integer, any shape."""
    label = np.asarray(label)
    if label.dtype.kind not in "iu":
        raise BenchError(f"a label map holds {label.dtype}, expected integers")
    reduced = label.astype(np.int64) - 1
    return np.where((reduced < 0) | (reduced == IGNORE - 1), IGNORE, reduced).astype(np.result_type(label, np.uint8))


def class_histograms(prediction: np.ndarray, label: np.ndarray, classes: int, ignore: int = IGNORE) -> np.ndarray:
    """Pixel counts of one image: int64 (4, classes), rows intersect, union, prediction, label.

    Args:
        prediction: integer (H, W), classes 0..classes-1 or ``NO_CLASS`` wherever the label is not ``ignore``.
        label: integer (H, W), 0..classes-1 or ``ignore``; ignored pixels are left out altogether.

    Raises:
        BenchError: maps of different size, not two-dimensional or not integers; a value outside the range.
    """
    prediction, label = np.asarray(prediction), np.asarray(label)
    for name, array in (("prediction", prediction), ("label", label)):
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise BenchError(f"{name} map is {array.dtype} {array.shape}, expected integers (H, W)")
    if prediction.shape != label.shape:
        raise BenchError(f"prediction map is {prediction.shape}, label map {label.shape}; they have to be of one size")
    kept = label != ignore
    predicted, truth = prediction[kept].astype(np.int64), label[kept].astype(np.int64)
    for name, values, least in (("label", truth, 0), ("prediction", predicted, NO_CLASS)):
        if values.size and (values.min() < least or values.max() >= classes):
            wrong = values.min() if values.min() < least else values.max()
            raise BenchError(f"{name} map holds class {wrong}, outside 0..{classes - 1}")
    intersect = np.bincount(truth[predicted == truth], minlength=classes)
    area_predicted = np.bincount(predicted[predicted != NO_CLASS], minlength=classes)
    area_label = np.bincount(truth, minlength=classes)
    return np.stack([intersect, area_predicted + area_label - intersect, area_predicted, area_label]).astype(np.int64)


def segmentation_table(histograms: Sequence[np.ndarray] | np.ndarray, image_ids: Sequence[str]) -> ClusterTable:
    """Histograms per image (the cluster): columns intersect, union, prediction, label, each (n, classes)."""
    if not len(histograms) or len(histograms) != len(image_ids):
        raise BenchError(f"{len(histograms)} histograms for {len(image_ids)} images; give one for each")
    stacked = np.stack([np.asarray(h) for h in histograms], axis=1).astype(np.float64)
    return ClusterTable([str(i) for i in image_ids], dict(zip(AREAS, stacked, strict=True)))


def per_class(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``IoU`` and ``Acc`` of each class (..., classes), fractions; NaN where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"IoU": sums["intersect"] / sums["union"], "Acc": sums["intersect"] / sums["label"]}


def estimate_segmentation(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``mIoU``, ``mAcc``, ``aAcc`` as fractions from summed areas (..., classes); leading axes are kept."""
    classes = per_class(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        overall = sums["intersect"].sum(axis=-1) / sums["label"].sum(axis=-1)
    return {"mIoU": _nan_mean(classes["IoU"]), "mAcc": _nan_mean(classes["Acc"]), "aAcc": np.asarray(overall)}


def segmentation_metrics(histograms: Sequence[np.ndarray] | np.ndarray) -> dict[str, float]:
    """``mIoU``, ``mAcc`` and ``aAcc`` (fractions) of all images together.

    Raises:
        BenchError: no image, or not a single pixel to evaluate.
    """
    if not len(histograms):
        raise BenchError("mean IoU of no images; the split is empty")
    total = np.sum(np.stack([np.asarray(h, dtype=np.int64) for h in histograms]), axis=0)
    if not total[AREAS.index("label")].any():
        raise BenchError("no pixel to evaluate: every label is ignored; are these the right annotations?")
    return {k: float(v) for k, v in estimate_segmentation(dict(zip(AREAS, total, strict=True))).items()}


def _nan_mean(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=-1) / np.where(count == 0, np.nan, count))
