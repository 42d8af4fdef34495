"""Box and mask heads on pooled regions: Mask R-CNN, and Cascade Mask R-CNN with three box stages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from beit3_bench.backbones.beit3.detection.boxes import (
    BoxWeights,
    box_area,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    match,
    nonempty,
    pairwise_iou,
    sample,
)
from beit3_bench.backbones.beit3.detection.masks import Polygons, mask_targets
from beit3_bench.backbones.beit3.detection.nms import SoftNMS, select_detections
from beit3_bench.backbones.beit3.detection.pyramid import ConvNorm
from beit3_bench.errors import BenchError

BOX_SIDE, MASK_SIDE = 7, 14


@dataclass
class Targets:
    """Ground truth of one image, in pixels of the resized image.

    boxes: float32 (m, 4).  classes: int64 (m,), 0-based.  masks: polygons per object, or bool (m, h, w), or None.
    """

    boxes: Tensor
    classes: Tensor
    masks: Tensor | Polygons | None = None


@dataclass
class Regions:
    """Boxes of all images of a batch in one tensor, and in training what they should become.

    boxes (n, 4); image int64 (n,); classes int64 (n,), K for background; gt_boxes (n, 4); gt_rows int64 (n,): the
    matched object's number within its image.
    """

    boxes: Tensor
    image: Tensor
    classes: Tensor | None = None
    gt_boxes: Tensor | None = None
    gt_rows: Tensor | None = None


def pyramid_levels(boxes: Tensor) -> Tensor:
    """Level 0..3 (p2..p5) int64 (n,) from which each box is pooled: a 224 px box at p4 (FPN, equation 1)."""
    level = torch.floor(4 + torch.log2(torch.sqrt(box_area(boxes)) / 224 + 1e-8))
    return level.clamp(min=2, max=5).to(torch.int64) - 2


def pool_regions(features: list[Tensor], boxes: Tensor, image: Tensor, side: int) -> Tensor:
    """RoIAlign (aligned, adaptive sampling) of each box from its level: (n, C, side, side); features are p2..p5."""
    pooled = features[0].new_zeros(len(boxes), features[0].shape[1], side, side)
    rois = torch.cat([image[:, None].to(boxes), boxes], dim=1).float()
    level = pyramid_levels(boxes)
    for i, feature in enumerate(features):
        rows = (level == i).nonzero()[:, 0]
        if len(rows):
            region = roi_align(feature.float(), rois[rows], (side, side), 0.25 / 2**i, 0, aligned=True)
            pooled[rows] = region.to(pooled.dtype)
    return pooled


class BoxHead(nn.Module):
    """Four 3x3 convolutions with LayerNorm and ReLU, then one fully connected layer: (n, C, 7, 7) -> (n, fc_dim)."""

    def __init__(self, channels: int, fc_dim: int) -> None:
        super().__init__()
        for k in range(1, 5):
            self.add_module(f"conv{k}", _he_init(ConvNorm(channels, channels, 3, relu=True)))
        self.fc1 = nn.Linear(channels * BOX_SIDE**2, fc_dim)
        nn.init.kaiming_uniform_(self.fc1.weight, a=1)
        nn.init.zeros_(self.fc1.bias)

    def forward(self, x: Tensor) -> Tensor:
        for k in range(1, 5):
            x = self.get_submodule(f"conv{k}")(x)
        return F.relu(self.fc1(x.flatten(1)))


class BoxPredictor(nn.Module):
    """Class logits (n, K + 1), background last, and box deltas (n, 4K), or (n, 4) when class-agnostic."""

    def __init__(self, fc_dim: int, num_classes: int, agnostic: bool) -> None:
        super().__init__()
        self.cls_score = nn.Linear(fc_dim, num_classes + 1)
        self.bbox_pred = nn.Linear(fc_dim, 4 if agnostic else 4 * num_classes)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x).float(), self.bbox_pred(x).float()


class MaskHead(nn.Module):
    """Four convolutions with LayerNorm and ReLU, a deconvolution, and one 28x28 logit map per class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        for k in range(1, 5):
            self.add_module(f"mask_fcn{k}", _he_init(ConvNorm(channels, channels, 3, relu=True)))
        self.deconv = _he_init(nn.ConvTranspose2d(channels, channels, 2, stride=2))
        self.predictor = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for k in range(1, 5):
            x = self.get_submodule(f"mask_fcn{k}")(x)
        return self.predictor(F.relu(self.deconv(x))).float()


def _he_init(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class RoIHeads(nn.Module):
    """Box stages (one, or three in a cascade) and the mask head.

    Attributes (detectron2's names and the ViTDet values; change them before training if need be):
        batch_size_per_image, positive_fraction: proposals sampled for the losses, and how many may be foreground.
    """

    def __init__(self, channels: int, fc_dim: int, num_classes: int, cascade: bool, with_masks: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cascade = cascade
        self.batch_size_per_image = 512
        self.positive_fraction = 0.25
        self.score_threshold = 0.05
        self.nms_threshold = 0.5
        self.max_detections: int | None = 100
        self.soft_nms: SoftNMS | None = None
        count = 3 if cascade else 1
        heads = [BoxHead(channels, fc_dim) for _ in range(count)]
        predictors = [BoxPredictor(fc_dim, num_classes, agnostic=cascade) for _ in range(count)]
        self.box_head = nn.ModuleList(heads) if cascade else heads[0]
        self.box_predictor = nn.ModuleList(predictors) if cascade else predictors[0]
        self.mask_head = MaskHead(channels, num_classes) if with_masks else None

    def stages(self) -> list[tuple[nn.Module, nn.Module, BoxWeights, float]]:
        """Per stage: head, predictor, box coding weights, and the overlap from which a proposal is foreground."""
        heads, predictors = (m if self.cascade else [m] for m in (self.box_head, self.box_predictor))
        weights = [(10.0 * k, 10.0 * k, 5.0 * k, 5.0 * k) for k in (1, 2, 3)]
        return list(zip(heads, predictors, weights, (0.5, 0.6, 0.7), strict=False))  # type: ignore[arg-type]

    def predict_stage(self, stage: int, features: list[Tensor], regions: Regions) -> tuple[Tensor, Tensor]:
        """Class logits and box deltas of one stage; gradients to the features are divided by the number of stages."""
        stages = self.stages()
        head, predictor, _, _ = stages[stage]
        pooled = pool_regions(features, regions.boxes, regions.image, BOX_SIDE)
        if self.training and len(stages) > 1:
            pooled = _ScaleGradient.apply(pooled, 1.0 / len(stages))
        return predictor(head(pooled))

    def detect(self, features: list[Tensor], proposals: list[Tensor], sizes: Tensor) -> list[dict[str, Tensor]]:
        """Detections in the resized image: per image ``boxes``, ``scores``, ``classes`` and ``proposal_rows``.

        Args:
            features: p2..p5.
            proposals: per image (n, 4).
            sizes: (N, 2) heights and widths without padding.
        """
        regions = Regions(*_flatten(proposals))
        probabilities: list[Tensor] = []
        boxes = regions.boxes
        for k, (_, _, weights, _) in enumerate(self.stages()):
            if k:
                regions.boxes = clip_boxes(boxes, sizes[regions.image])
            logits, deltas = self.predict_stage(k, features, regions)
            probabilities.append(logits.softmax(dim=-1))
            boxes = decode_boxes(deltas, regions.boxes, weights)
        probability = torch.stack(probabilities).sum(dim=0) * (1.0 / len(probabilities))
        counts = [len(p) for p in proposals]
        detections = []
        for box, score, size in zip(boxes.split(counts), probability.split(counts), sizes, strict=True):
            selected = select_detections(
                box, score, size, self.score_threshold, self.nms_threshold, self.max_detections, self.soft_nms
            )
            detections.append(dict(zip(("boxes", "scores", "classes", "proposal_rows"), selected, strict=True)))
        return detections

    def mask_probabilities(self, features: list[Tensor], boxes: list[Tensor], classes: list[Tensor]) -> list[Tensor]:
        """Per image float32 (n, 28, 28): the mask of each given box (n, 4) of the resized image for its class (n,)."""
        assert self.mask_head is not None
        flat, image = _flatten(boxes)
        logits = self.mask_head(pool_regions(features, flat, image, MASK_SIDE))
        chosen = logits[torch.arange(len(flat), device=flat.device), torch.cat(classes)]
        return list(chosen.sigmoid().split([len(b) for b in boxes]))

    # ---- training -------------------------------------------------------------------------------------------------

    def losses(
        self,
        features: list[Tensor],
        proposals: list[Tensor],
        sizes: Tensor,
        targets: list[Targets],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """``loss_cls``, ``loss_box_reg`` (cascade: ``..._stage0`` to ``2``) and ``loss_mask``."""
        first = regions = self._sample_proposals(proposals, targets, generator)
        boxes = regions.boxes
        losses: dict[str, Tensor] = {}
        for k, (_, _, weights, threshold) in enumerate(self.stages()):
            if k:
                boxes = clip_boxes(boxes, sizes[regions.image])
                keep = nonempty(boxes)
                regions = self._label(Regions(boxes[keep], regions.image[keep]), targets, threshold)
            logits, deltas = self.predict_stage(k, features, regions)
            boxes = decode_boxes(deltas.detach(), regions.boxes, weights)
            suffix = f"_stage{k}" if self.cascade else ""
            losses[f"loss_cls{suffix}"] = (
                F.cross_entropy(logits, regions.classes) if len(logits) else logits.sum() * 0.0  # type: ignore[arg-type]
            )
            losses[f"loss_box_reg{suffix}"] = self._box_loss(deltas, regions, weights)
        if self.mask_head is not None:
            losses["loss_mask"] = self._mask_loss(features, first, targets)
        return losses

    @torch.no_grad()
    def _sample_proposals(
        self, proposals: list[Tensor], targets: list[Targets], generator: torch.Generator | None
    ) -> Regions:
        """Append the ground truth to the proposals, label at 0.5, and sample per image."""
        joined = [torch.cat([p, t.boxes.to(p)]) for p, t in zip(proposals, targets, strict=True)]
        regions = self._label(Regions(*_flatten(joined)), targets, 0.5)
        assert regions.classes is not None
        chosen: list[Tensor] = []
        for i in range(len(targets)):
            here, foreground = regions.image == i, regions.classes < self.num_classes
            chosen += sample(
                here & foreground, here & ~foreground, self.batch_size_per_image, self.positive_fraction, generator
            )
        rows = torch.cat(chosen)
        return Regions(*(getattr(regions, name)[rows] for name in ("boxes", "image", "classes", "gt_boxes", "gt_rows")))

    @torch.no_grad()
    def _label(self, regions: Regions, targets: list[Targets], threshold: float) -> Regions:
        classes, gt_boxes, gt_rows = [], [], []
        for i, target in enumerate(targets):
            boxes = regions.boxes[regions.image == i]
            gt = target.boxes.to(boxes)
            row, label = match(pairwise_iou(gt, boxes), threshold, threshold)
            if len(gt):
                classes.append(torch.where(label == 1, target.classes.to(row)[row], self.num_classes))
                gt_boxes.append(gt[row])
            else:
                classes.append(torch.full_like(row, self.num_classes))
                gt_boxes.append(torch.zeros_like(boxes))
            gt_rows.append(row)
        # Regions are ordered by image, so that concatenating per image keeps their order.
        return Regions(regions.boxes, regions.image, torch.cat(classes), torch.cat(gt_boxes), torch.cat(gt_rows))

    def _box_loss(self, deltas: Tensor, regions: Regions, weights: BoxWeights) -> Tensor:
        assert regions.classes is not None
        assert regions.gt_boxes is not None
        rows = (regions.classes < self.num_classes).nonzero()[:, 0]
        wanted = encode_boxes(regions.boxes[rows], regions.gt_boxes[rows], weights)
        per_class = deltas.unflatten(1, (-1, 4))
        predicted = per_class[rows, regions.classes[rows] if per_class.shape[1] > 1 else 0]
        return F.l1_loss(predicted, wanted, reduction="sum") / max(len(regions.classes), 1)

    def _mask_loss(self, features: list[Tensor], regions: Regions, targets: list[Targets]) -> Tensor:
        assert self.mask_head is not None
        assert regions.classes is not None
        assert regions.gt_rows is not None
        rows = (regions.classes < self.num_classes).nonzero()[:, 0]
        boxes, image, classes = regions.boxes[rows], regions.image[rows], regions.classes[rows]
        logits = self.mask_head(pool_regions(features, boxes, image, MASK_SIDE))
        if len(rows) == 0:
            return logits.sum() * 0.0
        wanted = []
        for i, target in enumerate(targets):
            if target.masks is None:
                raise BenchError(
                    f"training target {i} has no masks; give masks, or build the detector without a mask head"
                )
            here = image == i
            wanted.append(mask_targets(target.masks, regions.gt_rows[rows][here], boxes[here], logits.shape[-1]))
        chosen = logits[torch.arange(len(rows), device=rows.device), classes]
        return F.binary_cross_entropy_with_logits(chosen, torch.cat(wanted).float())


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None  # type: ignore[attr-defined]


def _flatten(boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Per-image boxes -> all boxes (n, 4) and their image numbers int64 (n,)."""
    counts = torch.tensor([len(b) for b in boxes], device=boxes[0].device)
    return torch.cat(boxes), torch.arange(len(boxes), device=counts.device).repeat_interleave(counts)
