"""From class scores and boxes to detections: score threshold, NMS or Soft-NMS within each class, best k."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from beit3_bench.backbones.beit3.detection.boxes import box_area, clip_boxes
from beit3_bench.errors import BenchError
from beit3_bench.plain import fill


@dataclass(frozen=True)
class SoftNMS:
    """Settings of Soft-NMS (Bodla et al. 2017).

    method: ``"linear"``: scores times ``1 - IoU`` where IoU >= ``iou_threshold``; ``"gaussian"``: times
        ``exp(-IoU**2 / sigma)`` everywhere.
    min_score: boxes whose score is or falls below it are dropped.
    """

    method: str = "linear"
    iou_threshold: float = 0.6
    sigma: float = 0.5
    min_score: float = 1e-3

    def __post_init__(self) -> None:
        if self.method not in ("linear", "gaussian"):
            raise BenchError(f"soft_nms: method {self.method!r} is unknown; choose 'linear' or 'gaussian'")
        if not (self.sigma > 0 and self.min_score >= 0):
            raise BenchError(f"soft_nms: sigma {self.sigma} must be above 0 and min_score {self.min_score} at least 0")

    @classmethod
    def of(cls, settings: SoftNMS | Mapping[str, Any] | None) -> SoftNMS | None:
        """Settings as they are, or from a mapping of fields, as configuration files give them.

        Raises:
            BenchError: a field that does not exist, or a value that does not fit.
        """
        return fill(cls, settings, "soft_nms") if isinstance(settings, Mapping) else settings


def soft_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, settings: SoftNMS, max_keep: int | None = None
) -> tuple[Tensor, Tensor]:
    """Soft-NMS within each class; all classes advance together, one box each per step.

    Within a class the kept scores fall from step to step, so ``max_keep`` steps suffice for the best ``max_keep``.

    Args:
        boxes (n, 4), scores (n,), classes int64 (n,): computed in the dtype of the scores.
        max_keep: only the best so many; None is all.

    Returns:
        kept rows int64 (k,) and their decayed scores (k,), by falling score.
    """
    rows = (scores >= settings.min_score).nonzero()[:, 0]
    if len(rows) == 0:
        return rows, scores[rows]
    # One table row per class that occurs, its boxes by falling score, padded with score -1.
    rows = rows[scores[rows].argsort(descending=True, stable=True)]
    _, group, counts = classes[rows].unique(return_inverse=True, return_counts=True)
    order = group.argsort(stable=True)
    rows, group = rows[order], group[order]
    column = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[group]
    shape = (len(counts), int(counts.max()))
    source = rows.new_zeros(shape)
    source[group, column] = rows
    left = scores.new_full(shape, -1.0)
    left[group, column] = scores[rows]
    table = boxes.to(scores.dtype)[source]
    area = box_area(table)
    kept_rows, kept_scores = [], []
    for _ in range(shape[1] if max_keep is None else min(max_keep, shape[1])):
        best, at = left.max(dim=1, keepdim=True)
        kept_rows.append(source.gather(1, at)[:, 0])
        kept_scores.append(best[:, 0])
        top = table.gather(1, at[..., None].expand(-1, -1, 4))
        extent = torch.minimum(table[..., 2:], top[..., 2:]) - torch.maximum(table[..., :2], top[..., :2])
        inter = extent.clamp_(min=0).prod(dim=-1)
        iou = torch.where(inter > 0, inter / (area + area.gather(1, at) - inter), inter.new_zeros(()))
        if settings.method == "linear":
            decay = torch.where(iou >= settings.iou_threshold, 1 - iou, iou.new_ones(()))
        else:
            decay = torch.exp(-iou.square() / settings.sigma)
        decayed = left * decay
        left = torch.where((left >= 0) & (decayed >= settings.min_score), decayed, left.new_full((), -1.0))
        left.scatter_(1, at, -1.0)
        if not (left >= 0).any():
            break
    all_rows, all_scores = torch.cat(kept_rows), torch.cat(kept_scores)
    alive = all_scores >= settings.min_score
    all_rows, all_scores = all_rows[alive], all_scores[alive]
    order = all_scores.argsort(descending=True, stable=True)[:max_keep]
    return all_rows[order], all_scores[order]


def select_detections(
    boxes: Tensor,
    probabilities: Tensor,
    size: Tensor,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int | None,
    soft: SoftNMS | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Detections of one image (detectron2 `fast_rcnn_inference_single_image`).

    Args:
        boxes: (n, 4) class-agnostic or (n, 4K).
        probabilities: (n, K + 1), background last.
        size: (2,) height and width to clip to.
        max_detections: None keeps all.

    Returns:
        boxes (k, 4), scores (k,), classes int64 (k,) and input rows int64 (k,), by falling score. Rows that are not
        finite are dropped; a score must be above (not at) the threshold.
    """
    finite = boxes.isfinite().all(dim=1) & probabilities.isfinite().all(dim=1)
    scores = probabilities[:, :-1]
    row, cls = ((scores > score_threshold) & finite[:, None]).nonzero(as_tuple=True)
    per_class = boxes.unflatten(1, (-1, 4))
    box = clip_boxes(per_class[row, cls if per_class.shape[1] > 1 else 0], size)
    score = scores[row, cls]
    if soft is None:
        keep = batched_nms(box.float(), score, cls, nms_threshold)[:max_detections]
        score = score[keep]
    else:
        keep, score = soft_nms(box, score, cls, soft, max_detections)
    return box[keep], score, cls[keep], row[keep]
