"""Fine-tuning a segmentor: from a request and a recipe to a training with mmengine's Runner."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from beit3_bench.backbones.abilities import Item
from beit3_bench.backbones.archives.members import member_at
from beit3_bench.backbones.beit3.config import PRESETS, BEiT3Config
from beit3_bench.backbones.beit3.family import BEiT3Family
from beit3_bench.backbones.beit3.mmseg_adapter.settings import variant
from beit3_bench.backbones.beit3.mmseg_adapter.training import TOWER_FIELDS, TrainingJob, open_output, tower_of, train
from beit3_bench.backbones.beit3.training.segmentation import apply_recipe, check_keys, divide_batch
from beit3_bench.backbones.checkpoints import Checkpoint, read_checkpoint
from beit3_bench.backbones.environment import announced_processes
from beit3_bench.backbones.family import Asked
from beit3_bench.backbones.file_kinds import checkpoint_file
from beit3_bench.backbones.images import check_header
from beit3_bench.backbones.label_images import check_map
from beit3_bench.backbones.recipe import load_recipe
from beit3_bench.backbones.training import EngineRequest, TrainingEngine
from beit3_bench.errors import BenchError

RUNS = Path("results") / "runs"


class SegmentationEngine(TrainingEngine):
    """mmengine's Runner. Everything that can be checked before training is checked when it is made.

    Raises:
        BenchError: bad input; nothing has been written.
    """

    def __init__(self, asked: Asked, request: EngineRequest):
        self.asked, self.request = asked, request
        check_keys(request.options, asked.task)
        source = read_checkpoint(checkpoint_file(request.checkpoint)) if request.checkpoint is not None else None
        check_files([*request.training, *request.validation])
        check_suffixes(request.training)
        check_headers([*request.training, *request.validation])
        for line in source.notes if source else ():
            print(f"warning: {line}", file=sys.stderr)
        self.job, self.facts = self._job(source)

    def plan(self) -> dict[str, Any]:
        """The facts of a dry run."""
        return self.facts

    def run(self) -> dict[str, Any]:
        """Train, or go on with it; ``checkpoint`` is the best one."""
        open_output(self.job.output, self.request.resume, self.request.overwrite)
        return {"task": self.asked.task, "folder": self.facts["folder"], **train(self.job)}

    def _job(self, source: Checkpoint | None) -> tuple[TrainingJob, dict[str, Any]]:
        """The job, and facts about it."""
        task, request = self.asked.task, self.request
        preset = choose_preset(request, source)
        if source is None and preset != "tiny" and not request.from_scratch and not request.resume:
            raise BenchError(
                f"preset {preset} starts from pretrained weights; give --checkpoint FILE (see: beit3-bench models), "
                "or --from-scratch"
            )
        name = request.recipe or preset
        recipe = load_recipe(BEiT3Family(), self.asked, name, request.options)
        world = announced_processes()
        at_once, accumulate = divide_batch(recipe, world)
        settings = apply_recipe(variant(name), recipe, at_once)
        if settings.warmup_steps >= settings.steps:
            raise BenchError(
                f"{settings.warmup_steps} warm-up steps do not fit into {settings.steps} steps; lower warmup_steps, or give more steps"
            )
        shapes = BEiT3Config.preset(preset).to_dict()
        tower = tower_of(source, preset) if source else {field: shapes[field] for field in TOWER_FIELDS}
        settings = settings.replace(arch=tower)
        steps_per_epoch = -(-len(request.training) // recipe.batch)
        workers = min(4, max((os.cpu_count() or 1) // world - 1, 0)) if request.workers is None else request.workers
        job = TrainingJob(
            settings,
            request.root,
            (request.output or RUNS / f"finetune-{task}-{name}").absolute(),
            source,
            {
                "task": task,
                "head": task,
                "labels": list(self.asked.labels or ()),
                "preset": preset,
                "config": {**shapes, **tower},
                "recipe": recipe.to_dict(),
                "start": source.sha256 if source else "from scratch",
            },
            accumulate,
            request.device,
            request.dtype,
            workers,
            request.seed,
            request.resume,
            round(recipe.validate_epochs * steps_per_epoch),
            recipe.save_steps,
            recipe.log_steps,
            request.watcher,
        )
        facts = {
            "task": task,
            "preset": preset,
            "recipe": name,
            "folder": str(job.output),
            "training_samples": len(request.training),
            "validation_samples": len(request.validation),
            "processes": world,
            "global_batch": recipe.batch,
            "samples_at_once": at_once,
            "accumulate": accumulate,
            "steps": recipe.steps,
            "steps_per_epoch": steps_per_epoch,
            "start": source.path.name if source else "from scratch",
            "settings": settings.to_dict(),
        }
        return job, facts


def choose_preset(request: EngineRequest, source: Checkpoint | None) -> str:
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
    width = tower_of(source, None)["embed_dim"]
    known = source.metadata.get("preset") or next(
        (n for n, shape in PRESETS.items() if shape["embed_dim"] == width), None
    )
    if known not in PRESETS:
        raise BenchError(f"{source.path}: its size is that of no preset; give the nearest with --preset")
    return known


def check_headers(items: Sequence[Item]) -> None:
    """Raise for the first image that is none, or annotation that is no grey PNG, by their headers alone."""

    def check(item: Item) -> None:
        check_header(item.images[0])
        check_map(item.target, "annotation")

    with ThreadPoolExecutor(max_workers=4) as pool:
        for _ in pool.map(check, items):
            pass


def check_files(items: Sequence[Item]) -> None:
    """Raise for members of archives, which mmseg's data sets do not read."""
    packed = next((file for item in items for file in (*item.images, item.target) if member_at(file)), None)
    if packed is not None:
        raise BenchError(
            f"{packed}: mmsegmentation trains on files alone; unpack the archive (evaluation reads it as it is)"
        )


def check_suffixes(items: Sequence[Item]) -> None:
    """Raise for training images that mmseg's data sets pass over, since they know but one suffix of each kind."""
    odd = [file for item in items for file in (*item.images, item.target) if not file.endswith((".jpg", ".png"))]
    odd += [item.images[0] for item in items if item.images[0].endswith(".png")]
    if odd:
        raise BenchError(
            f"{len(odd)} files of the training set end otherwise than in .jpg (images) and .png (annotations), which is all "
            f"that mmsegmentation trains on: {odd[0]}; rename or convert them"
        )
