"""What a training starts from: recipe, data, network and weights, all checked before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from beit3_bench.backbones.family import Family
from beit3_bench.backbones.recipe import Recipe, recipe_keys
from beit3_bench.backbones.registry import DEFAULT_FAMILY, find_family, get_family, locate, split_source
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.training import Training, TrainingOptions
from beit3_bench.errors import BenchError
from beit3_bench.harness.progress import Reporting
from beit3_bench.harness.reading import read_split
from beit3_bench.harness.record.fingerprints import data_fingerprint, digest, option_fingerprints
from beit3_bench.harness.reuse.image_cache import ImageCache
from beit3_bench.harness.training.recipes import asked_of, load_recipe, split_options
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.contract import Split, Task
from beit3_bench.tasks.files import check_images


@dataclass(frozen=True)
class FinetuneRequest:
    """What `beit3-bench finetune` was asked for.

    preset: architecture, as ``[FAMILY:]NAME``; the family counts from scratch.
    recipe: name of the hyper-parameters; None = the preset.
    checkpoint: pretrained weights, as ``[FAMILY:]SOURCE``.
    parallel: ``"ddp"``, ``"fsdp"``, or None = as `accelerate launch` announces, else ``"ddp"``.
    image_cache: folder of preprocessed images for validation, which then decodes them once; None = not kept.
    options: ``-o key=value``: fields of the recipe, and options of the task.
    reporting: how progress is told.  log_to: names of `tracking.TRACKERS`; none = TensorBoard where it is installed.
    """

    task: str
    data_root: Path
    preset: str | None = None
    recipe: str | None = None
    checkpoint: str | Path | None = None
    tokenizer: Path | None = None
    output: Path | None = None
    device: str = "auto"
    dtype: str = "fp32"
    parallel: str | None = None
    workers: int | None = None
    image_cache: Path | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    from_scratch: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    reporting: Reporting = field(default=Reporting(), repr=False)
    log_to: tuple[str, ...] = field(default=(), repr=False)


class Origin(NamedTuple):
    """The family that is trained, its architecture where it was named, and its pretrained weights; None from scratch."""

    family: Family
    preset: str | None
    source: Source | None


@dataclass
class Start:
    """Everything that a training stands on.

    training_split: what is learned, by `Task.training_item`.  validation_split: what chooses the best checkpoint.
    fingerprints: what has to be the same for a training to be resumed.
    notes: what a reader of the validation scores must know, a line each.
    """

    task: Task
    recipe: Recipe
    preset: str
    training: Training
    training_split: Split
    validation_split: Split
    fingerprints: dict[str, str]
    notes: list[str]

    def left_out(self) -> list[str]:
        """Files among the images that are no samples, a line for each split."""
        return [split.left_out for split in (self.training_split, self.validation_split) if split.left_out]

    def metadata(self, step: int) -> dict[str, Any]:
        """What a fine-tuned checkpoint carries, so that `run --checkpoint` needs no other flag; plain values only."""
        return {
            "task": self.task.name,
            **self.training.metadata(),
            "recipe": self.recipe.to_dict(),
            "source": self.training.start,
            "data": self.fingerprints["data"],
            "step": step,
        }


def find_origin(request: FinetuneRequest, task_class: type[Task]) -> Origin:
    """The family of the checkpoint, or from scratch the one that stands before the preset.

    Raises:
        BenchError: no such file or family, a file of none, or a family that cannot be asked what the task asks.
    """
    origin, ability = _origin(request, task_class), task_class.ability
    if ability not in origin.family.abilities:
        offered = ", ".join(other.word for other in origin.family.abilities)
        raise BenchError(
            f"task {request.task} asks {ability.word}, and {origin.family.title} models offer {offered}; start from a model of "
            "another family"
        )
    return origin


def _origin(request: FinetuneRequest, task_class: type[Task]) -> Origin:
    named, preset = split_source(request.preset) if request.preset is not None else (None, None)
    if request.checkpoint is None:
        return Origin(named or get_family(DEFAULT_FAMILY), preset, None)
    family, source = locate(request.checkpoint)
    return Origin(family or named or find_family(source, task_class.ability), preset, source)


def choose_preset(origin: Origin, from_scratch: bool) -> str:
    """The preset asked for, or the checkpoint's own; empty for a family whose architectures have no names.

    Raises:
        BenchError: unknown, or neither given nor shown by the checkpoint; one that starts from pretrained weights, and there are none.
    """
    family, preset, source = origin
    known = family.presets()
    if preset is None:
        if source is None:
            raise BenchError(f"--preset is missing; give one of: {', '.join(known)}, or a pretrained --checkpoint")
        preset = family.preset_of(source)
        if preset is None and not known:
            return ""
        if preset is None:
            raise BenchError(f"{source.path}: its size is that of no preset; give the nearest with --preset")
    elif preset not in known:
        hint = (
            did_you_mean(preset, known)
            if known
            else f"architectures of {family.title} have no names; leave out --preset"
        )
        raise BenchError(f"no preset {preset!r}; {hint}")
    if source is None and preset not in family.scratch_presets and not from_scratch:
        raise BenchError(
            f"preset {preset} starts from pretrained weights; give --checkpoint FILE (see: beit3-bench models), or --from-scratch"
        )
    return preset


def make_task(task_class: type[Task], request: FinetuneRequest, task_options: Mapping[str, str]) -> Task:
    """The task with its options.

    Raises:
        BenchError: a value that does not convert; an option that neither the task nor a recipe has, with the nearest of both.
    """
    own = {field.name for field in dataclasses.fields(task_class.Options)}
    for key in task_options:
        if (name := key.replace("-", "_")) not in own:
            see = f"see all keys of the recipe with: beit3-bench finetune --task {request.task} --dry-run"
            hint = did_you_mean(name, [*recipe_keys(), *sorted(own)], otherwise=see)
            raise BenchError(f"task {request.task} and its recipe have no option {key!r}; {hint}")
    return task_class(request.data_root, task_options)


def read_training_split(task: Task) -> Split:
    """The samples to learn from, whose image files are there.

    Raises:
        BenchError: from the readers; no samples, or missing image files.
    """
    split = task.training_split()
    if not split.examples:
        raise BenchError(
            f"{task.data_root}: no training samples for {task.name}; check the files (see: beit3-bench tasks {task.name})"
        )
    check_images((path for e in split.examples for path in e.images), task.data_root)
    return split


def read_validation_split(task: Task, name: str) -> Split:
    """The split that chooses the best checkpoint, whose image files are there.

    Raises:
        BenchError: from the readers; a split that the task does not have, an empty one, or missing image files.
    """
    if name not in task.splits:
        raise BenchError(
            f"task {task.name} has no split {name!r} to validate on; "
            f"give one with -o validation_split=NAME ({', '.join(task.splits)})"
        )
    split = read_split(task, name)
    check_images((path for e in split.examples for path in e.images), task.data_root)
    return split


def prepare(
    request: FinetuneRequest, task_class: type[Task], shapes_only: bool = False, origin: Origin | None = None
) -> Start:
    """Read and check everything that a training needs.

    Args:
        shapes_only: the network has shapes but no values (for a dry run).
        origin: of the request, where it was found before.

    Raises:
        BenchError: bad input; nothing has been written.
    """
    origin = origin or find_origin(request, task_class)
    family = origin.family
    preset = choose_preset(origin, request.from_scratch)
    recipe_options, task_options = split_options(request.options)
    recipe = load_recipe(family, task_class, request.recipe or preset, recipe_options)
    task = make_task(task_class, request, {**recipe.options, **task_options})
    family.check(asked_of(task_class, vars(task.options)))
    learned = read_training_split(task)
    validation = read_validation_split(task, recipe.validation_split)
    asked = task.asked(learned)
    training = family.start_training(
        asked,
        TrainingOptions(recipe, preset, origin.source, request.tokenizer, request.data_root, request.seed, shapes_only),
    )
    training.ability.labels = asked.labels
    training.prepare([task.training_item(example) for example in learned.examples])
    reader = training.ability.reader
    reader.prepare([task.item(example) for example in validation.examples])
    if request.image_cache is not None and reader.transform is not None and not shapes_only:
        reader.transform = ImageCache(request.image_cache, reader.transform)
    options = {**vars(task.options), **training.resolved}
    fingerprints = {
        "task": task.name,
        "data": data_fingerprint(learned.examples, task.data_root),
        "validation data": data_fingerprint(validation.examples, task.data_root),
        **training.fingerprints,
        **option_fingerprints(options),
        "options": digest(options),
        **({task.outputs: digest(learned.labels)} if learned.labels is not None else {}),
        "dtype": request.dtype,
    }
    notes = [*validation.notes, *learned.notes, *training.notes]
    return Start(task, recipe, preset, training, learned, validation, fingerprints, notes)
