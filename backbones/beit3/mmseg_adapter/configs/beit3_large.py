"""BEiT-3 large, ViT-Adapter, Mask2Former: crop 640, sliding windows, 100 queries, 160k steps."""

from importlib import import_module

globals().update(import_module("beit3_bench.backbones.beit3.mmseg_adapter.mmseg_config").variant_config("large"))
