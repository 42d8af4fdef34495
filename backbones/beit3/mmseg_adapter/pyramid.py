"""`BEiT3`: the vision tower with the simple feature pyramid, as a backbone of mmsegmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor

from beit3_bench.backbones.beit3.detection.pyramid import SimpleFeaturePyramid
from beit3_bench.backbones.beit3.mmseg_adapter.tower import build_tower, cropped, load_official, padded, pretrained_file


@MODELS.register_module()
class BEiT3(SimpleFeaturePyramid, BaseModule):
    """BEiT-3 and four maps of strides 4, 8, 16, 32 made from its last one (ViTDet, section 3).

    Args:
        arch: ``"base"``, ``"large"``, ..., or the fields of a `BEiT3Config`; its ``image_size`` is the size at which
            positions are stored (224 for the pretrained files).
        out_channels: of every map.
        window_size: tokens along a window's side; 0 = global attention in every block.
        global_blocks: indexes of blocks without windows; None = four, evenly spaced.
        drop_path_rate: stochastic depth of the last block.
        with_cp: compute activations again in the backward pass.
        init_cfg: ``dict(type="Pretrained", checkpoint=FILE)`` with an official checkpoint of any task, or None.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "base",
        out_channels: int = 256,
        window_size: int = 0,
        global_blocks: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        tower = build_tower(arch, window_size, global_blocks, drop_path_rate, with_cp, final_norm=True)
        super().__init__(tower, tower.embed_dim, out_channels)
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names; new layers keep the values that they were built with."""
        file = pretrained_file(self.init_cfg)
        if file is not None:
            load_official(self.net, file)
        self._is_init = True

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Normalised images float (N, 3, H, W) -> four maps (N, out_channels, H/s, W/s), sides rounded up."""
        return cropped(super().forward(padded(images))[:4], *images.shape[2:])
