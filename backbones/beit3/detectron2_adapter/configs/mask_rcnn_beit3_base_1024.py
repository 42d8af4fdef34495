"""Mask R-CNN on BEiT-3 base: 1024 pixels, large-scale jitter, 100 epochs (ViTDet)."""

from beit3_bench.backbones.beit3.detectron2_adapter.recipe import training_config

model, dataloader, optimizer, lr_multiplier, train = training_config("base", "mask_rcnn")
