"""Mask R-CNN on BEiT-3 giant: fine-tuning at 1280 pixels from an Objects365 detector (``train.init_checkpoint``), as the paper."""

from beit3_bench.backbones.beit3.detectron2_adapter.recipe import training_config

model, dataloader, optimizer, lr_multiplier, train = training_config(
    "giant", "mask_rcnn", image_size=1280, lr=5e-5, epochs=20
)
