"""A native detector with random weights that finds something."""

from __future__ import annotations

import torch
from torch import nn

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.plan import DetectorPlan


def random_detector(plan: DetectorPlan, tower: BEiT3Config) -> nn.Module:
    """The same weights at every call; class and mask predictors are spread wide enough to decide."""
    torch.manual_seed(1)
    model = plan.build(tower)
    with torch.no_grad():
        for name, parameter in model.roi_heads.named_parameters():
            if name.endswith(("cls_score.weight", "predictor.weight")):
                parameter.normal_(std=0.3)
    return model
