"""Cascade R-CNN on BEiT-3 base: boxes of Objects365 at 1024 pixels: the paper's giant schedule, ViTDet's rates."""

from beit3_bench.backbones.beit3.detectron2_adapter.recipe import training_config

model, dataloader, optimizer, lr_multiplier, train = training_config(
    "base", "cascade_mask_rcnn", epochs=15, dataset="objects365"
)
