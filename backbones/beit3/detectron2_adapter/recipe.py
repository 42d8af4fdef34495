"""Schedules, learning rates and data of the published recipes, as the nodes that detectron2's training tool expects."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import DictConfig

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.plan import DetectorPlan, strided
from beit3_bench.backbones.beit3.detection.recipe import layer_decay_factor
from beit3_bench.backbones.beit3.detectron2_adapter.data import register_coco
from beit3_bench.backbones.beit3.detectron2_adapter.lazy import model_config
from beit3_bench.errors import requires

BATCH = 64
IMAGES = {"coco": 118_000, "objects365": 1_742_289}
"""Training images: ViTDet's count of COCO 2017; Objects365 v2 (the BEiT-3 paper does not say which release)."""
CLASSES = {"coco": 80, "objects365": 365}
LAYER_DECAY = {"base": 0.7, "large": 0.8, "giant": 0.9}
DROP_PATH = {"base": 0.1, "large": 0.4, "giant": 0.6}
"""base and large: ViTDet; giant: BEiT-3 paper."""
DATA_ROOT = "BEIT3_BENCH_COCO"
OBJECTS365_ROOT = "BEIT3_BENCH_OBJECTS365"


def lr_factor(name: str, rate: float, num_layers: int) -> float:
    """detectron2's ``lr_factor_func``: factor of the learning rate by parameter name, also behind a DDP wrapper."""
    return layer_decay_factor(name.removeprefix("module."), rate, num_layers)


def training_config(
    preset: str,
    head: str,
    image_size: int = 1024,
    lr: float = 1e-4,
    epochs: float = 100,
    dataset: str = "coco",
    **plan: Any,
) -> tuple[DictConfig, DictConfig, DictConfig, DictConfig, DictConfig]:
    """``model, dataloader, optimizer, lr_multiplier, train`` of a LazyConfig file.

    100 epochs of COCO are 184,375 steps of 64 images; the rate drops to a tenth at 8/9 and again at 26/27 of them.
    Data sets are detectron2's ``coco_2017_train`` and ``coco_2017_val``, or those below the folder that the environment
    variable BEIT3_BENCH_COCO names. Objects365 has boxes only, so that its detectors have no mask head; its folder, in
    COCO's layout, is that of BEIT3_BENCH_OBJECTS365, or ``objects365_train`` and ``objects365_val`` are registered by you.

    Args:
        preset: base, large or giant.
        dataset: coco or objects365.
        plan: further fields of `DetectorPlan`, such as ``num_classes``.
    """
    runtime = {"drop_path_rate": DROP_PATH[preset], "checkpoint_activations": preset == "giant"}
    tower = strided(BEiT3Config.preset(preset), **runtime)
    plan = {"num_classes": CLASSES[dataset], "with_masks": dataset == "coco", **plan}
    model = model_config(DetectorPlan(head=head, image_size=image_size, **plan), tower)

    train = model_zoo.get_config("common/train.py").train
    train.amp.enabled = True
    train.ddp.fp16_compression = True
    train.max_iter = round(epochs * IMAGES[dataset] / BATCH)
    lr_multiplier = L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[1.0, 0.1, 0.01],
            milestones=[round(train.max_iter * 8 / 9), round(train.max_iter * 26 / 27)],
            num_updates=train.max_iter,
        ),
        warmup_length=250 / train.max_iter,
        warmup_factor=0.001,
    )
    optimizer = model_zoo.get_config("common/optim.py").AdamW
    optimizer.lr = lr
    optimizer.params.lr_factor_func = partial(lr_factor, rate=LAYER_DECAY[preset], num_layers=tower.depth)
    optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}
    return model, jitter_loader(image_size, dataset, plan["with_masks"]), optimizer, lr_multiplier, train


def jitter_loader(image_size: int, dataset: str = "coco", with_masks: bool = True) -> DictConfig:
    """Large-scale jitter for training; longer side ``image_size`` for evaluation.

    Raises:
        BenchError: shapely, with which detectron2 crops polygons, is not installed.
    """
    requires("shapely", "the large-scale jitter of detectron2's launcher")
    dataloader = model_zoo.get_config("common/data/coco.py").dataloader
    root = os.environ.get(DATA_ROOT if dataset == "coco" else OBJECTS365_ROOT)
    if root:
        names = register_coco(root, f"beit3_bench_{dataset}")
        dataloader.train.dataset.names, dataloader.test.dataset.names = names["train2017"], names["val2017"]
    elif dataset == "objects365":
        dataloader.train.dataset.names, dataloader.test.dataset.names = "objects365_train", "objects365_val"
    mapper = dataloader.train.mapper
    mapper.augmentations = [
        L(T.RandomFlip)(horizontal=True),
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=image_size, target_width=image_size),
        L(T.FixedSizeCrop)(crop_size=[image_size, image_size], pad=False),
    ]
    mapper.image_format = "RGB"
    mapper.use_instance_mask = mapper.recompute_boxes = with_masks
    dataloader.train.total_batch_size = BATCH
    dataloader.test.mapper.augmentations = [
        L(T.ResizeShortestEdge)(short_edge_length=image_size, max_size=image_size),
    ]
    return dataloader
