"""From a recipe to the settings of a segmentor's training with mmengine; needs nothing of mmsegmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from beit3_bench.backbones.recipe import Recipe
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from beit3_bench.backbones.beit3.mmseg_adapter.settings import SegmentationSettings

# Fields of a recipe -> of the settings; a recipe's image size is the side of the crop.
SAME = (
    "steps", "warmup_steps", "lr", "min_lr", "betas", "eps", "weight_decay", "layer_decay", "clip_grad", "drop_path",
    "checkpoint_activations", "flip",
)  # fmt: skip
OTHERS = ("batch", "micro_batch", "image_size", "validate_epochs", "save_steps", "log_steps")


def check_keys(options: Mapping[str, str], task: str) -> None:
    """Raise for a recipe's key that means nothing to a training with mmengine."""
    for key in options:
        if key.replace("-", "_") not in (*SAME, *OTHERS):
            raise BenchError(
                f"recipe of {task}: {key} has no effect on segmentation; it takes: {', '.join((*SAME, *OTHERS))}"
            )


def apply_recipe(settings: SegmentationSettings, recipe: Recipe, batch: int) -> SegmentationSettings:
    """Settings with a recipe's numbers; the stride of the windows keeps its share of the crop.

    batch: samples of one forward pass on one process.
    """
    given = dataclasses.asdict(recipe)
    return settings.cropped(recipe.image_size).replace(**{name: given[name] for name in SAME}, batch=batch)


def divide_batch(recipe: Recipe, world: int) -> tuple[int, int]:
    """(samples of one forward pass on one process, passes per step).

    Raises:
        BenchError: it does not divide.
    """
    if recipe.batch % world:
        raise BenchError(f"batch {recipe.batch} does not divide over {world} processes; give another with -o batch=N")
    own = recipe.batch // world
    at_once = recipe.micro_batch or own
    if own % at_once:
        raise BenchError(
            f"micro_batch {at_once} does not divide the {own} samples of a process; give another with -o micro_batch=N"
        )
    return at_once, own // at_once
