"""Retrieval and captions of a tiny BLIP, stage by stage, with what the official code (salesforce/BLIP) made of the same weights.

The files beside this one are made by tools/numerics.py from tests/golden/peers/blip.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.fusion.numerics import RETRIEVAL_WAYS, build_head, text_modules, vision_modules
from beit3_bench.backbones.numerics import Given, Head, Watch, Way, heads_of, padded, read_embedded

if TYPE_CHECKING:
    from torch import Tensor, nn

FOLDER = files("beit3_bench.backbones.blip.numerics")
DECODING = {"num_beams": 3, "max_length": 20, "min_length": 5}
"""Of captions, as the official evaluation on COCO."""


def numerics() -> list[Head]:
    """See `family.Family.numerics`."""
    return heads_of("blip", read_embedded(FOLDER), WAYS, build)


def build(task: str, config: Mapping[str, Any], weights: Given) -> nn.Module:
    """A tiny network."""
    from beit3_bench.backbones.blip.heads import Captioning, Retrieval
    from beit3_bench.backbones.fusion.beams import Beams

    heads = config["heads"][task]
    if task == "retrieval":
        return build_head("BLIP", task, heads, weights, Retrieval)
    beams = Beams(**DECODING)
    return build_head(
        "BLIP", task, heads, weights, lambda shape: Captioning(shape, config["prompt"], config["end"], beams)
    )


def _captioning(model: Any, given: Given) -> dict[str, Tensor]:
    """The words behind those of given captions; behind padding nothing is read."""
    vision, watch = Watch(), Watch()
    count, kept = len(given["caption.teacher_ids"]), given["caption.teacher_atts"].bool()
    with vision.on(*vision_modules(model.visual_encoder)), watch.on(text_modules(model.text_decoder.bert)):
        logits = model(given["caption.images"][:count], given["caption.teacher_ids"])
    image = {f"image: {stage}": x for stage, x in vision.stages().items()}
    return {**image, **watch.stages(), "logits": logits[kept]}


def _decoding(model: Any, given: Given) -> dict[str, Tensor]:
    """Captions by beam search, padded with 0."""
    return {"words of captions": padded(model.generate(given["caption.images"]), DECODING["max_length"], 0)}


WAYS: dict[str, Way] = {
    **RETRIEVAL_WAYS,
    "coco-caption": Way("coco-caption", _captioning),
    "coco-caption, decoding": Way("coco-caption", _decoding),
}
