"""The detector as a LazyConfig node: ViTDet's configuration with our backbone, heads and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from omegaconf import DictConfig

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.nms import SoftNMS
from beit3_bench.backbones.beit3.detection.plan import DetectorPlan
from beit3_bench.backbones.beit3.detectron2_adapter.backbone import BEiT3FeaturePyramid, BEiT3ViT
from beit3_bench.backbones.beit3.detectron2_adapter.heads import SoftNMSCascadeROIHeads, SoftNMSOutputLayers
from beit3_bench.backbones.beit3.detectron2_adapter.meta_arch import BEiT3RCNN

VITDET = "common/models/mask_rcnn_vitdet.py"


def model_config(
    plan: DetectorPlan,
    tower: BEiT3Config,
    weights: str | None = None,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    soft_nms: SoftNMS | Mapping[str, Any] | None = None,
    detections_per_image: int = 100,
) -> DictConfig:
    """A LazyConfig node that `instantiate` turns into a `BEiT3RCNN` with the native detector's parameter names.

    Args:
        tower: patch size 16, ``drop_path_rate`` and ``checkpoint_activations`` included.
        weights: official BEiT-3 file for the tower; override it with ``model.backbone.net.weights=FILE``.
        soft_nms: settings, also as a mapping (``model.roi_heads.soft_nms``, or below ``box_predictor`` without cascade).
    """
    model = model_zoo.get_config(VITDET).model
    model._target_ = BEiT3RCNN
    model.pixel_mean, model.pixel_std = list(plan.pixel_mean), list(plan.pixel_std)
    model.input_format = "RGB"
    net = L(BEiT3ViT)(
        embed_dim=tower.embed_dim,
        depth=tower.depth,
        num_heads=tower.num_heads,
        ffn_dim=tower.ffn_dim,
        grid=tower.grid,
        drop_path_rate=tower.drop_path_rate,
        window_size=plan.window_size,
        global_blocks=None if plan.global_blocks is None else list(plan.global_blocks),
        cls_token=plan.cls_token,
        final_norm=plan.final_norm,
        checkpoint_activations=tower.checkpoint_activations,
        shared_attention=tower.shared_attention,
        layer_norm_eps=tower.layer_norm_eps,
        weights=weights,
        out_feature="last_feat",
    )
    pyramid = model.backbone
    pyramid._target_, pyramid.net = BEiT3FeaturePyramid, net
    pyramid.out_channels, pyramid.square_pad = plan.out_channels, plan.image_size

    channels, rpn, heads = plan.out_channels, model.proposal_generator, model.roi_heads
    rpn.head.in_channels = channels
    rpn.pre_nms_topk = (2 * plan.proposals, plan.proposals)
    rpn.post_nms_topk = (plan.proposals, plan.proposals)
    heads.num_classes = plan.num_classes
    if plan.with_masks:
        heads.mask_head.input_shape = ShapeSpec(channels=channels, width=14, height=14)
        heads.mask_head.conv_dims = [channels] * 5
    else:
        for name in ("mask_in_features", "mask_pooler", "mask_head"):
            heads.pop(name)

    def box_head() -> DictConfig:
        shape = ShapeSpec(channels=channels, height=7, width=7)
        return L(FastRCNNConvFCHead)(input_shape=shape, conv_dims=[channels] * 4, fc_dims=[plan.fc_dim], conv_norm="LN")

    soft = vars(soft_nms) if isinstance(soft_nms, SoftNMS) else soft_nms
    soft = dict(soft) if soft is not None else None

    def predictor(weight: int, agnostic: bool, classes: str) -> DictConfig:
        return L(SoftNMSOutputLayers)(
            input_shape=ShapeSpec(channels=plan.fc_dim),
            test_score_thresh=score_threshold,
            test_nms_thresh=nms_threshold,
            test_topk_per_image=detections_per_image,
            box2box_transform=L(Box2BoxTransform)(weights=[2 * weight, 2 * weight, weight, weight]),
            cls_agnostic_bbox_reg=agnostic,
            num_classes=classes,
            soft_nms=None if agnostic else soft,
        )

    if plan.head == "mask_rcnn":
        heads.box_head = box_head()
        heads.box_predictor = predictor(5, False, "${..num_classes}")
        return model
    for name in ("box_head", "box_predictor", "proposal_matcher"):
        heads.pop(name)
    heads.update(
        _target_=SoftNMSCascadeROIHeads,
        box_heads=[box_head() for _ in range(3)],
        box_predictors=[predictor(5 * k, True, "${...num_classes}") for k in (1, 2, 3)],
        proposal_matchers=[
            L(Matcher)(thresholds=[overlap], labels=[0, 1], allow_low_quality_matches=False)
            for overlap in (0.5, 0.6, 0.7)
        ],
        soft_nms=soft,
    )
    return model


def build_model(plan: DetectorPlan, tower: BEiT3Config, **inference: Any) -> BEiT3RCNN:
    """The detector on detectron2, untrained, in evaluation mode; arguments as of `DetectorPlan.build`."""
    model = instantiate(model_config(plan, tower, **inference)).eval()
    model.config = plan.input_config(tower)
    return model
