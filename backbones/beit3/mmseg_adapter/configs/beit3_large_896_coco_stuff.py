"""BEiT-3 large, ViT-Adapter, Mask2Former on COCO-Stuff 164k: what `beit3_large_896.py` starts from in ViT-Adapter."""

from importlib import import_module

globals().update(
    import_module("beit3_bench.backbones.beit3.mmseg_adapter.mmseg_config").variant_config("large-896-coco-stuff")
)
