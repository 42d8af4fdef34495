"""BEiT-3 in detectron2: backbone, feature pyramid, Soft-NMS heads, checkpoints, LazyConfig files.

detectron2 is on no package registry and needs a compiler; `beit3_bench.backbones.detection` does the same without it. To
train with detectron2's own tool and our config files (shapely is needed by its large-scale jitter)::

    CONFIGS=$(python -c "import beit3_bench.backbones.detectron2_adapter.configs as c; print(c.__path__[0])")
    DETECTRON2_DATASETS=/data python tools/lazyconfig_train_net.py --num-gpus 8 \\
        --config-file $CONFIGS/cascade_mask_rcnn_beit3_base_1024.py \\
        model.backbone.net.weights=/weights/beit3_base_patch16_224.pth train.output_dir=/runs/base
    beit3-bench run --task coco-det --checkpoint /runs/base/model_final.pth --data-root /data/coco

``DETECTRON2_DATASETS`` holds ``coco/annotations`` and ``coco/train2017``; `register_coco` registers any other folder.
Names are resolved on first use, and asking for one without detectron2 says how to install it.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from beit3_bench.backbones.errors import requires

_PUBLIC = {
    "BEiT3Checkpointer": "checkpointer",
    "BEiT3FeaturePyramid": "backbone",
    "BEiT3RCNN": "meta_arch",
    "BEiT3ViT": "backbone",
    "SoftNMSCascadeROIHeads": "heads",
    "SoftNMSOutputLayers": "heads",
    "add_beit3_config": "backbone",
    "build_model": "lazy",
    "lr_factor": "recipe",
    "model_config": "lazy",
    "register_coco": "data",
    "training_config": "recipe",
}
__all__ = ["is_available", *sorted(_PUBLIC)]


def is_available() -> bool:
    """Whether detectron2 with its compiled part imports here."""
    if importlib.util.find_spec("detectron2") is None:
        return False
    try:
        importlib.import_module("detectron2._C")
    except ImportError:
        return False
    return True


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    requires("detectron2._C", "the detectron2 engine")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
