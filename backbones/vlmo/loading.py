"""A VLMo with a head from a file, as an ability."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from beit3_bench.backbones.abilities import Ability, Answers, Classifies, Embeds, Patches
from beit3_bench.backbones.allocation import allocate
from beit3_bench.backbones.checkpoints import Checkpoint
from beit3_bench.backbones.described import described, random_values
from beit3_bench.backbones.family import Asked, LoadOptions, Model
from beit3_bench.backbones.held_heads import check_head, check_outputs
from beit3_bench.backbones.patch_features import as_asked, input_side
from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.backbones.released import find_released
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.strict_loading import Filled, fill_strictly
from beit3_bench.backbones.vlmo.config import PATCHES, FileShape, Settings, VLMoConfig, shape_of_file
from beit3_bench.backbones.vlmo.heads import Retrieval, VisualQuestionAnswering, VisualReasoning
from beit3_bench.backbones.vlmo.model import VLMo
from beit3_bench.backbones.vlmo.native import AnswerClassifier, DualEncoder, NativeAbility, PairClassifier, PatchTokens
from beit3_bench.backbones.vlmo.resizing import resized_tables
from beit3_bench.backbones.wordpiece import compare_vocabulary, find_vocabulary
from beit3_bench.errors import BenchError

IGNORED = (
    "relative_position_index", "text_relative_position_index", "text_imag_relative_position_index",
    "text_embeddings.position_ids", "itm_score.*", "mlm_score.*", "itc_vl_image_proj.*", "itc_vl_text_proj.*", "logit_vl_scale",
)  # fmt: skip
"""Index buffers of older files, and heads of pre-training that no task asks."""


@dataclass(frozen=True)
class Head:
    """module: the network.  ability: how it is asked.  prefix: of the names of its tensors.
    multiple: texts are padded to a multiple of so many tokens (see `reading.NativeReader`).
    token_types: rows that it reads of the table: one for texts, and one for each image.
    """

    module: type[VLMo]
    ability: type[NativeAbility]
    prefix: str
    protocol: str
    multiple: int
    token_types: int = 2


HEADS: dict[str, Head] = {
    "retrieval": Head(Retrieval, DualEncoder, "itc_", "dual encoder", 1),  # texts of one length; nothing is padded
    # Most questions of an image then stand in one batch, and it is decoded once.
    "vqav2": Head(VisualQuestionAnswering, AnswerClassifier, "vqa_classifier.", "classification", 16),
    "nlvr2": Head(VisualReasoning, PairClassifier, "nlvr2_classifier.", "classification", 8, 3),
}


def head_of(asked: Asked) -> str:
    """The head (a key of `HEADS`) that answers what is asked.

    Raises:
        BenchError: there is none.
    """
    heads: dict[tuple[type[Ability], int, bool], str] = {(Answers, 1, True): "vqav2", (Classifies, 2, True): "nlvr2"}
    if asked.ability is Embeds:
        return "retrieval"
    head = heads.get((asked.ability, asked.images, asked.text))
    if head is None:
        raise BenchError(
            f"task {asked.task}: VLMo has no head for it; it embeds images and texts, answers questions about an image (vqav2), and "
            "judges a text about two images (nlvr2)"
        )
    return head


def held_head(source: Source) -> str:
    """A head that a file holds.

    Raises:
        BenchError: it holds none.
    """
    held = next((name for name, head in HEADS.items() if any(n.startswith(head.prefix) for n in source.names)), None)
    if held is None:
        raise BenchError(f"{source.path}: holds no head of VLMo's ({', '.join(HEADS)}); give a file that does")
    return held


def load_head(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """See `family.Family.load`."""
    name = held_head(source) if asked.ability is Patches else head_of(asked)
    checkpoint, origin = source.checkpoint, str(source.path)
    given = options.given
    settings = Settings(
        options.preset,
        input_side(asked, options, checkpoint.tensors.get(PATCHES)),
        *((None,) * 3 if given is None else (given.num_heads, given.max_text_length, given.initial_text_length)),
    )
    shape = shape_of_file(checkpoint.tensors, origin, settings)
    tokenizer, file = (None, None)
    if asked.text:
        tokenizer, file = find_vocabulary(
            asked.task, options.tokenizer, source.path.parent, shape.config.max_text_length
        )
    outputs, notes = _check_outputs(checkpoint, name, asked, options)
    assumptions = list(notes)
    if tokenizer is not None and file is not None:
        rows = shape.config.vocab_size
        assumptions += compare_vocabulary(tokenizer, file, rows, source.path, find_released(source.path, "vlmo"))
    module, filled, resized = build(name, shape, outputs, checkpoint.tensors, origin, options.allow_missing)
    preprocessing = Preprocessing(shape.config.image_size)
    head = HEADS[name]
    reader = NativeReader(preprocessing, tokenizer, head.multiple, shape.config.vocab_size, source.path)
    ability: Ability
    if asked.ability is Patches:
        ability, protocol = as_asked(PatchTokens(module, reader, preprocessing), asked)
    else:
        ability, protocol = head.ability(module, reader, preprocessing), head.protocol
    card, identity = described(
        "vlmo",
        source,
        checkpoint.sha256,
        module,
        preprocessing,
        tokenizer,
        module.config.to_dict(),
        preset=module.config.preset_name,
        protocol=protocol,
    )
    return Model(
        ability,
        card,
        identity,
        notes=[*checkpoint.notes, *shape.notes, *random_values(filled.missing)],
        assumptions=assumptions,
        missing=filled.missing,
        unexpected=filled.unexpected,
        resized=resized,
        random=bool(filled.missing),
        companions={"tokenizer": file} if file else {},
        metadata=checkpoint.metadata,
    )


def _check_outputs(checkpoint: Checkpoint, name: str, asked: Asked, options: LoadOptions) -> tuple[int, list[str]]:
    """How many outputs the head is built with (0 for one that is no classifier), and notes.

    Raises:
        BenchError: the file has the head of another task, or outputs that are not the data's.
    """
    prefixes = {head: one.prefix for head, one in HEADS.items()}
    check_head(checkpoint, asked, options, name, prefixes, HEADS[name].token_types)
    layer = HEADS[name].module.output_layer
    return check_outputs(checkpoint, asked, options, "vlmo", layer) if layer else (0, [])


# ---- filling ------------------------------------------------------------------------------------------------------------


def build(
    head: str,
    shape: FileShape,
    outputs: int,
    tensors: Mapping[str, Tensor],
    origin: str,
    allow_missing: tuple[str, ...] = (),
) -> tuple[VLMo, Filled, dict[str, str]]:
    """The network with a file's tensors, in evaluation mode; what was left out; and what was resized.

    Raises:
        BenchError: a tensor too few, too many, or of another shape; names it.
    """
    tensors, resized = resized_tables(tensors, shape)
    on_meta = any(tensor.is_meta for tensor in tensors.values())
    with torch.device("meta"):
        module = blank(head, shape.config, outputs)
    if not on_meta:
        allocate(module)
        if allow_missing:
            initialise(module)
    ignored = {name for name in tensors if any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED)}
    filled = fill_strictly(dict(official_parts(module)), tensors, origin, allow_missing, ignored)
    for block in module.transformer.blocks:
        block.attn.qkv.bias.detach().chunk(3)[1].zero_()
    return module.eval(), filled, resized


def blank(head: str, config: VLMoConfig, outputs: int) -> VLMo:
    """The network of a head, its values as memory holds them."""
    module = HEADS[head].module
    return module(config, outputs) if module.output_layer else module(config)  # type: ignore[call-arg]


def official_parts(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Official names with the parts of the network that they are of: biases of q and v are thirds of one of ours."""
    for name, value in module.state_dict().items():
        if name.endswith(".attn.qkv.bias"):
            prefix = name.removesuffix("qkv.bias")
            query, _, values = value.chunk(3)
            yield f"{prefix}q_bias", query
            yield f"{prefix}v_bias", values
        else:
            yield name, value


def official_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """The weights under the official names."""
    return {name: part.clone() for name, part in official_parts(module)}


@torch.no_grad()
def initialise(module: VLMo) -> None:
    """Random values for every parameter: normal, std 0.02, LayerNorms 1 and 0, layer scale 0.1 (official initialisation)."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim < 2:
            nn.init.constant_(parameter, 0.1 if "gamma_" in name else 1.0)
        else:
            nn.init.normal_(parameter, std=0.02)


def random_model(head: str, config: VLMoConfig, outputs: int = 0) -> VLMo:
    """A network without training, in evaluation mode."""
    with torch.device("meta"):
        module = blank(head, config, outputs)
    allocate(module)
    initialise(module)
    return module.eval()
