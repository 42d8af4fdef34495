"""`GeneralizedRCNN` with the native detector's interface, which refuses images that it would have to crop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor

from beit3_bench.errors import BenchError


@META_ARCH_REGISTRY.register()
class BEiT3RCNN(GeneralizedRCNN):
    """detectron2's two-stage detector; state dict and forward are `GeneralizedRCNN`'s.

    `detect` and `losses` take and give what those of `beit3_bench.backbones.beit3.detection.Detector` do.
    """

    @property
    def image_size(self) -> int:
        """Side of the square pad; 0 where images are padded to the largest of their batch."""
        return self.backbone.padding_constraints.get("square_size", 0)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise and pad.

        Raises:
            BenchError: an image that exceeds the square pad; detectron2 crops it without a word.
        """
        side = self.image_size
        for number, item in enumerate(batched_inputs):
            height, width = item["image"].shape[1:]
            if side and max(height, width) > side:
                raise BenchError(
                    f"image {number} of the batch is {height}x{width}, larger than the detector's {side}x{side}; "
                    f"resize its longer side to {side}, or raise square_pad"
                )
        return super().preprocess_image(batched_inputs)

    def detect(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Detections in the original images: ``boxes``, ``scores``, ``classes`` and ``masks``; see `Detector`."""
        if not inputs:
            return []
        results = []
        for output in self.inference([dict(item) for item in inputs]):
            instances = output["instances"]
            result = {
                "boxes": instances.pred_boxes.tensor,
                "scores": instances.scores,
                "classes": instances.pred_classes,
            }
            if instances.has("pred_masks"):
                result["masks"] = instances.pred_masks
            results.append(result)
        return results

    def losses(
        self, inputs: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Tensor]:
        """Losses by name from inputs with ``instances`` as `Detector.losses` takes them."""
        batch = []
        for number, item in enumerate(inputs):
            target = targets[number] if targets is not None else item["instances"]
            batch.append({**item, "instances": as_instances(target, tuple(item["image"].shape[1:]))})
        with EventStorage():
            return super().forward(batch)


def as_instances(target: Mapping[str, Any], size: tuple[int, int]) -> Instances:
    """Boxes (m, 4), classes (m,) and masks (polygons, or bool (m, h, w)) as detectron2's ground truth."""
    instances = Instances(size)
    boxes = torch.as_tensor(target["boxes"], dtype=torch.float32).reshape(-1, 4)
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.as_tensor(target["classes"], dtype=torch.int64)
    masks = target.get("masks")
    if masks is not None:
        instances.gt_masks = BitMasks(masks) if isinstance(masks, Tensor) else PolygonMasks([list(p) for p in masks])
    return instances
