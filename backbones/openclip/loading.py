"""From a file to a model: which weights they are, the network, and what belongs to it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from beit3_bench.backbones.abilities import Ability, Captions, Patches
from beit3_bench.backbones.family import Asked, Identity, LoadOptions, Model, ModelCard, digest
from beit3_bench.backbones.openclip.ability import OpenClipEmbedder, OpenClipPatches
from beit3_bench.backbones.openclip.captions import (
    OpenClipCaptioner,
    beams_of,
    captioning,
    check_architecture,
    refuse_options,
)
from beit3_bench.backbones.openclip.library import offline, open_clip
from beit3_bench.backbones.openclip.pixels import OpenClipPixels
from beit3_bench.backbones.openclip.sources import CONFIG, Place, config_beside, place_of
from beit3_bench.backbones.openclip.state import Weights, fill, weights_of
from beit3_bench.backbones.openclip.texts import OpenClipReader, texts_of
from beit3_bench.backbones.openclip.weights import WEIGHTS, tag_of
from beit3_bench.backbones.patch_features import as_asked, input_side
from beit3_bench.backbones.pins import pin_or_check
from beit3_bench.backbones.released import ReleasedFile, find_released
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError, exhausted
from beit3_bench.spelling import did_you_mean

QUICK = "-quickgelu"
PIXEL_KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


@dataclass
class Architecture:
    """What a network is built from.

    name: open_clip's; None for a config of its own.  config: ``model_cfg``.  pixels: fields of ``PreprocessCfg`` but its size.
    notes: what was decided where the file does not say it.
    """

    name: str | None
    config: dict[str, Any]
    pixels: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def load(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """See `family.Family.load`."""
    library = open_clip(f"task {asked.task} with a checkpoint of open_clip")
    if options.preset is not None:
        raise BenchError(
            f"--preset {options.preset}: the architecture is part of the source; write openclip:ARCHITECTURE/FILE"
        )
    place = place_of(source.text)
    beside = config_beside(source.path)
    weights = weights_of(source)
    patches = asked.ability is Patches
    if patches:
        options = replace(options, image_size=input_side(asked, options, projection_of(weights, source.path)))
    captions = asked.ability is Captions
    if not captions:
        refuse_options(options.given, source.path)
    tag = None if options.given is None else options.given.tag
    released, notes = _released(source.path, weights.sha256)
    architecture = _named(library, place, beside)
    if tag is None and released is not None and _base(released.preset) == _base(architecture.name or ""):
        tag = tag_of(released)
    _decide(library, architecture, tag, beside, weights.scripted)
    name = _words(architecture, source.path)
    if captions:
        check_architecture(architecture.config, name, source.path)
    if released is None and tag is not None:
        released = next(
            (w for w in WEIGHTS if (_base(w.preset), tag_of(w)) == (_base(architecture.name or ""), tag)), None
        )
    with _taking(options.image_size, source.path):
        module, resized = _built(library, architecture, place, source.path, options.image_size)
        report = fill(module, weights, source.path, name, options.allow_missing, resized)
        if resized and "timm_model_name" in architecture.config["vision_cfg"]:
            module.visual.set_input_size(options.image_size)
        module.eval()
        if resized:  # what a network takes shows when it is asked
            with torch.inference_mode():
                module.encode_image(torch.zeros(1, 3, options.image_size, options.image_size))
    config = {**library.get_model_preprocess_cfg(module), **architecture.pixels}
    if options.image_size is not None:
        config["size"] = options.image_size
    if patches and not asked.pooled:  # of the whole image
        config["resize_mode"] = "squash"
    pixels = OpenClipPixels.of({"fill_color": 0, **config}, str(source.path))
    text_config = architecture.config["text_cfg"]
    texts = texts_of(text_config, name, source.path.parent, options.tokenizer) if asked.text or captions else None
    reader = OpenClipReader(pixels, texts, text_config.get("vocab_size"), source.path)
    settings = {"architecture": architecture.name, **architecture.config, "open_clip": library.__version__}
    protocol = "dual encoder"
    ability: Ability = OpenClipEmbedder(module, reader, pixels)
    if patches:
        ability, protocol = as_asked(OpenClipPatches(module, reader, pixels), asked)
    beams = beams_of(asked, options.given) if captions else None
    if beams is not None:
        assert texts is not None
        searching = captioning(
            module, texts, beams, text_config.get("vocab_size", texts.tokenize.vocab_size), name, source.path
        )
        ability = OpenClipCaptioner(searching, reader, pixels, texts)
        settings["beams"] = vars(beams)
    card = ModelCard(
        family="openclip",
        checkpoint=source.path.name,
        sha256=weights.sha256,
        preset=architecture.name,
        weight=released.name if released else None,
        image_size=pixels.size,
        params=sum(p.numel() for p in module.parameters()),
        protocol=protocol if beams is None else beams.words,
        trained_for=_trained_for(released, asked.task),
        trained_on=released.trained_on if released else (),
        settings=settings,
        preprocessing=pixels.to_dict(),
        resolved={} if beams is None else vars(beams),
    )
    identity = Identity(
        weights=weights.sha256,
        architecture=digest({**settings, "image_size": pixels.size}),
        pixels=pixels.canary_hash(),
        tokens=texts.fingerprint if texts else None,
    )
    return Model(
        ability,
        card,
        identity,
        notes=[*weights.notes, *notes, *report.notes],
        assumptions=architecture.notes,
        missing=report.missing,
        unexpected=report.unexpected,
        resized=report.resized,
        random=bool(report.missing),
        companions={"tokenizer": texts.file} if texts and texts.file else {},
    )


def projection_of(weights: Weights, path: Path) -> torch.Tensor:
    """The patch convolution of a vision transformer, as open_clip, OpenAI or timm name it.

    Raises:
        BenchError: the image tower is none.
    """
    own = (
        "visual.conv1.weight" if "visual.class_embedding" in weights.tensors else "visual.trunk.patch_embed.proj.weight"
    )
    if own not in weights.tensors:
        raise BenchError(
            f"{path}: its image tower is no vision transformer, and has no patches; give the file of one that is"
        )
    return weights.tensors[own]


@contextmanager
def _taking(image_size: int | None, path: Path) -> Iterator[None]:
    """Networks of open_clip and timm say by errors of many kinds that they cannot take images of a size.

    Raises:
        BenchError: such an error, where a size was asked for.
    """
    try:
        yield
    except (RuntimeError, AssertionError, ValueError, ZeroDivisionError) as error:
        if image_size is None or exhausted(error) is not None:
            raise
        line = " ".join(str(error).split())[:150]
        raise BenchError(
            f"{path}: cannot be asked with --image-size {image_size} ({line}); give another, or leave it out"
        ) from error


# ---- which weights they are -------------------------------------------------------------------------------------------------


def _base(architecture: str) -> str:
    return architecture.removesuffix(QUICK)


def _released(path: Path, sha256: str) -> tuple[ReleasedFile | None, list[str]]:
    """The record of a file: by content where the authors publish a checksum, else by name; and notes.

    Raises:
        BenchError: it differs from the hash that was pinned for its name.
    """
    known = next((file for file in WEIGHTS if file.sha256 == sha256), None)
    if known is not None:
        return known, []
    named = find_released(path)
    if named is None or named.family != "openclip":
        return None, []
    if named.sha256:
        return None, [f"{path.name} is called like {named.name}, whose sha256 is another: it is taken for another file"]
    pin_or_check(path, named.name, sha256)
    return named, []


def _trained_for(released: ReleasedFile | None, task: str) -> str:
    """What a file was tuned for: with COCO's captions for retrieval on COCO, too, whichever the loss was."""
    own = (released.task or "") if released else ""
    return task if (own, task) == ("coco-caption", "coco-retrieval") else own


def _named(library: Any, place: Place, beside: Mapping[str, Any] | None) -> Architecture:
    """The architecture as SOURCE or the config beside the weights says it."""
    if place.architecture is not None:
        return Architecture(place.architecture, library.get_model_config(place.architecture))
    if beside is None:  # the file was there when it was located
        raise BenchError(f"{place.weights}: has no {CONFIG} beside it any more; put it back")
    config = copy.deepcopy(beside["model_cfg"])
    names = (name for name in library.list_models() if library.get_model_config(name) == config)
    return Architecture(next(names, None), config)


def _decide(
    library: Any, architecture: Architecture, tag: str | None, beside: Mapping[str, Any] | None, scripted: bool
) -> None:
    """Set activation and pixels of an architecture as the weights were trained with, as far as anything says it.

    A config beside the file is the file's own; then the tag counts; then what all of open_clip's weights of this architecture
    have in common; and where even that says nothing, the architecture is taken at its word, with a note.

    Raises:
        BenchError: open_clip has no such tag for this architecture.
    """
    name, config = architecture.name, architecture.config
    tags = _tags(library, name)
    if tag is not None and tag not in tags:
        raise BenchError(f"-o tag={tag}: open_clip has no such weights of {name}; {did_you_mean(tag, tags)}")
    named = bool(config.get("quick_gelu", False))
    trained: bool | None = None
    if tag is not None:
        trained = bool(tags[tag].get("quick_gelu", False))
    elif scripted:  # OpenAI's form, and so does open_clip's own loader take it
        trained = True
    elif beside is not None:
        trained = bool(beside["model_cfg"].get("quick_gelu", False))
    elif name is not None and not named and f"{name}{QUICK}" in library.list_models():
        architecture.notes.append(
            f"the file does not say its activation: GELU, as {name} says; for weights of OpenAI, MetaCLIP or DFN name "
            f"{name}{QUICK}"
        )
    if trained is not None and trained != named:
        config["quick_gelu"] = trained
        words = ("GELU", "QuickGELU")
        architecture.notes.append(
            f"the weights were trained with {words[trained]}; {name or CONFIG} says {words[named]}"
        )
    if beside is not None and beside["preprocess_cfg"]:
        architecture.pixels = _pixels(beside["preprocess_cfg"])
    elif tag is not None:
        architecture.pixels = _pixels(tags[tag])
    elif tags:
        _pixels_of_all(architecture, tags)


def _pixels_of_all(architecture: Architecture, tags: Mapping[str, Mapping[str, Any]]) -> None:
    kinds = [_pixels(tags[tag]) for tag in tags]
    architecture.pixels = max(kinds, key=kinds.count)
    others = [tag for tag, kind in zip(tags, kinds, strict=True) if kind != architecture.pixels]
    if others:
        architecture.notes.append(
            f"the file does not say its image preprocessing: that of most weights of {architecture.name} was taken; "
            f"{', '.join(others)} was trained with another (-o tag={others[0]})"
        )


def _tags(library: Any, name: str | None) -> dict[str, dict[str, Any]]:
    """open_clip's records of the pretrained weights of an architecture, with and without QuickGELU, by tag."""
    names = [] if name is None else [name, _base(name), f"{_base(name)}{QUICK}"]
    return {
        tag: library.get_pretrained_cfg(n, tag)
        for n in reversed(names)
        for tag in library.list_pretrained_tags_by_model(n)
    }


def _pixels(config: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: config[key] for key in PIXEL_KEYS if config.get(key) is not None}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _words(architecture: Architecture, path: Path) -> str:
    return architecture.name or f"the {CONFIG} in {path.parent}"


# ---- the network --------------------------------------------------------------------------------------------------------------


def _built(
    library: Any, architecture: Architecture, place: Place, path: Path, image_size: int | None
) -> tuple[nn.Module, bool]:
    """The network with random weights, and whether its input is of another size than the architecture's.

    Raises:
        BenchError: open_clip cannot build it.
    """
    vision = architecture.config["vision_cfg"]
    resized = image_size is not None and vision.get("image_size") != image_size
    forced = image_size if resized and "timm_model_name" not in vision else None
    name = place.architecture or f"local-dir:{path.parent}"
    try:
        with offline():
            module = library.create_model(
                name,
                pretrained=None,
                load_weights=False,
                precision="fp32",
                device="cpu",
                pretrained_image=False,
                pretrained_text=False,
                force_image_size=forced,
                quick_gelu=bool(architecture.config.get("quick_gelu", False)),
            )
    except Exception as error:  # open_clip, timm and transformers raise errors of many kinds for what they cannot build
        if exhausted(error) is not None:
            raise
        line = " ".join(str(error).split())[:160] or type(error).__name__
        tower = architecture.config["text_cfg"].get("hf_model_name")
        if tower and isinstance(error, OSError):
            line = f"its text tower is {tower!r}, whose config is not in Hugging Face's cache on this machine"
        raise BenchError(f"{path}: open_clip cannot build {_words(architecture, path)}: {line}") from error
    return module, resized
