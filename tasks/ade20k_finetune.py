"""`beit3-bench finetune --task ade20k-seg`: from a request and a recipe to a training with mmengine's Runner."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.beit3.config import PRESETS, BEiT3Config
from beit3_bench.backbones.beit3.recipes import Recipe, is_recipe_key, load_recipe
from beit3_bench.backbones.environment import announced_processes
from beit3_bench.backbones.file_kinds import checkpoint_file
from beit3_bench.backbones.images import check_header
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Task
from beit3_bench.tasks.files import check_images
from beit3_bench.tasks.label_maps import check_map

if TYPE_CHECKING:
    from beit3_bench.backbones.beit3.mmseg_adapter.settings import SegmentationSettings
    from beit3_bench.backbones.beit3.mmseg_adapter.training import TrainingJob
    from beit3_bench.backbones.checkpoints import Checkpoint

TASK = "ade20k-seg"
RUNS = Path("results") / "runs"

# Fields of a recipe -> of the settings; a recipe's image size is the side of the crop.
SAME = (
    "steps", "warmup_steps", "lr", "min_lr", "betas", "eps", "weight_decay", "layer_decay", "clip_grad", "drop_path",
    "checkpoint_activations", "flip",
)  # fmt: skip
OTHERS = ("batch", "micro_batch", "image_size", "validate_epochs", "save_steps", "log_steps")


def apply_recipe(settings: SegmentationSettings, recipe: Recipe, batch: int) -> SegmentationSettings:
    """Settings with a recipe's numbers; the stride of the windows keeps its share of the crop.

    batch: samples of one forward pass on one process.
    """
    values = {name: getattr(recipe, name) for name in SAME}
    return settings.cropped(recipe.image_size).replace(**values, batch=batch)


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


def split_options(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """``-o`` options of the recipe, and of the task.

    Raises:
        BenchError: a recipe's key that means nothing to this task.
    """
    recipe = {k: v for k, v in options.items() if is_recipe_key(k)}
    for key in recipe:
        if key.replace("-", "_") not in (*SAME, *OTHERS):
            raise BenchError(
                f"recipe of {TASK}: {key} has no effect on segmentation; it takes: {', '.join((*SAME, *OTHERS))}"
            )
    return recipe, {k: v for k, v in options.items() if k not in recipe}


def choose_preset(request: Any, source: Checkpoint | None) -> str:
    """The preset asked for, or that of the recipe's name, or the checkpoint's.

    Raises:
        BenchError: unknown, or told by nothing.
    """
    named = request.preset or (request.recipe.split("-")[0] if request.recipe else None)
    if named is not None:
        BEiT3Config.preset(named)
        return named
    if source is None:
        raise BenchError(f"--preset is missing; give one of: {', '.join(PRESETS)}, or a pretrained --checkpoint")
    from beit3_bench.backbones.beit3.mmseg_adapter.training import tower_of

    width = tower_of(source, None)["embed_dim"]
    known = source.metadata.get("preset") or next(
        (n for n, shape in PRESETS.items() if shape["embed_dim"] == width), None
    )
    if known not in PRESETS:
        raise BenchError(f"{source.path}: its size is that of no preset; give the nearest with --preset")
    return known


def check_headers(examples: list[Example]) -> None:
    """Raise for the first image that is none, or annotation that is no grey PNG, by their headers alone."""

    def check(example: Example) -> None:
        check_header(example.images[0])
        check_map(example.target, "annotation")

    with ThreadPoolExecutor(max_workers=4) as pool:
        for _ in pool.map(check, examples):
            pass


def check_suffixes(examples: list[Example]) -> None:
    """Raise for training images that mmseg's `ADE20KDataset` passes over, since it knows but one suffix of each kind."""
    odd = [file for e in examples for file in (*e.images, e.target) if not file.endswith((".jpg", ".png"))]
    odd += [e.images[0] for e in examples if e.images[0].endswith(".png")]
    if odd:
        raise BenchError(
            f"{len(odd)} files of the training set end otherwise than in .jpg (images) and .png (annotations), which is all "
            f"that mmsegmentation trains on: {odd[0]}; rename or convert them"
        )


def prepare(task_class: type[Task], request: Any) -> tuple[TrainingJob, str, dict[str, Any]]:
    """The job, its recipe's name, and facts about it; everything that can be checked before training is checked.

    Raises:
        BenchError: bad input; nothing has been written.
    """
    if request.checkpoint is not None:
        checkpoint_file(request.checkpoint)
    recipe_options, task_options = split_options(request.options)
    task = task_class(request.data_root, task_options)
    training = task.examples("train")
    validation = task.examples("val")
    check_images((path for e in (*training, *validation) for path in e.images), task.data_root)
    for line in filter(None, map(task.left_out, ("train", "val"))):
        print(f"warning: {line}", file=sys.stderr)
    check_suffixes(training)
    check_headers([*training, *validation])

    import beit3_bench.backbones.beit3.mmseg_adapter  # noqa: F401  (says what to install)
    from beit3_bench.backbones.beit3.mmseg_adapter.settings import variant
    from beit3_bench.backbones.beit3.mmseg_adapter.training import TOWER_FIELDS, TrainingJob, tower_of
    from beit3_bench.backbones.checkpoints import read_checkpoint

    source = read_checkpoint(request.checkpoint) if request.checkpoint else None
    for line in source.notes if source else ():
        print(f"warning: {line}", file=sys.stderr)
    preset = choose_preset(request, source)
    if source is None and preset != "tiny" and not request.from_scratch and not request.resume:
        raise BenchError(
            f"preset {preset} starts from pretrained weights; give --checkpoint FILE (see: beit3-bench models), or --from-scratch"
        )
    name = request.recipe or preset
    recipe = load_recipe(TASK, name, recipe_options)
    world = announced_processes()
    at_once, accumulate = divide_batch(recipe, world)
    settings = apply_recipe(variant(name), recipe, at_once)
    shapes = BEiT3Config.preset(preset)
    tower = tower_of(source, preset) if source else {field: getattr(shapes, field) for field in TOWER_FIELDS}
    settings = settings.replace(arch=tower)
    steps_per_epoch = -(-len(training) // recipe.batch)
    job = TrainingJob(
        settings,
        task.root(),  # type: ignore[attr-defined]
        (request.output or RUNS / f"finetune-{TASK}-{name}").absolute(),
        source,
        {
            "task": TASK,
            "head": TASK,
            "labels": task.labels(),
            "preset": preset,
            "config": {**shapes.to_dict(), **tower},
            "recipe": recipe.to_dict(),
            "start": source.sha256 if source else "from scratch",
        },
        accumulate,
        request.device,
        request.dtype,
        request.workers if request.workers is not None else min(4, max((os.cpu_count() or 1) // world - 1, 0)),
        request.seed,
        request.resume,
        round(recipe.validate_epochs * steps_per_epoch),
        recipe.save_steps,
        recipe.log_steps,
    )
    facts = {
        "task": TASK,
        "preset": preset,
        "recipe": name,
        "folder": str(job.output),
        "training_samples": len(training),
        "validation_samples": len(validation),
        "processes": world,
        "global_batch": recipe.batch,
        "samples_at_once": at_once,
        "accumulate": accumulate,
        "steps": recipe.steps,
        "steps_per_epoch": steps_per_epoch,
        "start": source.path.name if source else "from scratch",
        "settings": settings.to_dict(),
    }
    return job, name, facts


def plan_finetune(task_class: type[Task], request: Any) -> dict[str, Any]:
    """The facts of a dry run."""
    return prepare(task_class, request)[2]


def finetune(task_class: type[Task], request: Any) -> dict[str, Any]:
    """Train, or go on with it.

    Returns:
        ``{"task", "folder", "checkpoint", "steps", "best", "seconds", ...}``; ``checkpoint`` is the best one.
    """
    job, _, facts = prepare(task_class, request)
    from beit3_bench.backbones.beit3.mmseg_adapter.training import open_output, train

    open_output(job.output, request.resume, request.overwrite)
    return {"task": TASK, "folder": facts["folder"], **train(dataclasses.replace(job))}
