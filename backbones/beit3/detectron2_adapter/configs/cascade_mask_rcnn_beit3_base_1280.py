"""Cascade Mask R-CNN on BEiT-3 base: fine-tuning at 1280 pixels from a detector trained at 1024 (``train.init_checkpoint``)."""

from beit3_bench.backbones.beit3.detectron2_adapter.recipe import training_config

model, dataloader, optimizer, lr_multiplier, train = training_config(
    "base", "cascade_mask_rcnn", image_size=1280, lr=5e-5, epochs=20
)
