"""Heads of a tiny ALBEF or BLIP, stage by stage: what `beit3-bench doctor --numerics` compares with the tensors of the official code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.numerics import Given, Pairs, Watch, Way, weights_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from beit3_bench.backbones.fusion.config import FusionConfig


def build_head(
    title: str, task: str, heads: Mapping[str, int], weights: Given, blank: Callable[[FusionConfig], nn.Module]
) -> nn.Module:
    """A tiny network. title: of the family.  heads: of the attentions, ``num_heads`` and ``text_heads``.

    weights: of all tasks, under official names, as ``TASK/NAME``.
    """
    from beit3_bench.backbones.fusion.config import Settings, Shapes, network_shape
    from beit3_bench.backbones.strict_loading import filled_module

    tensors, origin = weights_of(task, weights), f"embedded {task}"
    config, _ = network_shape(Shapes(tensors, origin, title), task, Settings(**heads))
    return filled_module(lambda: blank(config), tensors, origin)[0]


def text(given: Given, count: int) -> tuple[Tensor, Tensor]:
    """Ids and padding of the texts of retrieval."""
    return given["retrieval.text_ids"][:count], 1 - given["retrieval.text_atts"][:count]


def vision_modules(transformer: Any) -> tuple[Pairs, Pairs]:
    """What is watched: outputs of modules, and what the first layer takes."""
    outputs = [(f"layer {number}", block) for number, block in enumerate(transformer.blocks, 1)]
    return [*outputs, ("final norm", transformer.norm)], [("embeddings", transformer.blocks[0])]


def text_modules(bert: Any) -> Pairs:
    outputs = [(f"layer {number}", layer) for number, layer in enumerate(bert.encoder.layer, 1)]
    return [("embeddings", bert.embeddings), *outputs]


def _images(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(*vision_modules(model.visual_encoder)):
        embedding = model.encode_image(given["retrieval.images"])
    return {**watch.stages(), "embedding": embedding}


def _texts(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(text_modules(model.text_encoder)):
        embedding = model.encode_text(*text(given, 4))
    return {**watch.stages(), "embedding": embedding}


def _matches(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(text_modules(model.text_encoder)):
        scores = model.match(given["retrieval.images"], *text(given, len(given["retrieval.images"])))
    return {**watch.stages(), "match scores": scores}


RETRIEVAL_WAYS: dict[str, Way] = {
    "retrieval of images": Way("retrieval", _images),
    "retrieval of texts": Way("retrieval", _texts),
    "re-ranking": Way("retrieval", _matches),
}
