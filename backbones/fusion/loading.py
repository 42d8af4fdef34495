"""A head of ALBEF or BLIP from a file, as an ability: what loading the two families shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from beit3_bench.backbones.abilities import Answers, Captions, Classifies, Embeds
from beit3_bench.backbones.checkpoints import Checkpoint
from beit3_bench.backbones.described import described, model_of_images, random_values
from beit3_bench.backbones.family import Asked, LoadOptions, Model, Outputs, SecondPass
from beit3_bench.backbones.fusion.config import (
    VISION,
    FusionConfig,
    Settings,
    Shapes,
    check_preset,
    network_shape,
    vision_shape,
)
from beit3_bench.backbones.fusion.files import MOMENTUM, PRETRAINING, bare_text_names, family_of, held_heads, resized
from beit3_bench.backbones.fusion.heads import FusionModel
from beit3_bench.backbones.fusion.native import (
    DualEncoder,
    EntailmentClassifier,
    Matcher,
    NativeAbility,
    PairClassifier,
    PairReader,
    PatchTokens,
)
from beit3_bench.backbones.fusion.texts import Texts, Wording
from beit3_bench.backbones.fusion.vit import VisionAlone
from beit3_bench.backbones.patch_features import as_asked, input_side
from beit3_bench.backbones.preprocess import CLIP_MEAN, CLIP_STD, Preprocessing
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.backbones.released import find_released
from beit3_bench.backbones.sources import Source
from beit3_bench.backbones.strict_loading import filled_module
from beit3_bench.backbones.wordpiece import compare_vocabulary, find_vocabulary
from beit3_bench.errors import BenchError

ENTAILMENT = ("contradiction", "neutral", "entailment")
"""Outputs of SNLI-VE heads (official ALBEF `ve_dataset.py`; LAVIS the same)."""
_ANY_LENGTH = 10**6  # WordPiece's own cut: `Texts` cuts


@dataclass(frozen=True)
class System:
    """A family, for messages and names.  added: tokens behind those of vocab.txt.  heads: that it has, by our names of tasks."""

    name: str
    title: str
    added: int
    heads: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """What was read off a file before its network is built."""

    system: System
    source: Source
    asked: Asked
    options: LoadOptions
    head: str
    tensors: Mapping[str, Any]
    config: FusionConfig
    grid: int
    held: tuple[str, ...]

    @property
    def checkpoint(self) -> Checkpoint:
        return self.source.checkpoint

    @property
    def origin(self) -> str:
        return str(self.source.path)

    @property
    def of_task(self) -> bool:
        """Whether it is, by name, a file that its authors released for what is asked."""
        released = find_released(self.source.path, self.system.name)
        return released is not None and released.task == self.asked.task


def head_of(asked: Asked, system: System) -> str:
    """The head that answers what is asked.

    Raises:
        BenchError: there is none.
    """
    heads: dict[tuple[Any, int, bool], str] = {
        (Answers, 1, True): "vqav2",
        (Classifies, 2, True): "nlvr2",
        (Classifies, 1, True): "snli-ve",
        (Captions, 1, False): "coco-caption",
    }
    head = heads.get((asked.ability, asked.images, asked.text))
    if asked.ability is Embeds:
        head = "retrieval"
    if head is None or head not in system.heads:
        raise BenchError(
            f"task {asked.task}: {system.title} has no head for it; its heads are {', '.join(system.heads)}"
        )
    return head


def read_file(system: System, source: Source, asked: Asked, options: LoadOptions) -> Reading:
    """Config and tensors of a file, if it holds the head that is asked for.

    Raises:
        BenchError: a file of the other family, of another head, or one that does not show what it is.
    """
    head, origin = head_of(asked, system), str(source.path)
    tensors = source.checkpoint.tensors
    family = family_of(tensors)
    if family != system.name:
        raise BenchError(f"{origin}: {_stranger(family, system)}")
    tensors = bare_text_names(tensors)
    held = held_heads(tensors, family)
    if head not in held and not options.allow_missing:
        what = f"holds the head of {' and '.join(held)}" if held else "holds no head of a task"
        raise BenchError(f"{origin}: {what}, {asked.task} needs another; give a checkpoint of {asked.task}")
    given = options.given
    settings = Settings(
        options.preset,
        options.image_size,
        None if given is None else given.num_heads,
        None if given is None else given.text_heads,
    )
    shapes = Shapes(tensors, origin, system.title)
    config, grid = network_shape(shapes, head, settings, shared_pairs=system.name == "albef" and head == "nlvr2")
    check_preset(config, settings, origin, system.title)
    return Reading(system, source, asked, options, head, tensors, config, grid, held)


def _stranger(family: str | None, system: System) -> str:
    if family is None:
        return f"this is no {system.title} checkpoint with official names"
    first = (
        "its first text layers look at no image" if family == "albef" else "all of its text layers look at the image"
    )
    return f"this is a checkpoint of {family.upper()}, {first}; give it as {family}:FILE, or without a family"


def find_texts(reading: Reading, wording: Wording) -> tuple[Texts, Path, list[str]]:
    """The tokenizer, its file, and what could not be known of it.

    Raises:
        BenchError: none is there, or it is another one's.
    """
    path, config = reading.source.path, reading.config
    pieces, file = find_vocabulary(reading.asked.task, reading.options.tokenizer, path.parent, _ANY_LENGTH)
    released = find_released(path, reading.system.name)
    notes = compare_vocabulary(pieces, file, config.vocab_size, path, released, reading.system.added)
    return Texts(pieces, wording, config.reading.positions), file, notes


def preprocessing_of(config: FusionConfig) -> Preprocessing:
    """Bicubic to S x S, mean and standard deviation of CLIP (official test transforms of both)."""
    return Preprocessing(config.image_size, "squash", CLIP_MEAN, CLIP_STD)


def reader_of(reading: Reading, texts: Texts | None, wording: Wording, pairs: bool = False) -> NativeReader:
    kind = PairReader if pairs else NativeReader
    return kind(
        preprocessing_of(reading.config),
        texts,
        wording.multiple,
        reading.config.vocab_size,
        reading.source.path,
    )


def outputs_of(reading: Reading, layer: str) -> tuple[int, list[str]]:
    """How many outputs a classifier is built with, and notes.

    Raises:
        BenchError: the file has none, or the data means something else by them.
    """
    table = reading.tensors.get(layer)
    count = len(table) if table is not None and table.ndim == 2 else None
    labels = ENTAILMENT if reading.head == "snli-ve" and count == len(ENTAILMENT) else None
    if count is None:
        if not reading.options.allow_missing or reading.asked.labels is None:
            raise BenchError(
                f"{reading.origin}: tensor {layer!r} is missing; give a checkpoint of {reading.asked.task}"
            )
        return len(reading.asked.labels), []
    checkpoint = reading.checkpoint
    outputs = Outputs(checkpoint.path, labels, count, reading.of_task, checkpoint.metadata)
    return count, reading.asked.check_outputs(outputs)


def classifying(reading: Reading, module: type[FusionModel], wording: Wording) -> Model:
    """NLVR2 and SNLI-VE."""
    texts, file, assumptions = find_texts(reading, wording)
    outputs, notes = outputs_of(reading, module.output_layer)
    kind = PairClassifier if reading.head == "nlvr2" else EntailmentClassifier
    built, extra = build(reading, lambda: module(reading.config, outputs))  # type: ignore[call-arg]
    ability = kind(built, reader_of(reading, texts, wording), preprocessing_of(reading.config))
    labels = ENTAILMENT if reading.head == "snli-ve" and outputs == len(ENTAILMENT) else None
    return finished(
        reading,
        ability,
        texts,
        file,
        "classification",
        wording,
        extra,
        assumptions=[*notes, *assumptions],
        labels=labels,
    )


@dataclass(frozen=True)
class SecondLook:
    """candidates: as of `SecondPass`; None = there is no second pass.  given: whether the user said so."""

    candidates: int | None = None
    given: bool = False
    protocol: str = "dual encoder"
    resolved: Mapping[str, Any] = field(default_factory=dict)


def second_look(reading: Reading, candidates: int, adds_first: bool) -> SecondLook:
    """What the task offers, as its options say it: ``rerank``, the best of a query, or ``score``, pairs that the task names."""
    values = reading.asked.values
    if "rerank" in values:
        asked_for = values["rerank"]
        k = candidates if asked_for is None else 0 if asked_for == "off" else int(asked_for)
        resolved = {"rerank": str(k) if k else "off"}
        return SecondLook(k, asked_for is not None, f"re-ranked {k}", resolved) if k else SecondLook(resolved=resolved)
    if "score" in values:
        score = values["score"] or "match"
        if score == "match":
            protocol = "matching + cosine" if adds_first else "matching"
            return SecondLook(0, values["score"] is not None, protocol, {"score": score})
        return SecondLook(resolved={"score": score})
    return SecondLook()


def retrieving(
    reading: Reading, module: type[FusionModel], wording: Wording, candidates: int, adds_first: bool
) -> Model:
    """Retrieval, with a second look at the best where the task offers it.

    Args:
        candidates: of a query, by the protocol of the file.  adds_first: whether the cosine joins the match score.
    """
    texts, file, assumptions = find_texts(reading, wording) if reading.asked.text else (None, None, [])
    left_aside = ("text_decoder.*",) if "coco-caption" in reading.held else ()
    built, extra = build(reading, lambda: module(reading.config), left_aside)
    preprocessing = preprocessing_of(reading.config)
    looking = second_look(reading, candidates, adds_first)
    second = None
    if looking.candidates is not None:
        reader = reader_of(reading, texts, wording, pairs=True)
        assert isinstance(reader, PairReader)
        matcher = Matcher(built, reader, preprocessing)
        second = SecondPass(matcher, looking.candidates, adds_first, given=looking.given)
    ability = DualEncoder(built, reader_of(reading, texts, wording), preprocessing)
    model = finished(
        reading,
        ability,
        texts,
        file,
        looking.protocol,
        wording,
        extra,
        assumptions=assumptions,
        resolved=looking.resolved,
        further={"adds_cosine": adds_first} if second else {},
    )
    model.second = second
    return model


def load_patches(system: System, source: Source, asked: Asked, options: LoadOptions) -> Model:
    """The vision transformer of any file of a family; whatever else it holds is left aside.

    Raises:
        BenchError: a file of the other family, or a tensor is missing.
    """
    checkpoint, origin = source.checkpoint, str(source.path)
    family = family_of(checkpoint.tensors)
    if family != system.name:
        raise BenchError(f"{origin}: {_stranger(family, system)}")
    own = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(VISION)}
    side = input_side(asked, options, own.get(f"{VISION}patch_embed.proj.weight"))
    settings = Settings(options.preset, side, None if options.given is None else options.given.num_heads, None)
    vision, grid = vision_shape(Shapes(own, origin, system.title), settings)
    tensors, changed = resized(own, vision, grid)
    module, filled = filled_module(lambda: VisionAlone(vision), tensors, origin, options.allow_missing)
    preprocessing = Preprocessing(vision.image_size, "squash", CLIP_MEAN, CLIP_STD)
    ability, protocol = as_asked(PatchTokens(module, NativeReader(preprocessing), preprocessing), asked)
    facts = {"vision": dataclasses.asdict(vision)}
    card_and_identity = described(
        system.name, source, checkpoint.sha256, module, preprocessing, None, facts, preset=None, protocol=protocol
    )
    return model_of_images(ability, card_and_identity, checkpoint, filled, changed)


@dataclass(frozen=True)
class Extra:
    """What filling a network left over."""

    missing: list[str]
    unexpected: list[str]
    resized: dict[str, str]


def build(reading: Reading, blank: Any, left_aside: Sequence[str] = ()) -> tuple[Any, Extra]:
    """The network of a reading, in evaluation mode.

    Raises:
        BenchError: a tensor too few, too many, or of another shape; names it.
    """
    tensors, changed = resized(reading.tensors, reading.config.vision, reading.grid)
    module, filled = filled_module(
        blank, tensors, reading.origin, reading.options.allow_missing, (*MOMENTUM, *PRETRAINING, *left_aside)
    )
    return module, Extra(filled.missing, filled.unexpected, changed)


def finished(
    reading: Reading,
    ability: NativeAbility,
    texts: Texts | None,
    file: Path | None,
    protocol: str,
    wording: Wording,
    extra: Extra,
    *,
    assumptions: Sequence[str] = (),
    notes: Sequence[str] = (),
    labels: tuple[str, ...] | None = None,
    resolved: Mapping[str, Any] | None = None,
    further: Mapping[str, Any] | None = None,
) -> Model:
    """The model, with card and identity.

    further: settings beyond the network's sizes on which values depend.
    """
    settings = {**reading.config.to_dict(), "texts": wording.facts(), **(further or {})}
    card, identity = described(
        reading.system.name,
        reading.source,
        reading.checkpoint.sha256,
        ability.module,
        ability.preprocessing,
        texts.pieces if texts else None,
        settings,
        preset=reading.config.preset_name,
        protocol=protocol,
        labels=labels,
        resolved=resolved,
    )
    return Model(
        ability,
        card,
        identity,
        notes=[*reading.checkpoint.notes, *notes, *random_values(extra.missing)],
        assumptions=list(assumptions),
        missing=extra.missing,
        unexpected=extra.unexpected,
        resized=extra.resized,
        random=bool(extra.missing),
        companions={"tokenizer": file} if file else {},
        metadata=reading.checkpoint.metadata,
    )
