"""Soft-NMS in detectron2's box heads, which have none: linear and gaussian, standard and cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, CascadeROIHeads, FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor

from beit3_bench.backbones.beit3.detection.nms import SoftNMS, select_detections


def soft_instances(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    predictor: FastRCNNOutputLayers,
    soft_nms: SoftNMS,
) -> tuple[list[Instances], list[Tensor]]:
    """As detectron2's `fast_rcnn_inference`, with Soft-NMS: scores are the decayed ones, rows fall by score."""
    kept_instances, rows = [], []
    limit = predictor.test_topk_per_image
    for box, score, size in zip(boxes, scores, sizes, strict=True):
        kept = select_detections(
            box,
            score,
            torch.tensor(size, device=box.device),
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            None if limit < 0 else limit,
            soft_nms,
        )
        instances = Instances(size)
        instances.pred_boxes, instances.scores, instances.pred_classes = Boxes(kept[0]), kept[1], kept[2]
        kept_instances.append(instances)
        rows.append(kept[3])
    return kept_instances, rows


class SoftNMSOutputLayers(FastRCNNOutputLayers):
    """`FastRCNNOutputLayers`; soft_nms: `SoftNMS`, a mapping of its fields, or None for detectron2's NMS."""

    def __init__(self, *arguments: Any, soft_nms: SoftNMS | Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.soft_nms = SoftNMS.of(soft_nms)

    def inference(self, predictions: Any, proposals: list[Instances]) -> tuple[list[Instances], list[Tensor]]:
        if self.soft_nms is None:
            return super().inference(predictions, proposals)
        boxes, scores = self.predict_boxes(predictions, proposals), self.predict_probs(predictions, proposals)
        return soft_instances(boxes, scores, [p.image_size for p in proposals], self, self.soft_nms)


@ROI_HEADS_REGISTRY.register()
class SoftNMSCascadeROIHeads(CascadeROIHeads):
    """`CascadeROIHeads`; soft_nms as in `SoftNMSOutputLayers` (detectron2's cascade never asks its predictors)."""

    def __init__(self, *arguments: Any, soft_nms: SoftNMS | Mapping[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.soft_nms = SoftNMS.of(soft_nms)

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances], targets: Any = None) -> Any:
        if self.training or self.soft_nms is None:
            return super()._forward_box(features, proposals, targets)
        maps, sizes = [features[name] for name in self.box_in_features], [p.image_size for p in proposals]
        boxes: Any = None
        total: list[Tensor] = []
        for stage, predictor in enumerate(self.box_predictor):
            if stage:
                proposals = self._create_proposals_from_boxes(boxes, sizes)
            predictions = self._run_stage(maps, proposals, stage)
            boxes = predictor.predict_boxes(predictions, proposals)
            scores = predictor.predict_probs(predictions, proposals)
            total = [a + b for a, b in zip(total, scores, strict=True)] if total else list(scores)
        mean = [score * (1.0 / self.num_cascade_stages) for score in total]
        return soft_instances(boxes, mean, sizes, self.box_predictor[-1], self.soft_nms)[0]
