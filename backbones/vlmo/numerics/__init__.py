"""Every head of a tiny VLMo, stage by stage, with what the official code (microsoft/unilm, vlmo/) made of the same weights.

The files beside this one are made by tools/numerics.py from tests/golden/peers/vlmo: of the form of base plus, without relative positions,
whose golden weights are three times as large.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.numerics import Given, Head, Pairs, Watch, Way, heads_of, read_embedded, weights_of

if TYPE_CHECKING:
    from torch import Tensor, nn

FOLDER = files("beit3_bench.backbones.vlmo.numerics")


def numerics() -> list[Head]:
    """See `family.Family.numerics`."""
    return heads_of("vlmo", read_embedded(FOLDER), WAYS, build)


def build(task: str, config: Mapping[str, Any], weights: Given) -> nn.Module:
    """A tiny network. task: a key of `loading.HEADS`."""
    from beit3_bench.backbones.vlmo import loading
    from beit3_bench.backbones.vlmo.config import Settings, shape_of_file

    tensors, origin = weights_of(task, weights), f"embedded {task}"
    shape = shape_of_file(tensors, origin, Settings(**config["settings"]))
    return loading.build(task, shape, config["outputs"].get(task, 0), tensors, origin)[0]


def _modules(model: Any) -> tuple[Pairs, Pairs]:
    """What is watched: outputs of modules, and what the first layer takes."""
    blocks = model.transformer.blocks
    outputs = [("words", model.text_embeddings)]
    outputs += [(f"layer {number}", block) for number, block in enumerate(blocks, 1)]
    return [*outputs, ("final norm", model.transformer.norm)], [("embeddings", blocks[0])]


def _text(given: Given, count: int) -> tuple[Tensor, Tensor]:
    return given["text_ids"][:count], 1 - given["text_masks"][:count]


def _images(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(*_modules(model)):
        embedding = model.encode_image(given["images"][:4])
    return {**watch.stages(), "embedding": embedding}


def _texts(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(*_modules(model)):
        embedding = model.encode_text(*_text(given, 4))
    return {**watch.stages(), "embedding": embedding}


def _vqav2(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(*_modules(model)):
        logits = model(given["images"][:4], *_text(given, 4))
    return {**watch.stages(), "logits": logits}


def _nlvr2(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(*_modules(model)):
        logits = model(given["images"][:2], given["images"][4:6], *_text(given, 2))
    return {**watch.stages(), "logits": logits}


WAYS: dict[str, Way] = {
    "retrieval of images": Way("retrieval", _images),
    "retrieval of texts": Way("retrieval", _texts),
    "vqav2": Way("vqav2", _vqav2),
    "nlvr2": Way("nlvr2", _nlvr2),
}
