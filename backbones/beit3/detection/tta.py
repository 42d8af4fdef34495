"""Test-time augmentation: boxes from several scales and mirror images, masks averaged over them.

As detectron2's `GeneralizedRCNNWithTTA`: detections of all views are joined in the original image and suppressed once
more; then every view predicts the masks of the joined boxes, and their probabilities are averaged. With Soft-NMS the
views give their candidates without suppression, so that scores decay once and not once per view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from beit3_bench.backbones.beit3.detection.boxes import clip_boxes
from beit3_bench.backbones.beit3.detection.detector import Detector
from beit3_bench.backbones.beit3.detection.masks import postprocess
from beit3_bench.backbones.beit3.detection.nms import soft_nms

CANDIDATES = 1000
"""Most boxes that a view contributes when Soft-NMS is to choose among them."""


def padded_side(longer: int) -> int:
    """The least square pad for images of that longer side: a multiple of 32, so that p5 sees all of it."""
    return -(-longer // 32) * 32


@torch.no_grad()
def detect_views(
    detector: Detector, versions: Sequence[Tensor], size: tuple[int, int], flip: bool = False
) -> dict[str, Tensor]:
    """Detections of one image seen several times.

    Args:
        versions: uint8 (3, h, w), the image at each scale; any sizes.
        size: height and width in which detections are wanted.
        flip: see every version mirrored, too.

    Returns:
        as `Detector.detect`: ``boxes``, ``scores``, ``classes``, and ``masks`` where the detector has a mask head.
    """
    heads, height, width = detector.roi_heads, *size
    views = []
    for image in versions:
        inputs = [{"image": image}, {"image": image.flip(-1)}] if flip else [{"image": image}]
        with _square(detector, padded_side(max(image.shape[1:]))), _candidates(detector):
            features, sizes = detector.encode(inputs)
            detections = heads.detect(features[:4], detector.propose(features, sizes), sizes)
        views.append((features[:4], sizes[0].tolist(), detections))

    boxes, scores, classes = [], [], []
    for _, (h, w), detections in views:
        for number, part in enumerate(detections):
            box = _mirrored(part["boxes"], w) if number else part["boxes"]
            boxes.append(box * box.new_tensor([width / w, height / h, width / w, height / h]))
            scores.append(part["scores"])
            classes.append(part["classes"])
    box, score, cls = torch.cat(boxes), torch.cat(scores), torch.cat(classes)
    box = clip_boxes(box, torch.tensor(size, device=box.device))
    if heads.soft_nms is None:
        keep = batched_nms(box.float(), score, cls, heads.nms_threshold)[: heads.max_detections]
        score = score[keep]
    else:
        keep, score = soft_nms(box, score, cls, heads.soft_nms, heads.max_detections)
    box, cls = box[keep], cls[keep]

    mean = None
    if heads.mask_head is not None:
        masks = []
        for features, (h, w), detections in views:
            scaled = box * box.new_tensor([w / width, h / height, w / width, h / height])
            both = [scaled, _mirrored(scaled, w)][: len(detections)]
            plain, *mirrored = heads.mask_probabilities(features, both, [cls] * len(detections))
            masks += [plain, *(mask.flip(-1) for mask in mirrored)]
        mean = torch.stack(masks).mean(dim=0)
    return postprocess(box, score, cls, mean, size, size)


def _mirrored(boxes: Tensor, width: float) -> Tensor:
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return torch.stack([width - x1, y0, width - x0, y1], dim=1)


@contextmanager
def _square(detector: Detector, side: int) -> Iterator[None]:
    before, detector.image_size = detector.image_size, side
    try:
        yield
    finally:
        detector.image_size = before


@contextmanager
def _candidates(detector: Detector) -> Iterator[None]:
    heads = detector.roi_heads
    if heads.soft_nms is None:
        yield
        return
    before = heads.soft_nms, heads.nms_threshold, heads.max_detections
    heads.soft_nms, heads.nms_threshold, heads.max_detections = None, 1.0, CANDIDATES
    try:
        yield
    finally:
        heads.soft_nms, heads.nms_threshold, heads.max_detections = before
