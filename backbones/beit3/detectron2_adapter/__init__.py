"""BEiT-3 in detectron2: backbone, feature pyramid, Soft-NMS heads, checkpoints, LazyConfig files.

detectron2 is on no package registry and needs a compiler; `beit3_bench.backbones.beit3.detection` does the same without it. To
train with detectron2's own tool and our config files (shapely is needed by its large-scale jitter)::

    CONFIGS=$(python -c "import beit3_bench.backbones.beit3.detectron2_adapter.configs as c; print(c.__path__[0])")
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

from beit3_bench.errors import INSTALL_LINES, BenchError, requires

PURPOSE = "the detectron2 engine"
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
__all__ = ["is_available", "problem", "require", *sorted(_PUBLIC)]


def is_available() -> bool:
    """Whether the detectron2 engine can be used: all that it imports does, the compiled part and ``pkg_resources`` too."""
    return importlib.util.find_spec("detectron2") is not None and problem() is None


def problem() -> str | None:
    """Why the detectron2 engine cannot be used, and the line that installs it; None where it can."""
    try:
        require()
    except BenchError as error:
        return str(error)
    return None


def require() -> None:
    """Import every module of the adapter.

    Raises:
        BenchError: detectron2, or something that it needs itself, does not import; says how to install it.
    """
    requires("detectron2._C", PURPOSE)
    for module in ("heads", "lazy"):
        try:
            importlib.import_module(f"{__name__}.{module}")
        except Exception as error:  # a detectron2 of another age or build fails in ways of its own
            line = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
            raise BenchError(
                f"{PURPOSE} needs detectron2, which does not import here ({line}); "
                f"install it with: {INSTALL_LINES['detectron2']}"
            ) from ImportError(line)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require()
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
