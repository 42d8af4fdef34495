"""BEiT-3's tower as a detectron2 `Backbone`, and ViTDet's feature pyramid with its padding mended."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, SimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor

from beit3_bench.backbones.beit3.checkpoint import LoadReport
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.plan import STRIDE
from beit3_bench.backbones.beit3.spatial import SpatialBEiT3, load_spatial


def say_what_was_loaded(report: LoadReport, origin: str) -> None:
    """Write into detectron2's log what is not as in the checkpoint."""
    for line in report.remarks():
        logging.getLogger("detectron2.beit3").warning("%s: %s", origin, line)


@BACKBONE_REGISTRY.register()
class BEiT3ViT(SpatialBEiT3, Backbone):
    """`SpatialBEiT3` with detectron2's interface; parameters are named as ViTDet's layer decay expects.

    Args:
        grid: patches along a side at which positions are stored (224 / 16). Weights of another grid are interpolated to
            it, with a warning: 24 keeps those of a 384-pixel checkpoint, 30 those of a 480-pixel one.
        shared_attention: of the file that ``weights`` names (the paper's giant); the tower itself is the same.
        weights: file of an official BEiT-3, whose vision tower is loaded at once (see ``load_report``); None = random.
        out_feature: name of the only output, (N, embed_dim, H/16, W/16).
    """

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        ffn_dim: int = 3072,
        grid: int = 14,
        drop_path_rate: float = 0.1,
        window_size: int = 14,
        global_blocks: Sequence[int] | None = None,
        cls_token: bool = False,
        final_norm: bool = True,
        checkpoint_activations: bool = False,
        shared_attention: bool = False,
        layer_norm_eps: float = 1e-5,
        weights: str | None = None,
        out_feature: str = "last_feat",
    ) -> None:
        config = BEiT3Config(
            image_size=grid * STRIDE,
            patch_size=STRIDE,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            ffn_dim=ffn_dim,
            drop_path_rate=drop_path_rate,
            checkpoint_activations=checkpoint_activations,
            shared_attention=shared_attention,
            layer_norm_eps=layer_norm_eps,
        )
        super().__init__(config, window_size, global_blocks, cls_token, final_norm, STRIDE)
        self._out_features = [out_feature]
        self._out_feature_channels = {out_feature: embed_dim}
        self._out_feature_strides = {out_feature: STRIDE}
        self.load_report: LoadReport | None = None
        if weights:
            self.load_report = load_spatial(self, weights, ("beit3.encoder.layer_norm.A.*",))
            say_what_was_loaded(self.load_report, weights)

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """Normalised images float32 (N, 3, H, W), sides multiples of 16 -> {out_feature: map}."""
        return {self._out_features[0]: super().forward(images)}


class BEiT3FeaturePyramid(SimpleFeaturePyramid):
    """`SimpleFeaturePyramid` whose padding rule is read under its right name, so that no pixel goes unseen.

    detectron2 writes ``size_divisiblity`` and reads ``size_divisibility``: without ``square_pad`` nothing is padded.
    """

    @property
    def size_divisibility(self) -> int:
        # A square that the tower can take is left as it is, as in the native engine.
        return STRIDE if self._square_pad else self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self.size_divisibility, "square_size": self._square_pad}


def add_beit3_config(cfg: CfgNode) -> None:
    """Add the node ``MODEL.BEIT3`` that `build_beit3_pyramid` reads (base at 1024 pixels) to a yaml configuration."""
    cfg.MODEL.BEIT3 = CfgNode(
        {
            "EMBED_DIM": 768,
            "DEPTH": 12,
            "NUM_HEADS": 12,
            "FFN_DIM": 3072,
            "GRID": 14,
            "DROP_PATH_RATE": 0.1,
            "WINDOW_SIZE": 14,
            "CLS_TOKEN": False,
            "FINAL_NORM": True,
            "CHECKPOINT_ACTIVATIONS": False,
            "SHARED_ATTENTION": False,
            "LAYER_NORM_EPS": 1e-5,
            "WEIGHTS": "",
            "OUT_CHANNELS": 256,
            "SQUARE_PAD": 1024,
        }
    )


@BACKBONE_REGISTRY.register()
def build_beit3_pyramid(cfg: Any, input_shape: ShapeSpec) -> BEiT3FeaturePyramid:
    """For yaml configurations: ``MODEL.BACKBONE.NAME = "build_beit3_pyramid"`` after `add_beit3_config`."""
    settings = {key.lower(): value for key, value in cfg.MODEL.BEIT3.items()}
    out_channels, square_pad = settings.pop("out_channels"), settings.pop("square_pad")
    return BEiT3FeaturePyramid(
        BEiT3ViT(**settings),
        in_feature="last_feat",
        out_channels=out_channels,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=square_pad,
    )
