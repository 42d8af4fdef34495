"""What both mmseg backbones share: the tower from an ``arch`` entry of a config, its weights, and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from beit3_bench.backbones.beit3.checkpoint import LoadReport
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.spatial import SpatialBEiT3, load_spatial
from beit3_bench.errors import BenchError

STRIDE = 32  # of the coarsest map


def tower_config(arch: str | Mapping[str, Any], drop_path_rate: float, with_cp: bool) -> BEiT3Config:
    """The configuration behind ``arch``: a preset's name, or the fields of a `BEiT3Config`.

    Its image size says at which size positions are stored; inputs may have any other.
    """
    chosen = {"drop_path_rate": drop_path_rate, "checkpoint_activations": with_cp}
    if isinstance(arch, str):
        return BEiT3Config.preset(arch, **chosen)
    return BEiT3Config.from_dict({**arch, **chosen}, "backbone.arch")


def build_tower(
    arch: str | Mapping[str, Any],
    window_size: int,
    global_blocks: Sequence[int] | None,
    drop_path_rate: float,
    with_cp: bool,
    final_norm: bool,
) -> SpatialBEiT3:
    """A vision tower of stride 16; patch kernels of another size are resampled when weights are loaded."""
    config = tower_config(arch, drop_path_rate, with_cp)
    return SpatialBEiT3(config, window_size, global_blocks, final_norm=final_norm)


def load_official(
    tower: SpatialBEiT3, source: str | Path | Mapping[str, Tensor], origin: str | None = None
) -> LoadReport:
    """Load the vision weights (branch A) of an official checkpoint of any task, and log what was used of it.

    A checkpoint without final norm (the linear ImageNet head has one of its own) leaves the tower's as it is.

    Raises:
        BenchError: vision tensors that are missing or of another shape.
    """
    report = load_spatial(tower, source, allow_missing=("beit3.encoder.layer_norm.*",), origin=origin)
    facts = [f"{len(report.loaded)} vision tensors loaded"]
    facts += [f"{name} resized {change}" for name, change in report.resized.items()]
    facts += [f"not in it: {', '.join(report.missing)}"] if report.missing else []
    facts += [f"not used: {', '.join(report.unexpected)}"] if report.unexpected else []
    print_log(
        f"BEiT-3 weights from {origin or source if isinstance(source, (str, Path)) else origin}: {'; '.join(facts)}",
        "current",
    )
    return report


def pretrained_file(init_cfg: Any) -> str | None:
    """The file that ``init_cfg=dict(type="Pretrained", checkpoint=FILE)`` names; None without ``init_cfg``.

    Raises:
        BenchError: another kind of initialisation.
    """
    if init_cfg is None:
        return None
    if not isinstance(init_cfg, Mapping) or init_cfg.get("type") != "Pretrained" or "checkpoint" not in init_cfg:
        raise BenchError(f"backbone.init_cfg {init_cfg!r}: give dict(type='Pretrained', checkpoint='FILE') or None")
    return init_cfg["checkpoint"]


def padded(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) with zeros (the mean colour) to the right and below, sides multiples of 32."""
    right, below = -images.shape[3] % STRIDE, -images.shape[2] % STRIDE
    return F.pad(images, (0, right, 0, below)) if right or below else images


def cropped(maps: Sequence[Tensor], height: int, width: int) -> tuple[Tensor, ...]:
    """Maps of strides 4, 8, 16, 32 without the cells that see padding only."""
    return tuple(
        m[:, :, : -(-height // stride), : -(-width // stride)] for m, stride in zip(maps, (4, 8, 16, 32), strict=True)
    )
