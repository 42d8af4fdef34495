"""BEiT-3 large, ViT-Adapter, Mask2Former: crop 896, sliding windows, 200 queries, 80k steps.

ViT-Adapter starts from its COCO-Stuff segmentor: ``load_from`` what `beit3_large_896_coco_stuff.py` trained.
"""

from importlib import import_module

globals().update(import_module("beit3_bench.backbones.beit3.mmseg_adapter.mmseg_config").variant_config("large-896"))
