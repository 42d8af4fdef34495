"""What the training of a native head starts from: tokenizer, shapes, and pretrained weights under new heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit3_bench.backbones.beit3.checkpoint import LoadReport, config_from_tensors, load_checkpoint, official_names
from beit3_bench.backbones.beit3.config import PRESETS, BEiT3Config
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.backbones.beit3.multiway import Encoder
from beit3_bench.backbones.beit3.tokenizer import Tokenizer
from beit3_bench.backbones.beit3.weights import TOKENIZER_FILE
from beit3_bench.backbones.checkpoints import Checkpoint
from beit3_bench.backbones.recipe import Recipe
from beit3_bench.backbones.seeds import seed_of
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.training import TrainingOptions
from beit3_bench.errors import BenchError

FINAL_NORM = "beit3.encoder.layer_norm."
"""Heads that bring a norm of their own have no final norm in the encoder; it may be missing or left over."""
SCRATCH_POSITION_STD = 0.1


def preset_of_source(source: Source) -> str | None:
    """The preset of a pretrained file: what it says, or the first of its width; None where that is of no preset.

    Raises:
        BenchError: not a BEiT-3.
    """
    checkpoint = source.checkpoint
    known = checkpoint.metadata.get("preset")
    if known in PRESETS:
        return known
    config = config_from_tensors(checkpoint.tensors, str(checkpoint.path), num_heads=_heads(checkpoint))
    return next((name for name, shape in PRESETS.items() if shape["embed_dim"] == config.embed_dim), None)


def _heads(checkpoint: Checkpoint) -> int | None:
    return checkpoint.metadata.get("config", {}).get("num_heads")


def find_tokenizer(task: str, options: TrainingOptions, needed: bool) -> tuple[Tokenizer | None, Path | None]:
    """The tokenizer named, or the one beside the checkpoint or the data; also for heads without text, so that it stays beside
    their checkpoints.

    needed: whether the head reads or writes text.

    Raises:
        BenchError: a head with text finds none.
    """
    places = [options.tokenizer] if options.tokenizer else []
    if not places:
        folders = [options.source.path.parent if options.source else None, options.data_root]
        places = [folder / TOKENIZER_FILE for folder in folders if folder is not None]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        if options.tokenizer is not None:
            Tokenizer.load(options.tokenizer)  # raises, naming the file
        if needed:
            searched = " or ".join(map(str, places))
            raise BenchError(
                f"task {task} needs the tokenizer and there is no {searched}; give it with --tokenizer FILE"
            )
        return None, None
    return Tokenizer.load(path, max_tokens=options.recipe.text_tokens), path


def model_config(
    recipe: Recipe, preset: str, checkpoint: Checkpoint | None, tokenizer: Tokenizer | None
) -> BEiT3Config:
    """Shapes from the checkpoint, or from preset and tokenizer; size, drop path and checkpointing from the recipe.

    Raises:
        BenchError: the checkpoint is no BEiT-3, or its token table is smaller than the tokenizer.
    """
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


def allowed_names(names: set[str], tensors: Mapping[str, Any]) -> list[str]:
    """Tensors that may differ between a pretrained checkpoint and a head: everything outside ``beit3.``, and the encoder's
    final norm.

    names: of the head's tensors.
    """
    present = {name.removeprefix("module.") for name in tensors}
    return sorted(n for n in names | present if not n.startswith("beit3.") or n.startswith(FINAL_NORM))


@torch.no_grad()
def initialise_from_scratch(model: nn.Module) -> None:
    """Weights that can learn without pretraining: Glorot-uniform matrices and small positions.

    The official initialisation is made to be overwritten by pretrained weights: its positions, N(0, 1), drown patches
    and words, and its linear layers (standard deviation 0.01) pass on next to nothing, so that training from it stands still.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, Encoder):
            for table in module.embed_positions.parameters():
                nn.init.normal_(table, std=SCRATCH_POSITION_STD)


@dataclass
class InitialModel:
    """A network to be trained.

    report: what the checkpoint did not have or had too much; None from scratch.  new: names of these, as was allowed.
    """

    model: nn.Module
    report: LoadReport | None
    new: list[str]


def initial_model(
    head: str,
    arguments: Mapping[str, Any],
    config: BEiT3Config,
    checkpoint: Checkpoint | None,
    seed: int,
    glorot: bool = False,
) -> InitialModel:
    """A head's network, from seeded random weights, with the checkpoint's over them.

    Args:
        head: a key of `models.HEADS`.  arguments: of the head.
        glorot: `initialise_from_scratch` for what the checkpoint lacks; always so without a checkpoint.

    Raises:
        BenchError: the backbone does not fit.
    """
    torch.manual_seed(seed_of(seed, "weights"))
    model = build_model(head, config, **arguments)
    if checkpoint is None or glorot:
        initialise_from_scratch(model)
    if checkpoint is None:
        return InitialModel(model, None, [])
    names = {official for group in official_names(model).values() for official in group}
    allowed = allowed_names(names, checkpoint.tensors)
    report = load_checkpoint(model, checkpoint.tensors, allowed, str(checkpoint.path))
    report.notes += checkpoint.notes
    return InitialModel(model, report, [n for n in allowed if n in report.missing or n in report.unexpected])
