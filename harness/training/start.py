"""What a training starts from: recipe, data, network and weights, all checked before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from beit3_bench.backbones.beit3.checkpoint import LoadReport, config_from_tensors, load_checkpoint
from beit3_bench.backbones.beit3.config import PRESETS, BEiT3Config
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.backbones.beit3.multiway import Encoder
from beit3_bench.backbones.beit3.recipes import Recipe, is_recipe_key, load_recipe
from beit3_bench.backbones.beit3.tokenizer import Tokenizer
from beit3_bench.backbones.beit3.training.augment import seed_of
from beit3_bench.backbones.beit3.training.groups import parameter_groups
from beit3_bench.backbones.checkpoints import Checkpoint, read_checkpoint
from beit3_bench.backbones.file_kinds import checkpoint_file
from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.errors import BenchError
from beit3_bench.harness.inputs import TOKENIZER, compare_tokenizer, open_image_cache, read_examples
from beit3_bench.harness.record.fingerprints import data_fingerprint, digest, option_fingerprints
from beit3_bench.tasks.contract import Example, Task
from beit3_bench.tasks.files import check_images

FINAL_NORM = "beit3.encoder.layer_norm."
"""Heads that bring a norm of their own have no final norm in the encoder; it may be missing or left over."""


@dataclass(frozen=True)
class FinetuneRequest:
    """What `beit3-bench finetune` was asked for.

    recipe: section of the task's recipe file; None = the preset.
    parallel: ``"ddp"``, ``"fsdp"``, or None = as `accelerate launch` announces, else ``"ddp"``.
    image_cache: folder of preprocessed images for validation, which then decodes them once; None = not kept.
    options: ``-o key=value``: fields of the recipe, and options of the task.
    """

    task: str
    data_root: Path
    preset: str | None = None
    recipe: str | None = None
    checkpoint: Path | None = None
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


@dataclass
class Start:
    """Everything that a training stands on.

    report: what the pretrained checkpoint did not have or had too much; None from scratch.
    fingerprints: what has to be the same for a training to be resumed.
    notes: what a reader of the validation scores must know, a line each.
    """

    task: Task
    recipe: Recipe
    preset: str
    config: BEiT3Config
    model: torch.nn.Module
    preprocessing: Preprocessing
    tokenizer: Tokenizer | None
    tokenizer_file: Path | None
    examples: list[Example]
    validation: list[Example]
    report: LoadReport | None
    allowed: list[str]
    source: dict[str, Any]
    fingerprints: dict[str, str]
    notes: list[str]

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer: the task's own (``parameter_groups``), or the official ones."""
        own, r = getattr(self.task, "parameter_groups", None), self.recipe
        if own is not None:
            return own(self.model, self.config, r)
        return parameter_groups(self.model, self.config.depth, r.weight_decay, r.layer_decay, r.head_lr_factor)

    def left_out(self) -> list[str]:
        """Files among the images that are no samples, a line for each split."""
        lines = [self.task.left_out(split) for split in ("train", self.recipe.validation_split)]
        return [line for line in lines if line]

    def metadata(self, step: int) -> dict[str, Any]:
        """What a fine-tuned checkpoint carries, so that `run --checkpoint` needs no other flag; plain values only."""
        task = self.task
        vocabulary = getattr(task, "vocabulary_fingerprint", None)
        return {
            "task": task.name,
            "head": task.head,
            "preset": self.preset,
            "config": self.config.replace(drop_path_rate=0.0, checkpoint_activations=False).to_dict(),
            "preprocessing": {
                k: list(v) if isinstance(v, tuple) else v for k, v in self.preprocessing.to_dict().items()
            },
            "tokenizer": self.tokenizer.fingerprint if self.tokenizer else None,
            "head_arguments": task.head_arguments(),
            "vocabulary": vocabulary() if vocabulary else None,
            "labels": task.labels(),
            "recipe": self.recipe.to_dict(),
            "source": self.source,
            "data": self.fingerprints["data"],
            "step": step,
        }


def choose_preset(request: FinetuneRequest, checkpoint: Checkpoint | None) -> str:
    """The preset asked for, or the checkpoint's own.

    Raises:
        BenchError: unknown, or neither given nor told by the checkpoint.
    """
    if request.preset is not None:
        BEiT3Config.preset(request.preset)
        return request.preset
    if checkpoint is None:
        raise BenchError(f"--preset is missing; give one of: {', '.join(PRESETS)}, or a pretrained --checkpoint")
    known = checkpoint.metadata.get("preset")
    if known not in PRESETS:
        config = config_from_tensors(checkpoint.tensors, str(checkpoint.path), num_heads=_heads(checkpoint))
        known = next((name for name, shape in PRESETS.items() if shape["embed_dim"] == config.embed_dim), None)
    if known is None:
        raise BenchError(f"{checkpoint.path}: its size is that of no preset; give the nearest with --preset")
    return known


def _heads(checkpoint: Checkpoint) -> int | None:
    return checkpoint.metadata.get("config", {}).get("num_heads")


def split_options(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """``-o`` options of the recipe, and of the task (an unknown one is the task's, which knows the nearest name)."""
    recipe = {k: v for k, v in options.items() if is_recipe_key(k)}
    return recipe, {k: v for k, v in options.items() if k not in recipe}


def make_task(task_class: type[Task], request: FinetuneRequest, task_options: Mapping[str, str]) -> Task:
    """The task, with options that may belong to the recipe told apart in the error."""
    try:
        return task_class(request.data_root, task_options)
    except BenchError as error:
        if "has no option" in str(error):
            raise BenchError(
                f"{error}; recipe keys: see beit3-bench finetune --task {request.task} --dry-run"
            ) from error
        raise


def find_tokenizer(task: Task, request: FinetuneRequest, recipe: Recipe) -> tuple[Tokenizer | None, Path | None]:
    """The tokenizer named, or the one beside the checkpoint or the data; also for image tasks, so that it stays beside
    their checkpoints.

    Raises:
        BenchError: a task with text finds none.
    """
    places = [request.tokenizer] if request.tokenizer else []
    if not places:
        folders = [request.checkpoint.parent] if request.checkpoint else []
        places = [folder / TOKENIZER for folder in (*folders, request.data_root)]
    path = next((p for p in places if p is not None and p.is_file()), None)
    if path is None:
        if request.tokenizer is not None:
            Tokenizer.load(request.tokenizer)  # raises, naming the file
        if task.uses_text:
            told = " or ".join(str(p) for p in places)
            raise BenchError(
                f"task {task.name} needs the tokenizer and there is no {told}; give it with --tokenizer FILE"
            )
        return None, None
    return Tokenizer.load(path, max_tokens=recipe.text_tokens), path


def model_config(
    request: FinetuneRequest, preset: str, recipe: Recipe, checkpoint: Checkpoint | None, tokenizer: Tokenizer | None
) -> BEiT3Config:
    """Shapes from the checkpoint, or from preset and tokenizer; size, drop path and checkpointing from the recipe."""
    chosen = {
        "image_size": recipe.image_size,
        "drop_path_rate": recipe.drop_path,
        "checkpoint_activations": recipe.checkpoint_activations,
    }
    if checkpoint is None:
        vocabulary = {"vocab_size": tokenizer.num_pieces} if tokenizer else {}
        return BEiT3Config.preset(preset, **vocabulary, **chosen)
    origin = str(checkpoint.path)
    own = checkpoint.metadata.get("config")
    shapes = config_from_tensors(
        checkpoint.tensors, origin, None if own else preset, recipe.image_size, own["num_heads"] if own else None
    )
    config = BEiT3Config(**{**own, **chosen}) if own else shapes.replace(**chosen)
    largest = tokenizer.num_pieces if tokenizer else 0
    if largest > config.vocab_size:
        raise BenchError(
            f"{origin}: has {config.vocab_size} token embeddings, the tokenizer has {largest} ids; give the tokenizer of this checkpoint"
        )
    return config


def allowed_names(head: str, names: set[str], tensors: Mapping[str, Any]) -> list[str]:
    """Tensors that may differ between a pretrained checkpoint and a task's network: everything outside ``beit3.``,
    and the encoder's final norm.
    """
    present = {name.removeprefix("module.") for name in tensors}
    return sorted(n for n in names | present if not n.startswith("beit3.") or n.startswith(FINAL_NORM))


SCRATCH_POSITION_STD = 0.1


@torch.no_grad()
def initialise_from_scratch(model: torch.nn.Module) -> None:
    """Weights that can learn without pretraining: Glorot-uniform matrices and small positions.

    The official initialisation is made to be overwritten by pretrained weights: its positions, N(0, 1), drown patches
    and words, and its linear layers (standard deviation 0.01) pass on next to nothing, so that training from it stands still.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, Encoder):
            for table in module.embed_positions.parameters():
                torch.nn.init.normal_(table, std=SCRATCH_POSITION_STD)


def initial_model(
    task: Task, config: BEiT3Config, checkpoint: Checkpoint | None, seed: int, glorot: bool = False
) -> tuple[torch.nn.Module, LoadReport | None, list[str]]:
    """The task's network, from seeded random weights, with the checkpoint's over them.

    glorot: `initialise_from_scratch` for what the checkpoint lacks; always so without a checkpoint.

    Returns:
        The model; what was missing and unexpected; the names that were allowed to be.

    Raises:
        BenchError: the backbone does not fit.
    """
    from beit3_bench.backbones.beit3.checkpoint import official_names

    torch.manual_seed(seed_of(seed, "weights"))
    model = build_model(task.head, config, **task.head_arguments())
    if checkpoint is None or glorot:
        initialise_from_scratch(model)
    if checkpoint is None:
        return model, None, []
    names = {official for group in official_names(model).values() for official in group}
    allowed = allowed_names(task.head, names, checkpoint.tensors)
    report = load_checkpoint(model, checkpoint.tensors, allowed, str(checkpoint.path))
    report.notes += checkpoint.notes
    return model, report, [n for n in allowed if n in report.missing or n in report.unexpected]


def prepare(request: FinetuneRequest, task_class: type[Task], shapes_only: bool = False) -> Start:
    """Read and check everything that a training needs.

    shapes_only: the network has shapes but no values (for a dry run).

    Raises:
        BenchError: bad input; nothing has been written.
    """
    if request.checkpoint is not None:
        request = dataclasses.replace(request, checkpoint=checkpoint_file(request.checkpoint))
    checkpoint = read_checkpoint(request.checkpoint) if request.checkpoint else None
    preset = choose_preset(request, checkpoint)
    if checkpoint is None and preset != "tiny" and not request.from_scratch:
        raise BenchError(
            f"preset {preset} starts from pretrained weights; give --checkpoint FILE (see: beit3-bench models), or --from-scratch"
        )
    recipe_options, task_options = split_options(request.options)
    recipe = load_recipe(request.task, request.recipe or preset, recipe_options)
    task = make_task(task_class, request, {**recipe.options, **task_options})
    tokenizer, tokenizer_file = find_tokenizer(task, request, recipe)
    trained = checkpoint.metadata.get("tokenizer") if checkpoint else None
    if tokenizer and trained and trained != tokenizer.fingerprint:
        raise BenchError(
            f"{request.checkpoint}: was trained with another tokenizer than {tokenizer_file}; give its own with --tokenizer"
        )
    examples = task.training_examples()
    if not examples:
        raise BenchError(
            f"{request.data_root}: no training samples for {task.name}; check the files (see: beit3-bench tasks {task.name})"
        )
    check_images((path for e in examples for path in e.images), task.data_root)
    validation, _ = read_examples(task, _validation_split(task, recipe))
    notes = task.data_notes(recipe.validation_split)
    with torch.device("meta") if shapes_only else nullcontext():
        own = getattr(task, "training_model", None)  # a task with a network of its own
        if own is not None:
            torch.manual_seed(seed_of(request.seed, "weights"))
            model, config, report, allowed = own(preset, recipe, checkpoint)
        else:
            config = model_config(request, preset, recipe, checkpoint, tokenizer)
            if checkpoint and tokenizer and tokenizer_file and task.uses_text:
                compare_tokenizer(tokenizer, tokenizer_file, config, checkpoint.metadata, checkpoint.path)
            model, report, allowed = initial_model(task, config, checkpoint, request.seed, recipe.glorot)
    notes = [*notes, *(report.notes if report else [])]
    prepared = getattr(task, "training_preprocessing", None)
    preprocessing = prepared(recipe.image_size) if prepared else Preprocessing.for_head(task.head, recipe.image_size)
    task.bind(preprocessing, tokenizer)
    if not shapes_only:
        task.image_cache = open_image_cache(request.image_cache, preprocessing)
    task.configure_training(recipe.to_dict())
    task.tokenize(examples)
    task.tokenize(validation)
    labels = task.labels()
    fingerprints = {
        "task": task.name,
        "data": data_fingerprint(examples, task.data_root),
        "validation data": data_fingerprint(validation, task.data_root),
        "model": digest(config.replace(checkpoint_activations=False).to_dict()),
        "tokenizer": tokenizer.fingerprint if tokenizer else "none",
        "start": checkpoint.sha256 if checkpoint else "from scratch",
        **option_fingerprints(vars(task.options)),
        "options": digest(vars(task.options)),
        **({task.outputs: digest(labels)} if labels is not None else {}),
        "dtype": request.dtype,
    }
    source = {
        "checkpoint": checkpoint.path.name if checkpoint else None,
        "sha256": checkpoint.sha256 if checkpoint else None,
        "missing": list(report.missing) if report else [],
        "unexpected": list(report.unexpected) if report else [],
        "resized": dict(report.resized) if report else {},
    }
    return Start(
        task, recipe, preset, config, model, preprocessing, tokenizer, tokenizer_file, examples, validation, report,
        allowed, source, fingerprints, notes,
    )  # fmt: skip


def _validation_split(task: Task, recipe: Recipe) -> str:
    if recipe.validation_split not in task.splits:
        raise BenchError(
            f"task {task.name} has no split {recipe.validation_split!r} to validate on; "
            f"give one with -o validation_split=NAME ({', '.join(task.splits)})"
        )
    return recipe.validation_split
