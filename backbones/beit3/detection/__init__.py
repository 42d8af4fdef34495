"""ViTDet in plain torch on torchvision.ops: simple feature pyramid, RPN, Mask R-CNN and Cascade Mask R-CNN heads.

Parameter names, arithmetic and order of operations are detectron2's, so that its checkpoints load as they are and give
the same detections. Names are resolved on first use: importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Detector": "detector",
    "SimpleFeaturePyramid": "pyramid",
    "SoftNMS": "nms",
    "build_detector": "detector",
    "detector_arguments": "weights",
    "layer_decay_factor": "recipe",
    "load_detector": "weights",
    "lr_multiplier": "recipe",
    "param_groups": "recipe",
    "postprocess": "masks",
    "resize_image": "resize",
    "resize_scale": "resize",
    "resize_shortest_edge": "resize",
    "soft_nms": "nms",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
