"""A tiny BEiT-3 and a small Mask2Former for the tiny world."""

from importlib import import_module

globals().update(import_module("beit3_bench.backbones.beit3.mmseg_adapter.mmseg_config").variant_config("tiny"))
