"""The detector: pad and normalise, pyramid, RPN, heads, and detections in the original image; or the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from beit3_bench.backbones.beit3.detection.boxes import nonempty
from beit3_bench.backbones.beit3.detection.masks import postprocess
from beit3_bench.backbones.beit3.detection.nms import SoftNMS
from beit3_bench.backbones.beit3.detection.pyramid import SimpleFeaturePyramid
from beit3_bench.backbones.beit3.detection.roi_heads import RoIHeads, Targets
from beit3_bench.backbones.beit3.detection.rpn import RPN
from beit3_bench.errors import BenchError

HEADS = ("mask_rcnn", "cascade_mask_rcnn")


class Detector(nn.Module):
    """ViTDet with detectron2's parameter names; made by `build_detector`.

    Inputs are a list of dicts, one per image:
        ``image``: uint8 (or float, 0..255) (3, h, w), RGB, already resized, not padded; h and w at most ``image_size``.
        ``height``, ``width``: size in which detections are wanted (default: h and w).
        ``instances``, in training: a dict with ``boxes`` float (m, 4) and ``classes`` int (m,) 0-based, and ``masks``:
        bool (m, h, w), or per object a list of polygons ``[x0, y0, x1, y1, ...]``; all in pixels of ``image``.

    In evaluation returns per image a dict with ``boxes`` float32 (n, 4) x1 y1 x2 y2, ``scores`` float32 (n,) falling,
    ``classes`` int64 (n,) and ``masks`` bool (n, height, width).
    In training returns the losses under detectron2's names: ``loss_rpn_cls``, ``loss_rpn_loc``, ``loss_cls``,
    ``loss_box_reg`` (in a cascade ``loss_cls_stage0`` to ``loss_box_reg_stage2``) and ``loss_mask``;
    their sum is to be minimised.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        backbone: SimpleFeaturePyramid,
        proposal_generator: RPN,
        roi_heads: RoIHeads,
        image_size: int,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.image_size = image_size
        self.register_buffer(
            "pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(
        self,
        inputs: Sequence[Mapping[str, Any]],
        targets: Sequence[Mapping[str, Any]] | None = None,
        generator: torch.Generator | None = None,
    ) -> list[dict[str, Tensor]] | dict[str, Tensor]:
        """Detections (evaluation) or losses (training); see the class.

        Args:
            targets: instead of ``instances`` in each input.
            generator: draws the sampled anchors and proposals; None is torch's global one.

        Raises:
            BenchError: an image larger than ``image_size``, or targets that do not fit.
        """
        if self.training:
            return self.losses(inputs, targets, generator)
        with torch.no_grad():
            return self.detect(inputs)

    def encode(self, inputs: Sequence[Mapping[str, Any]]) -> tuple[list[Tensor], Tensor]:
        """Pyramid maps [p2..p6] of the padded batch, and the unpadded sizes int64 (N, 2), height and width."""
        side = self.image_size
        batch = self.pixel_mean.new_zeros(len(inputs), 3, side, side)
        for i, item in enumerate(inputs):
            image = item["image"]
            if image.ndim != 3 or image.shape[0] != 3:
                raise BenchError(
                    f"image {i} of the batch has shape {tuple(image.shape)}; the detector takes (3, h, w), RGB"
                )
            height, width = image.shape[1:]
            if max(height, width) > side:
                raise BenchError(
                    f"image {i} of the batch is {height}x{width}, larger than the detector's {side}x{side}; "
                    f"resize its longer side to {side}, or build the detector with a larger image_size"
                )
            batch[i, :, :height, :width] = (image.to(batch.device) - self.pixel_mean) / self.pixel_std
        sizes = torch.tensor([item["image"].shape[1:] for item in inputs], device=batch.device)
        return self.backbone(batch), sizes

    def propose(self, features: list[Tensor], sizes: Tensor) -> list[Tensor]:
        """Proposal boxes (n, 4) of every image, by falling objectness."""
        rpn = self.proposal_generator
        return [boxes for boxes, _ in rpn.propose(rpn.anchors(features), *rpn.predict(features), sizes)]

    def detect(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Tensor]]:
        """Detections in the original images, whatever the mode of the module; gradients are the caller's affair."""
        if not inputs:
            return []
        features, sizes = self.encode(inputs)
        per_image = self.roi_heads.detect(features[:4], self.propose(features, sizes), sizes)
        masks: list[Tensor | None] = [None] * len(per_image)
        if self.roi_heads.mask_head is not None:
            boxes, classes = [d["boxes"] for d in per_image], [d["classes"] for d in per_image]
            masks = list(self.roi_heads.mask_probabilities(features[:4], boxes, classes))
        results = []
        for item, detections, mask in zip(inputs, per_image, masks, strict=True):
            size = tuple(item["image"].shape[1:])
            wanted = (int(item.get("height", size[0])), int(item.get("width", size[1])))
            kept = postprocess(detections["boxes"], detections["scores"], detections["classes"], mask, size, wanted)
            results.append(kept)
        return results

    def losses(
        self,
        inputs: Sequence[Mapping[str, Any]],
        targets: Sequence[Mapping[str, Any]] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The loss dict; see the class."""
        if not inputs:
            raise BenchError("a training batch needs at least one image")
        truth = self._targets(inputs, targets)
        features, sizes = self.encode(inputs)
        rpn = self.proposal_generator
        anchors, (logits, deltas) = rpn.anchors(features), rpn.predict(features)
        losses = rpn.losses(anchors, logits, deltas, [t.boxes for t in truth], generator)
        proposals = [boxes for boxes, _ in rpn.propose(anchors, logits, deltas, sizes)]
        return self.roi_heads.losses(features[:4], proposals, sizes, truth, generator) | losses

    def _targets(
        self, inputs: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]] | None
    ) -> list[Targets]:
        given = targets if targets is not None else [item.get("instances") for item in inputs]
        if len(given) != len(inputs):
            raise BenchError(f"{len(given)} targets for {len(inputs)} images")
        device, checked = self.pixel_mean.device, []
        for i, target in enumerate(given):
            if target is None:
                raise BenchError(f"training needs targets: input {i} has no 'instances'")
            boxes = torch.as_tensor(target["boxes"], dtype=torch.float32, device=device).reshape(-1, 4)
            classes = torch.as_tensor(target["classes"], dtype=torch.int64, device=device)
            masks = target.get("masks")
            if len(classes) != len(boxes) or (masks is not None and len(masks) != len(boxes)):
                raise BenchError(
                    f"target {i}: {len(boxes)} boxes, {len(classes)} classes and the masks differ in number"
                )
            if not nonempty(boxes).all():
                raise BenchError(f"target {i}: a box without area, or with NaN; drop it before training")
            if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < self.roi_heads.num_classes:
                raise BenchError(f"target {i}: class outside of 0..{self.roi_heads.num_classes - 1}")
            size = tuple(inputs[i]["image"].shape[1:])
            if isinstance(masks, Tensor) and tuple(masks.shape[1:]) != size:
                raise BenchError(f"target {i}: masks of {tuple(masks.shape[1:])}, the image is {size}")
            if masks is not None and not isinstance(masks, Tensor):
                bad = next((p for polygons in masks for p in polygons if len(p) < 6 or len(p) % 2), None)
                if bad is not None:
                    raise BenchError(
                        f"target {i}: a polygon of {len(bad)} numbers; it needs x, y of three points or more"
                    )
            checked.append(Targets(boxes, classes, masks))
        return checked


def build_detector(
    backbone: nn.Module,
    head: str = "mask_rcnn",
    num_classes: int = 80,
    image_size: int = 1024,
    embed_dim: int = 768,
    out_channels: int = 256,
    fc_dim: int = 1024,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    soft_nms: SoftNMS | Mapping[str, Any] | None = None,
    detections_per_image: int | None = 100,
    pixel_mean: Sequence[float] = (127.5,) * 3,
    pixel_std: Sequence[float] = (127.5,) * 3,
    with_masks: bool = True,
) -> Detector:
    """A ViTDet detector around a plain backbone, in evaluation mode (ViTDet's COCO configs, detectron2's names).

    Args:
        backbone: float32 (N, 3, image_size, image_size) -> (N, embed_dim, image_size/16, image_size/16); its parameters
            become ``backbone.net.*``.
        head: ``"mask_rcnn"``, or ``"cascade_mask_rcnn"`` with three class-agnostic box stages.
        image_size: images are padded to this square, a multiple of 16; larger ones are an error.
        embed_dim: channels of the backbone's map.
        score_threshold: scores must be above it.
        soft_nms: `SoftNMS` or a dict of its fields, instead of NMS at ``nms_threshold``.
        detections_per_image: None or a negative number keeps all.
        pixel_mean, pixel_std: RGB, in 0..255.
        with_masks: False leaves out the mask head (for data that has boxes only).

    Raises:
        BenchError: an unknown head, or sizes that do not fit.
    """
    if head not in HEADS:
        raise BenchError(f"detector head {head!r} is unknown; choose one of: {', '.join(HEADS)}")
    if image_size < 32 or image_size % 16:
        raise BenchError(
            f"detector image_size {image_size} must be a multiple of 16 (the backbone's stride), 32 or more"
        )
    if embed_dim < 4:
        raise BenchError(f"detector embed_dim {embed_dim} must be at least 4: the finest map has a quarter of it")
    if num_classes < 1:
        raise BenchError(f"detector num_classes {num_classes} must be at least 1")
    pyramid = SimpleFeaturePyramid(backbone, embed_dim, out_channels)
    heads = RoIHeads(out_channels, fc_dim, num_classes, cascade=head == "cascade_mask_rcnn", with_masks=with_masks)
    heads.score_threshold = score_threshold
    heads.nms_threshold = nms_threshold
    limit = detections_per_image
    heads.max_detections = None if limit is None or limit < 0 else limit
    heads.soft_nms = SoftNMS.of(soft_nms)
    rpn = RPN(out_channels, pyramid.strides)
    return Detector(pyramid, rpn, heads, image_size, pixel_mean, pixel_std).eval()
