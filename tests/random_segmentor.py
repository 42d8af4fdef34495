"""A small segmentation network with random weights that predicts several classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def save_segmentor(path: Path) -> Path:
    """The same weights at every call. The test is skipped where the stack of segmentation is not installed."""
    for module in ("mmcv.ops", "mmdet.models", "mmseg.apis"):
        pytest.importorskip(module, reason=f"{module} is not installed (extra: dense)", exc_type=ImportError)
    from mmengine.config import Config

    from beit3_bench.backbones.beit3.mmseg_adapter import loading, mmseg_config
    from beit3_bench.backbones.beit3.mmseg_adapter.settings import SegmentationSettings

    arch = {"image_size": 64, "patch_size": 16, "embed_dim": 48, "num_heads": 3, "ffn_dim": 96, "depth": 3}
    settings = SegmentationSettings(
        arch=arch, neck="pyramid", mode="whole", crop=64, stride=48, width=32, queries=6, encoder_layers=1, decoder_layers=1,
        decoder_ffn=32, points=32, conv_channels=4, ratios=(0.75, 1.0),
    )  # fmt: skip
    torch.manual_seed(0)
    model = loading.build_segmentor(Config(mmseg_config.config_dict(settings)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(("norm" in name and name.endswith("weight")) + torch.randn(p.shape))
    loading.save_segmentor(path, model, settings, {"task": "ade20k-seg", "preset": "tiny"})
    return path
