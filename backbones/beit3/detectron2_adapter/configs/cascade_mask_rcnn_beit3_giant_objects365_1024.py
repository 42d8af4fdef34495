"""Cascade R-CNN on BEiT-3 giant: intermediate fine-tuning on the boxes of Objects365 at 1024 pixels, as the paper."""

from beit3_bench.backbones.beit3.detectron2_adapter.recipe import training_config

model, dataloader, optimizer, lr_multiplier, train = training_config(
    "giant", "cascade_mask_rcnn", epochs=15, dataset="objects365"
)
