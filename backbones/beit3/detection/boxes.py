"""Boxes and anchors: overlap, box coding, clipping, matching and sampling, as detectron2 defines them.

Boxes are float32 (..., 4), x1 y1 x2 y2 in pixels, continuous coordinates (no +1 in widths).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BoxWeights = tuple[float, float, float, float]
EXP_CLAMP = math.log(1000.0 / 16)
"""Upper bound of predicted log sizes, so that exp() does not overflow."""


def box_area(boxes: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (len(a), len(b)); 0, never NaN, where boxes are empty."""
    extent = torch.min(a[:, None, 2:], b[:, 2:]) - torch.max(a[:, None, :2], b[:, :2])
    inter = extent.clamp_(min=0).prod(dim=2)
    union = box_area(a)[:, None] + box_area(b) - inter
    return torch.where(inter > 0, inter / union, inter.new_zeros(()))


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes (..., 4) to images of ``sizes`` (..., 2), height and width, broadcast over the leading dimensions."""
    limits = sizes.flip(-1).to(boxes)
    return torch.minimum(boxes.clamp(min=0), torch.cat([limits, limits], dim=-1))


def nonempty(boxes: Tensor) -> Tensor:
    """Bool (...,): width and height are above 0."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def encode_boxes(sources: Tensor, targets: Tensor, weights: BoxWeights) -> Tensor:
    """Regression targets (n, 4) that take ``sources`` (n, 4) to ``targets`` (n, 4): weighted dx, dy, dw, dh."""
    source_size, target_size = sources[:, 2:] - sources[:, :2], targets[:, 2:] - targets[:, :2]
    shift = ((targets[:, :2] + 0.5 * target_size) - (sources[:, :2] + 0.5 * source_size)) / source_size
    return torch.cat([shift, torch.log(target_size / source_size)], dim=1) * sources.new_tensor(weights)


def decode_boxes(deltas: Tensor, boxes: Tensor, weights: BoxWeights) -> Tensor:
    """Apply deltas (..., 4k), k boxes per row, to boxes (..., 4); the inverse of `encode_boxes`. Returns (..., 4k)."""
    deltas = deltas.float().unflatten(-1, (-1, 4)) / deltas.new_tensor(weights, dtype=torch.float32)
    boxes = boxes.float()
    size = (boxes[..., 2:] - boxes[..., :2]).unsqueeze(-2)
    center = boxes[..., :2].unsqueeze(-2) + 0.5 * size
    new_center = deltas[..., :2] * size + center
    half = 0.5 * (torch.exp(deltas[..., 2:].clamp(max=EXP_CLAMP)) * size)
    return torch.cat([new_center - half, new_center + half], dim=-1).flatten(-2)


def cell_anchors(size: float, ratios: tuple[float, ...]) -> Tensor:
    """Anchors (len(ratios), 4) around the origin, of area ``size**2`` and height/width ``ratio``; not rounded."""
    widths = [math.sqrt(size**2.0 / ratio) for ratio in ratios]
    return torch.tensor([[-w / 2, -r * w / 2, w / 2, r * w / 2] for w, r in zip(widths, ratios, strict=True)])


def grid_anchors(cell: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Anchors (height * width * len(cell), 4) of one level in (row, column, anchor) order; the first centre is 0, 0."""
    y = torch.arange(0, height * stride, stride, dtype=torch.float32, device=cell.device)
    x = torch.arange(0, width * stride, stride, dtype=torch.float32, device=cell.device)
    y, x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (shifts + cell).view(-1, 4)


def match(iou: Tensor, low: float, high: float, low_quality: bool = False) -> tuple[Tensor, Tensor]:
    """Assign every column of ``iou`` (ground truths, n) to its best row.

    With ``low_quality`` every column that is the best of some ground truth (ties included) is positive too; its
    assigned row does not change, unlike in torchvision.

    Returns:
        row int64 (n,), and label int8 (n,): 1 where the overlap is at least ``high``, 0 below ``low``, -1 between.
        Without ground truth: all 0.
    """
    if iou.shape[0] == 0 or iou.shape[1] == 0:
        return iou.new_zeros(iou.shape[1], dtype=torch.int64), iou.new_zeros(iou.shape[1], dtype=torch.int8)
    best, row = iou.max(dim=0)
    label = (best >= high).to(torch.int8) - ((best >= low) & (best < high)).to(torch.int8)
    if low_quality:
        label[(iou == iou.max(dim=1, keepdim=True).values).any(dim=0)] = 1
    return row, label


def sample(
    positive: Tensor, negative: Tensor, count: int, fraction: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw at most ``count`` rows, at most ``int(count * fraction)`` of them positive, the rest negative.

    Args:
        positive, negative: bool (n,) masks.
        generator: source of the random order; its device may differ from the masks'.

    Returns:
        int64 row numbers of the drawn positives and negatives.
    """
    drawn, room = [], int(count * fraction)
    for mask in (positive, negative):
        rows = mask.nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=generator, device=generator.device if generator else rows.device)
        drawn.append(rows[order[: min(room, len(rows))].to(rows.device)])
        room = count - len(drawn[0])
    return drawn[0], drawn[1]
