"""The region proposal network: anchors on five levels, two convolutions, top proposals, losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from beit3_bench.backbones.abilities import NOT_FINITE
from beit3_bench.backbones.beit3.detection.boxes import (
    cell_anchors,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    grid_anchors,
    match,
    nonempty,
    pairwise_iou,
    sample,
)
from beit3_bench.errors import BenchError

UNIT = (1.0, 1.0, 1.0, 1.0)


class RPNHead(nn.Module):
    """Two 3x3 convolutions with ReLU, shared by all levels, then objectness and box deltas per anchor."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for k in range(2):
            self.conv.add_module(f"conv{k}", nn.Conv2d(channels, channels, 3, padding=1))
        self.objectness_logits = nn.Conv2d(channels, anchors, 1)
        self.anchor_deltas = nn.Conv2d(channels, anchors * 4, 1)
        for layer in (*self.conv, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.conv:
            x = F.relu(conv(x))
        return self.objectness_logits(x), self.anchor_deltas(x)


class RPN(nn.Module):
    """Proposals from the pyramid.

    Attributes (detectron2's names and the ViTDet values; change them before training if need be):
        batch_size_per_image, positive_fraction: anchors sampled for the losses, and how many may be positive.
        pre_nms_topk: per level, (test, train).
        post_nms_topk: over all levels.
    """

    cell_anchors: Tensor

    def __init__(self, channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = strides
        self.batch_size_per_image = 256
        self.positive_fraction = 0.5
        self.pre_nms_topk = (1000, 2000)
        self.post_nms_topk = 1000
        self.nms_threshold = 0.7
        ratios = (0.5, 1.0, 2.0)
        cells = torch.stack([cell_anchors(8.0 * stride, ratios) for stride in strides])
        self.register_buffer("cell_anchors", cells, persistent=False)
        self.rpn_head = RPNHead(channels, len(ratios))

    def anchors(self, features: list[Tensor]) -> list[Tensor]:
        """Anchors (h * w * 3, 4) of every level."""
        levels = zip(features, self.cell_anchors, self.strides, strict=True)
        return [grid_anchors(cell, f.shape[-2], f.shape[-1], stride) for f, cell, stride in levels]

    def predict(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: logits (N, h * w * 3) and deltas (N, h * w * 3, 4), float32, in the order of the anchors."""
        raw = [self.rpn_head(feature) for feature in features]
        logits = [x.permute(0, 2, 3, 1).flatten(1).float() for x, _ in raw]
        deltas = [d.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3).float() for _, d in raw]
        return logits, deltas

    @torch.no_grad()
    def propose(
        self, anchors: list[Tensor], logits: list[Tensor], deltas: list[Tensor], sizes: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """The best proposals of every image, by falling logit: boxes (n, 4) clipped to ``sizes`` (N, 2), logits (n,).

        Top k per level by logit, decode, clip, drop empty boxes, NMS within each level, top k of all levels.

        Raises:
            BenchError: in training, on a prediction that is not finite; in evaluation such rows are dropped, and an image
                without any other refused.
        """
        topk = self.pre_nms_topk[int(self.training)]
        boxes, scores, level_ids = [], [], []
        for number, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
            score, index = logit.topk(min(topk, logit.shape[1]), dim=1)
            chosen = delta.gather(1, index[..., None].expand(-1, -1, 4))
            boxes.append(decode_boxes(chosen, anchor[index], UNIT))
            scores.append(score)
            level_ids.append(index.new_full((index.shape[1],), number))
        box, score, level = torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(level_ids)
        valid = box.isfinite().all(dim=2) & score.isfinite()
        if self.training and not valid.all():
            raise BenchError(
                "the RPN predicts values that are not finite: training has diverged; lower the learning rate"
            )
        if valid.shape[1] and not valid.any(dim=1).all():
            raise BenchError(NOT_FINITE.format("no proposal of the RPN is"))
        box = clip_boxes(box, sizes[:, None])
        valid &= nonempty(box)
        proposals = []
        for b, s, ok in zip(box, score, valid, strict=True):
            b, s = b[ok], s[ok]
            keep = batched_nms(b, s, level[ok], self.nms_threshold)[: self.post_nms_topk]
            proposals.append((b[keep], s[keep]))
        return proposals

    @torch.no_grad()
    def label_anchors(
        self, anchors: Tensor, gt_boxes: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sampled labels int8 (n,), 1 positive, 0 negative, -1 unused, and the matched ground truth rows int64 (n,)."""
        row, label = match(pairwise_iou(gt_boxes, anchors), 0.3, 0.7, low_quality=True)
        positive, negative = sample(
            label == 1, label == 0, self.batch_size_per_image, self.positive_fraction, generator
        )
        sampled = torch.full_like(label, -1)
        sampled[positive] = 1
        sampled[negative] = 0
        return sampled, row

    def losses(
        self,
        anchors: list[Tensor],
        logits: list[Tensor],
        deltas: list[Tensor],
        gt_boxes: list[Tensor],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Binary cross entropy and L1, both divided by ``batch_size_per_image * N`` whatever was sampled."""
        anchor, logit, delta = torch.cat(anchors), torch.cat(logits, dim=1), torch.cat(deltas, dim=1)
        labelled = [self.label_anchors(anchor, gt, generator) for gt in gt_boxes]
        label = torch.stack([sampled for sampled, _ in labelled])
        image, column = (label == 1).nonzero(as_tuple=True)
        rows = torch.stack([row for _, row in labelled])[image, column]
        first = torch.tensor([0, *(len(gt) for gt in gt_boxes)], device=rows.device).cumsum(0)
        wanted = encode_boxes(anchor[column], torch.cat(gt_boxes)[first[image] + rows], UNIT)
        used = label >= 0
        normalizer = self.batch_size_per_image * len(gt_boxes)
        return {
            "loss_rpn_cls": F.binary_cross_entropy_with_logits(logit[used], label[used].float(), reduction="sum")
            / normalizer,
            "loss_rpn_loc": F.l1_loss(delta[image, column], wanted, reduction="sum") / normalizer,
        }
