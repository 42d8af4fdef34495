"""A ViLT with a head from a file, as an ability."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from beit3_bench.backbones.abilities import Ability, Answers, Classifies, Matches, Patches
from beit3_bench.backbones.allocation import allocate
from beit3_bench.backbones.described import described, model_of_images, random_values
from beit3_bench.backbones.family import Asked, LoadOptions, Model, SecondPass
from beit3_bench.backbones.held_heads import check_head, check_outputs
from beit3_bench.backbones.patch_features import as_asked, input_side
from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.backbones.released import find_released
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.strict_loading import Filled, filled_module, initialise
from beit3_bench.backbones.vilt.images import AspectKept
from beit3_bench.backbones.vilt.model import Ranking, ViLT, ViLTConfig, VisualQuestionAnswering, VisualReasoning
from beit3_bench.backbones.vilt.native import (
    AnswerClassifier,
    Matcher,
    NativeAbility,
    PairClassifier,
    PairReader,
    PatchReader,
    PatchTokens,
)
from beit3_bench.backbones.wordpiece import compare_vocabulary, find_vocabulary
from beit3_bench.errors import BenchError

IGNORED = ("text_embeddings.position_ids", "mlm_score.*", "itm_score.*", "rank_output.*")
"""An index buffer, and heads beside the one that is asked."""


@dataclass(frozen=True)
class Head:
    """module: the network.  ability, reader: how it is asked.  prefix: of the names of its tensors.  token_types: rows that it reads.
    protocol: as the card says it.
    """

    module: type[VisualQuestionAnswering | VisualReasoning | Ranking]
    ability: type[NativeAbility]
    prefix: str
    token_types: int
    reader: type[PatchReader] = PatchReader
    protocol: str = "classification"


HEADS: dict[str, Head] = {
    "vqav2": Head(VisualQuestionAnswering, AnswerClassifier, "vqa_classifier.", 2),
    "nlvr2": Head(VisualReasoning, PairClassifier, "nlvr2_classifier.", 3),
    "retrieval": Head(Ranking, Matcher, "rank_output.", 2, PairReader, "matching"),
}
MATCHING = "itm_score.fc."
"""Names of the pre-trained head that tells pairs that do not belong together (row 0) from those that do (row 1)."""


def head_of(asked: Asked) -> str:
    """The head (a key of `HEADS`) that answers what is asked.

    Raises:
        BenchError: there is none, or a second pass over some candidates is asked for.
    """
    heads: dict[tuple[type[Ability], int, bool], str] = {
        (Answers, 1, True): "vqav2",
        (Classifies, 2, True): "nlvr2",
        (Matches, 1, True): "retrieval",
    }
    head = heads.get((asked.ability, asked.images, asked.text))
    if head is None:
        raise BenchError(
            f"task {asked.task}: ViLT has no head for it; it answers questions about an image (vqav2), judges a "
            "text about two images (nlvr2) and compares images with texts (flickr30k, coco-retrieval, sugarcrepe)"
        )
    if head == "retrieval" and (rerank := asked.values.get("rerank")) is not None:
        raise BenchError(
            f"rerank={rerank}: ViLT has no first pass that finds candidates, it compares all pairs; leave it out"
        )
    return head


def with_ranking(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A pre-trained file's tensors with the head that retrieval begins with: row 1 of the matching head (official `vilt_module.py`)."""
    prefix, parts = HEADS["retrieval"].prefix, ("weight", "bias")
    matching = {part: tensors.get(f"{MATCHING}{part}") for part in parts}
    if any(name.startswith(prefix) for name in tensors):
        return tensors
    rows = {f"{prefix}{part}": one[1:] for part, one in matching.items() if one is not None and len(one) == 2}
    return {**tensors, **rows}


def config_of(tensors: Mapping[str, Tensor], origin: str, num_heads: int | None = None) -> ViLTConfig:
    """What names and shapes of a file show.

    Args:
        num_heads: default: one per 64 of the width.

    Raises:
        BenchError: a tensor is missing or of a shape that no ViLT has; names it.
    """

    def shape(name: str, dims: int) -> tuple[int, ...]:
        tensor = tensors.get(name)
        if not isinstance(tensor, Tensor) or tensor.ndim != dims:
            found = "is missing" if tensor is None else f"has no {dims} dimensions"
            raise BenchError(f"{origin}: tensor {name!r} {found}; give a ViLT checkpoint under its official names")
        return tuple(tensor.shape)

    width, channels, patch, across = shape("transformer.patch_embed.proj.weight", 4)
    if channels != 3 or patch != across:
        raise BenchError(
            f"{origin}: tensor 'transformer.patch_embed.proj.weight' is of patches {patch} x {across} with {channels} channels; ViLT's "
            "are square, with 3"
        )
    positions = shape("transformer.pos_embed", 3)[1]
    grid = round((positions - 1) ** 0.5)
    if grid < 1 or grid**2 + 1 != positions:
        raise BenchError(
            f"{origin}: tensor 'transformer.pos_embed' has {positions} positions; ViLT has one for CLS and a square of patches"
        )
    numbers = {int(m[1]) for name in tensors if (m := re.match(r"transformer\.blocks\.(\d+)\.", name))}
    if num_heads is not None and (num_heads < 1 or width % num_heads):
        raise BenchError(
            f"num_heads={num_heads}: the width {width} of {origin} is no multiple of it; give another number"
        )
    heads = num_heads or width // 64
    if heads < 1 or width % heads:
        raise BenchError(
            f"{origin}: width {width} is no multiple of 64; say how many attention heads it has: -o num_heads=N"
        )
    return ViLTConfig(
        width=width,
        depth=max(numbers, default=-1) + 1,
        heads=heads,
        ffn=shape("transformer.blocks.0.mlp.fc1.weight", 2)[0],
        patch_size=patch,
        grid=grid,
        vocab_size=shape("text_embeddings.word_embeddings.weight", 2)[0],
        max_text_length=shape("text_embeddings.position_embeddings.weight", 2)[0],
        token_types=shape("token_type_embeddings.weight", 2)[0],
    )


def load_head(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """See `family.Family.load`."""
    if asked.ability is Patches:
        return load_patches(source, asked, options)
    name = head_of(asked)
    checkpoint, origin = source.checkpoint, str(source.path)
    config = config_of(checkpoint.tensors, origin, None if options.given is None else options.given.num_heads)
    if options.image_size not in (None, config.image_size):
        raise BenchError(
            f"--image-size {options.image_size}: ViLT takes its size from the checkpoint, {config.image_size} pixels for the shorter "
            "side; leave it out"
        )
    tokenizer, file = find_vocabulary(asked.task, options.tokenizer, source.path.parent, config.max_text_length)
    head = HEADS[name]
    prefixes = {one: HEADS[one].prefix for one in HEADS}
    if f"{MATCHING}weight" in checkpoint.tensors and f"{prefixes['retrieval']}weight" not in checkpoint.tensors:
        prefixes["retrieval"] = MATCHING  # which retrieval begins with
    check_head(checkpoint, asked, options, name, prefixes, head.token_types)
    outputs, notes = (
        (1, []) if name == "retrieval" else check_outputs(checkpoint, asked, options, "vilt", head.module.output_layer)
    )
    released = find_released(source.path, "vilt")
    assumptions = [*notes, *compare_vocabulary(tokenizer, file, config.vocab_size, source.path, released)]
    tensors = with_ranking(checkpoint.tensors) if name == "retrieval" else checkpoint.tensors
    module, filled = build(name, config, outputs, tensors, origin, options.allow_missing)
    all_pairs = name == "retrieval" and "all_pairs" in asked.values  # else those that the task names
    images = AspectKept(config.image_size, config.patch_size)
    ability = head.ability(module, head.reader(images, tokenizer, config.vocab_size, source.path), images)
    card, identity = described(
        "vilt",
        source,
        checkpoint.sha256,
        module,
        images,
        tokenizer,
        config.to_dict(),
        preset=_preset(config),
        protocol="all pairs" if all_pairs else head.protocol,
    )
    return Model(
        ability,
        card,
        identity,
        notes=[*checkpoint.notes, *random_values(filled.missing)],
        assumptions=assumptions,
        missing=filled.missing,
        unexpected=filled.unexpected,
        random=bool(filled.missing),
        companions={"tokenizer": file},
        metadata=checkpoint.metadata,
        second=SecondPass(ability, None, False) if all_pairs and isinstance(ability, Matches) else None,
    )


def load_patches(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """The transformer of any file, for images alone, which are squared; heads are left aside.

    Raises:
        BenchError: a tensor is missing, or an image size that is no multiple of the patches.
    """
    checkpoint, origin = source.checkpoint, str(source.path)
    config = config_of(checkpoint.tensors, origin, None if options.given is None else options.given.num_heads)
    side = input_side(asked, options, checkpoint.tensors["transformer.patch_embed.proj.weight"]) or config.image_size
    if side % config.patch_size:
        raise BenchError(
            f"{origin}: an image of {side} pixels does not divide into patches of {config.patch_size}; give a multiple"
        )
    heads = tuple(f"{head.prefix}*" for head in HEADS.values())
    module, filled = filled_module(
        lambda: ViLT(config), checkpoint.tensors, origin, options.allow_missing, (*IGNORED, *heads)
    )
    images = Preprocessing(side)
    ability, protocol = as_asked(PatchTokens(module, NativeReader(images), images), asked)
    facts = {**config.to_dict(), "text": False}
    card_and_identity = described(
        "vilt", source, checkpoint.sha256, module, images, None, facts, preset=_preset(config), protocol=protocol
    )
    return model_of_images(ability, card_and_identity, checkpoint, filled)


def _preset(config: ViLTConfig) -> str | None:
    return "base" if config == ViLTConfig(token_types=config.token_types) else None


def build(
    head: str,
    config: ViLTConfig,
    outputs: int,
    tensors: Mapping[str, Tensor],
    origin: str,
    allow_missing: tuple[str, ...] = (),
) -> tuple[ViLT, Filled]:
    """The network with a file's tensors, in evaluation mode, and what was left out.

    Raises:
        BenchError: a tensor too few, too many, or of another shape; names it.
    """
    module, filled = filled_module(lambda: HEADS[head].module(config, outputs), tensors, origin, allow_missing, IGNORED)
    assert isinstance(module, ViLT)
    return module, filled


def random_model(head: str, config: ViLTConfig, outputs: int) -> ViLT:
    """A network without training, in evaluation mode."""
    with torch.device("meta"):
        module = HEADS[head].module(config, outputs)
    allocate(module)
    initialise(module)
    return module.eval()
