"""BEiT-3 for mmsegmentation: importing this module registers everything that a config of mmseg can then name.

In a config of your own, two lines are enough::

    custom_imports = dict(imports=["mmdet.models", "beit3_bench.backbones.beit3.mmseg_adapter"])
    model = dict(type="BEiT3Segmentor", backbone=dict(type="BEiT3Adapter", arch="base"), ...)

and the project's configs run with mmseg's own tools (the folder is printed by
``python -c "from beit3_bench.backbones.beit3.mmseg_adapter import configs; print(*configs.paths(), sep='\\n')"``).

Registered: the backbones `BEiT3` (simple feature pyramid) and `BEiT3Adapter` (ViT-Adapter), the segmentor
`BEiT3Segmentor` (needed for sliding windows with Mask2Former), the optimizer wrapper constructor `BEiT3LayerDecay`.

Works with mmcv (compiled with its ops), mmengine, mmdet and mmseg of either origin, openmmlab's or its maintained fork's.
"""

from __future__ import annotations

import contextlib
import sys
import warnings

from beit3_bench.errors import INSTALL_LINES, BenchError, requires

STACK = ("mmcv.ops", "mmengine.registry", "mmdet.models", "mmseg.apis")


def import_stack(purpose: str = "task ade20k-seg") -> None:
    """Import mmcv (with its compiled ops), mmengine, mmdet and mmseg; what they print goes to stderr.

    Raises:
        BenchError: one of them is missing, is built without ops, or refuses the version of another; says how to install.
    """
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)  # of mmdet's, at every start
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in STACK:
            try:
                requires(module, purpose)
            except (AssertionError, RuntimeError, OSError, AttributeError) as error:
                # mmseg asserts the version of mmcv; ops built for another torch fail in the loader
                line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                package = module.split(".")[0]
                raise BenchError(
                    f"{purpose} needs {package}, which does not import here ({line}); "
                    f"install it with: {INSTALL_LINES[package]}"
                ) from ImportError(line)


import_stack()

from beit3_bench.backbones.beit3.mmseg_adapter.adapter import BEiT3Adapter  # noqa: E402
from beit3_bench.backbones.beit3.mmseg_adapter.optimizer import BEiT3LayerDecay  # noqa: E402
from beit3_bench.backbones.beit3.mmseg_adapter.pyramid import BEiT3  # noqa: E402
from beit3_bench.backbones.beit3.mmseg_adapter.segmentor import BEiT3Segmentor  # noqa: E402

__all__ = ["BEiT3", "BEiT3Adapter", "BEiT3LayerDecay", "BEiT3Segmentor"]
