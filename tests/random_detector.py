"""A native detector with random weights that finds something."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.plan import DetectorPlan
from beit3_bench.backbones.checkpoints import METADATA_KEY

TOWER = BEiT3Config(image_size=64, patch_size=16, embed_dim=32, num_heads=2, ffn_dim=64, depth=4)
PLAN = DetectorPlan(
    head="mask_rcnn", num_classes=6, image_size=96, window_size=3, out_channels=16, fc_dim=24, proposals=50
)


def random_detector(plan: DetectorPlan, tower: BEiT3Config) -> nn.Module:
    """The same weights at every call; class and mask predictors are spread wide enough to decide."""
    torch.manual_seed(1)
    model = plan.build(tower)
    with torch.no_grad():
        for name, parameter in model.roi_heads.named_parameters():
            if name.endswith(("cls_score.weight", "predictor.weight")):
                parameter.normal_(std=0.3)
    return model


def save_detector(path: Path) -> Path:
    """A small one, of the tiny world's six categories."""
    own = {"head": "detection", "task": "coco-det", "config": TOWER.to_dict(), "head_arguments": PLAN.to_dict()}
    torch.save({"model": random_detector(PLAN, TOWER).state_dict(), METADATA_KEY: own}, path)
    return path
