"""Instance masks: 28x28 training targets from polygons or bitmaps, and pasting predictions into the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from beit3_bench.backbones.beit3.detection.boxes import clip_boxes, nonempty

Polygons = Sequence[Sequence[Sequence[float]]]
"""Per object a list of polygons, each flat ``[x0, y0, x1, y1, ...]`` with at least three points, in pixels."""
PASTE_BYTES = 1 << 28
"""Working memory of one chunk of pasting on an accelerator."""


def polygon_bitmaps(objects: Polygons, height: int, width: int) -> np.ndarray:
    """Rasterise each object's polygons as pycocotools does: bool (n, height, width)."""
    from pycocotools import mask as coco

    if not any(len(polygons) for polygons in objects):
        return np.zeros((len(objects), height, width), dtype=bool)
    flat = [np.asarray(p, dtype=np.float64).tolist() for polygons in objects for p in polygons]
    rles = coco.frPyObjects(flat, height, width)
    merged, start = [], 0
    for polygons in objects:
        merged.append(coco.merge(rles[start : start + len(polygons)]))
        start += len(polygons)
    some = np.array([len(polygons) > 0 for polygons in objects])
    bitmaps = np.zeros((len(objects), height, width), dtype=bool)
    bitmaps[some] = coco.decode([m for m, ok in zip(merged, some, strict=True) if ok]).transpose(2, 0, 1)
    return bitmaps


def mask_targets(masks: Tensor | Polygons, rows: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Training targets bool (n, side, side): the masks ``rows`` (n,), cropped to ``boxes`` (n, 4) and resized.

    Bitmaps (m, h, w) go through an aligned RoIAlign and are cut at 0.5; polygons are shifted, scaled and rasterised
    within the box (detectron2 `BitMasks.crop_and_resize`, `rasterize_polygons_within_box`).
    """
    if isinstance(masks, Tensor):
        rois = torch.cat([rows[:, None].to(boxes), boxes], dim=1)
        if len(rois) == 0:
            return torch.zeros((0, side, side), dtype=torch.bool, device=boxes.device)
        bitmaps = masks[:, None].to(device=boxes.device, dtype=torch.float32)
        return roi_align(bitmaps, rois.float(), (side, side), 1.0, 0, aligned=True)[:, 0] >= 0.5
    corners = boxes.detach().float().cpu().numpy()
    ratios = np.float32(side) / np.maximum(corners[:, 2:] - corners[:, :2], np.float32(0.1))
    moved = [
        [((np.asarray(p, dtype=np.float64).reshape(-1, 2) - corner[:2]) * ratio).ravel() for p in masks[row]]
        for row, corner, ratio in zip(rows.tolist(), corners, ratios, strict=True)
    ]
    return torch.from_numpy(polygon_bitmaps(moved, side, side)).to(boxes.device)


def bitmap_boxes(bitmaps: Tensor) -> Tensor:
    """Tight boxes float32 (n, 4) of bitmaps (n, h, w), right and bottom exclusive; empty bitmaps get zeros."""
    n, height, width = bitmaps.shape
    bitmaps = bitmaps.bool()
    edges = []
    for seen, extent in ((bitmaps.any(dim=1), width), (bitmaps.any(dim=2), height)):
        at = torch.arange(extent, device=seen.device)
        edges.append((torch.where(seen, at, extent).amin(dim=1), torch.where(seen, at + 1, 0).amax(dim=1)))
    (x0, x1), (y0, y1) = edges
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return torch.where(nonempty(boxes)[:, None], boxes, 0.0).view(n, 4)


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Paste masks (n, s, s) into their boxes (n, 4) of an image of ``size``: bool (n, height, width), >= threshold.

    Bilinear at pixel centres, zero outside of the box (detectron2 `paste_masks_in_image`). On the CPU each mask touches
    the pixels of its box only; elsewhere whole images are sampled in chunks of bounded memory.
    """
    height, width = size
    pasted = torch.zeros((len(boxes), height, width), dtype=torch.bool, device=boxes.device)
    on_cpu = boxes.device.type == "cpu"
    chunk = 1 if on_cpu else max(1, PASTE_BYTES // (height * width * 16))
    for start in range(0, len(boxes), chunk):
        part = slice(start, start + chunk)
        x0, y0, x1, y1 = 0, 0, width, height
        if on_cpu:
            low, high = (boxes[part, :2].floor() - 1).clamp(min=0), boxes[part, 2:].ceil() + 1
            (x0, y0), (x1, y1) = low[0].int().tolist(), high[0].int().tolist()
            x1, y1 = min(x1, width), min(y1, height)
        pasted[part, y0:y1, x0:x1] = _sample(probabilities[part], boxes[part], (y0, y1), (x0, x1)) >= threshold
    return pasted


def _sample(masks: Tensor, boxes: Tensor, ys: tuple[int, int], xs: tuple[int, int]) -> Tensor:
    """Masks (n, s, s) at the centres of the pixels ``ys`` x ``xs``: float32 (n, rows, columns)."""
    left, top, right, bottom = boxes.float().split(1, dim=1)
    y = torch.arange(*ys, device=boxes.device, dtype=torch.float32) + 0.5
    x = torch.arange(*xs, device=boxes.device, dtype=torch.float32) + 0.5
    y = (y - top) / (bottom - top) * 2 - 1
    x = (x - left) / (right - left) * 2 - 1
    shape = (len(boxes), y.shape[1], x.shape[1])
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks[:, None].float(), grid, align_corners=False)[:, 0]


def postprocess(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    mask_probabilities: Tensor | None,
    network_size: tuple[int, int],
    output_size: tuple[int, int],
) -> dict[str, Tensor]:
    """Detections in the resized image -> in the original one (detectron2 `detector_postprocess`).

    Boxes are scaled, clipped, and dropped where empty; then masks (n, 28, 28) are pasted.

    Args:
        network_size: height and width of the resized image, without padding.
        output_size: height and width of the original image.

    Returns:
        ``boxes`` (k, 4), ``scores``, ``classes`` and, with masks, ``masks`` bool (k, height, width).
    """
    scale_y, scale_x = (out / net for out, net in zip(output_size, network_size, strict=True))
    boxes = boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
    boxes = clip_boxes(boxes, torch.tensor(output_size, device=boxes.device))
    keep = nonempty(boxes)
    result = {"boxes": boxes[keep], "scores": scores[keep], "classes": classes[keep]}
    if mask_probabilities is not None:
        result["masks"] = paste_masks(mask_probabilities[keep], result["boxes"], output_size)
    return result
