"""A native head from a file, as an ability."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from beit3_bench.backbones.abilities import Ability, Answers, Captions, Classifies, Embeds, Patches
from beit3_bench.backbones.beit3.checkpoint import LoadedModel, LoadReport, load_model_for
from beit3_bench.backbones.beit3.models import HEADS, BEiT3Head
from beit3_bench.backbones.beit3.native import (
    AnswerClassifier,
    Captioner,
    DualEncoder,
    ImageClassifier,
    NativeAbility,
    PairClassifier,
    PatchTokens,
    TextImageClassifier,
    decoding_of,
)
from beit3_bench.backbones.beit3.tokenizer import Tokenizer
from beit3_bench.backbones.beit3.tokens import compare_tokenizer, find_tokenizer
from beit3_bench.backbones.checkpoints import Checkpoint
from beit3_bench.backbones.described import described, random_values
from beit3_bench.backbones.family import Asked, LoadOptions, Model, Outputs
from beit3_bench.backbones.patch_features import as_asked, input_side
from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.backbones.released import find_released
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError

FINAL_NORM = "beit3.encoder.layer_norm.A.weight"
PROJECTION = "beit3.vision_embed.proj.weight"
NOT_THE_ENCODER = ("[!b]*",)
"""Names of heads; all of the encoder begins with ``beit3.``."""
TEXT_MULTIPLES: dict[str, int] = {
    "retrieval": 1,  # texts of one length stand in a batch, and nothing is padded
    "snli-ve": 32,  # nearly all of the 18 sentences of a picture then stand beside each other, and it is decoded once
    "vqav2": 16,  # most questions of an image then stand in one batch, and share its patches
}
PROTOCOLS = {
    "retrieval": "dual encoder",
    "vqav2": "classification",
    "nlvr2": "classification",
    "snli-ve": "classification",
    "imagenet-linear": "classification",
}


def head_of(asked: Asked) -> str:
    """The native head (a key of `models.HEADS`) that answers what is asked.

    Raises:
        BenchError: there is none.
    """
    heads: dict[tuple[type[Ability], int, bool], str] = {
        (Answers, 1, True): "vqav2",
        (Classifies, 2, True): "nlvr2",
        (Classifies, 1, True): "snli-ve",
        (Classifies, 1, False): "imagenet-linear",
    }
    if asked.ability is Embeds:
        return "retrieval"
    if asked.ability is Captions:
        return "coco-caption"
    head = heads.get((asked.ability, asked.images, asked.text))
    if head is None:
        form = f"{asked.images} image{'s' if asked.images > 1 else ''} {'and' if asked.text else 'without'} a text"
        raise BenchError(
            f"task {asked.task}: BEiT-3 has no head that can {asked.ability.word} {form}; it classifies an image, or a text "
            "about one image or two"
        )
    return head


def load_native(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """See `family.Family.load`."""
    if asked.ability is Patches:
        return load_patches(source, asked, options)
    head = head_of(asked)
    reads_text = asked.text or head == "coco-caption"
    tokenizer, file = find_tokenizer(asked.task, options.tokenizer, source.path.parent) if reads_text else (None, None)
    checkpoint = source.checkpoint
    outputs, notes = check_outputs(checkpoint, head, asked, options.allow_missing)
    arguments = {} if outputs is None else {"num_classes": outputs}
    loaded = load_model_for(
        head, checkpoint, options.preset, options.image_size, arguments, options.allow_missing, _heads(options)
    )
    assumptions = list(notes)
    if tokenizer is not None and file is not None:
        assumptions += compare_tokenizer(tokenizer, file, loaded.config, loaded.metadata, loaded.path)
    reader = NativeReader(
        loaded.preprocessing, tokenizer, TEXT_MULTIPLES.get(head, 8), loaded.config.vocab_size, loaded.path
    )
    ability = native_ability(head, loaded.model, reader, loaded.preprocessing, asked.values)
    resolved = dataclasses.asdict(ability.decoding) if isinstance(ability, Captioner) else {}
    protocol = f"{ability.decoding.num_beams} beams" if isinstance(ability, Captioner) else PROTOCOLS[head]
    return model_of(
        ability,
        source,
        loaded,
        protocol=protocol,
        resolved=resolved,
        tokenizer=tokenizer,
        tokenizer_file=file,
        assumptions=assumptions,
        allow_missing=options.allow_missing,
    )


def native_ability(
    head: str,
    module: nn.Module,
    reader: NativeReader,
    preprocessing: Preprocessing,
    values: Mapping[str, Any],
) -> NativeAbility:
    """The ability of a native head. values: options of the task, for how captions are searched."""
    if head == "coco-caption":
        return Captioner(module, reader, preprocessing, decoding_of(values))
    kinds: dict[str, Callable[..., NativeAbility]] = {
        "retrieval": DualEncoder,
        "vqav2": AnswerClassifier,
        "nlvr2": PairClassifier,
        "snli-ve": TextImageClassifier,
        "imagenet-linear": ImageClassifier,
    }
    return kinds[head](module, reader, preprocessing)


def load_patches(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """The vision tower of any BEiT-3 checkpoint; whatever else the file holds is left aside.

    Raises:
        BenchError: not a BEiT-3 checkpoint, or a part of the tower is missing.
    """
    checkpoint = source.checkpoint
    classifier = "fc_norm.weight" in source.names
    # The retrieval model ends with the encoder's norm; the classifier has its own behind the mean, or none.
    head, arguments = ("retrieval", {}) if FINAL_NORM in source.names else ("imagenet-linear", {"num_classes": 1})
    allowed = (*options.allow_missing, *NOT_THE_ENCODER)
    side = input_side(asked, options, checkpoint.tensors.get(PROJECTION))
    loaded = load_model_for(head, checkpoint, options.preset, side, arguments, allowed, _heads(options))
    if head == "imagenet-linear":
        loaded.model.head = None  # type: ignore[assignment]
        loaded.model.fc_norm = loaded.model.fc_norm if classifier else None  # type: ignore[assignment]
    if not classifier and "preprocessing" not in loaded.metadata:
        loaded = dataclasses.replace(loaded, preprocessing=Preprocessing(loaded.config.image_size))
    if not asked.pooled:  # of the whole image
        whole = dataclasses.replace(loaded.preprocessing, mode="squash", crop_pct=1.0)
        loaded = dataclasses.replace(loaded, preprocessing=whole)
    patches = PatchTokens(loaded.model, NativeReader(loaded.preprocessing), loaded.preprocessing)
    ability, protocol = as_asked(patches, asked)
    return model_of(ability, source, loaded, protocol=protocol, allow_missing=options.allow_missing)


def model_of(
    ability: Ability,
    source: Source,
    loaded: LoadedModel,
    protocol: str,
    resolved: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    tokenizer_file: Path | None = None,
    assumptions: Sequence[str] = (),
    allow_missing: Sequence[str] = (),
    image_size: int | None = None,
) -> Model:
    """A loaded network with card and identity.

    Raises:
        BenchError: a released file that differs from its pinned hash.
    """
    report = loaded.report
    card, identity = described(
        "beit3",
        source,
        loaded.sha256,
        loaded.model,
        loaded.preprocessing,
        tokenizer,
        loaded.config.to_dict(),
        preset=loaded.preset,
        protocol=protocol,
        image_size=image_size or loaded.config.image_size,
        architecture={**loaded.config.to_dict(), **loaded.shape},
        trained_for=loaded.metadata.get("task"),
        labels=labels_in(loaded.metadata, loaded.path),
        resolved=resolved,
    )
    return Model(
        ability,
        card,
        identity,
        notes=[*report.notes, *random_tensors(loaded.model, report, allow_missing)],
        assumptions=list(assumptions),
        missing=list(report.missing),
        unexpected=list(report.unexpected),
        resized=dict(report.resized),
        random=bool(allow_missing and report.missing),
        companions={"tokenizer": tokenizer_file} if tokenizer_file else {},
        metadata=loaded.metadata,
    )


def _heads(options: LoadOptions) -> int | None:
    return None if options.given is None else options.given.num_heads


# ---- what outputs mean ----------------------------------------------------------------------------------------------------


def labels_in(metadata: Mapping[str, Any], checkpoint: Path) -> tuple[str, ...] | None:
    """What the outputs of a fine-tuned checkpoint mean, as it says itself; None where it does not.

    Raises:
        BenchError: something else than a list of names.
    """
    labels = metadata.get("labels")
    if labels is not None and not (isinstance(labels, (list, tuple)) and all(isinstance(n, str) for n in labels)):
        raise BenchError(f"{checkpoint}: its 'labels' are no list of names; this file was not written by beit3-bench")
    return None if labels is None else tuple(labels)


def check_outputs(
    checkpoint: Checkpoint, head: str, asked: Asked, allow_missing: Sequence[str] = ()
) -> tuple[int | None, list[str]]:
    """Compare the outputs of a native head with what the task takes them to mean, before it is loaded.

    Returns:
        How many outputs the head is built with, None for a head that is no classifier; and notes.

    Raises:
        BenchError: they differ.
    """
    layer = HEADS[head].output_layer
    if not layer:
        return None, []
    table = checkpoint.tensors.get(layer)
    count = len(table) if table is not None and table.ndim == 2 else None
    trained = labels_in(checkpoint.metadata, checkpoint.path)
    labels = asked.labels if asked.labels is not None else trained
    if labels is None:
        return count, asked.check_outputs(_outputs(checkpoint, asked, None, count))
    if any(fnmatch.fnmatchcase(layer, pattern) for pattern in allow_missing) and count != len(labels):
        return len(labels), []  # it keeps random values
    return len(labels), asked.check_outputs(_outputs(checkpoint, asked, trained, count))


def _outputs(checkpoint: Checkpoint, asked: Asked, labels: tuple[str, ...] | None, count: int | None) -> Outputs:
    weight = find_released(checkpoint.path, "beit3")
    released = weight is not None and weight.task in (asked.task, asked.asks_as)
    return Outputs(checkpoint.path, labels, count, released, checkpoint.metadata)


def random_tensors(model: nn.Module, report: LoadReport, allow_missing: Sequence[str]) -> list[str]:
    """A note that names the tensors that a run with ``--allow-missing`` computes with, but no checkpoint ever had."""
    unread = model.unread if isinstance(model, BEiT3Head) else ()
    missing = [n for n in report.missing if not any(fnmatch.fnmatchcase(n, pattern) for pattern in unread)]
    return random_values(missing) if allow_missing else []
