"""Every head of a tiny BEiT-3, stage by stage, with what the official code (microsoft/unilm, beit3/) made of the same weights.

`STAGES` and `TENSORS` beside this file are made by tools/numerics.py from tests/golden/beit3 (its README says how the official code
was run). SNLI-VE has no official code: its head is VQAv2's with three outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.numerics import (
    Given,
    Head,
    Pairs,
    Watch,
    Way,
    heads_of,
    pack,
    padded,
    read_embedded,
    weights_of,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

FOLDER = files("beit3_bench.backbones.beit3.numerics")
DECODING = {"num_beams": 3, "max_length": 12, "length_penalty": 0.6}
"""Of the captions: the official evaluation command's beams and penalty, with short captions."""
STEPS = 5
"""Words behind each of which the official code's logits were kept."""
PICTURES = "pictures"
"""The head without a network: decoding, resizing and normalising, on the CPU whatever the device."""


def numerics() -> list[Head]:
    """The heads, first the encoder whose every layer the official code was traced in.

    Raises:
        BenchError: an embedded file is missing or damaged.
    """
    embedded = read_embedded(FOLDER)
    pictures = Head(
        "beit3", PICTURES, embedded.stages[PICTURES], lambda _device: picture_stages(embedded.part("pictures"))
    )
    return [pictures, *heads_of("beit3", embedded, WAYS, build, _make_ready)]


def build(task: str, config: Mapping[str, Any], weights: Given) -> nn.Module:
    """A tiny network. task: a name of `models.HEADS`."""
    from beit3_bench.backbones.beit3.checkpoint import load_checkpoint
    from beit3_bench.backbones.beit3.config import BEiT3Config
    from beit3_bench.backbones.beit3.models import build_model

    outputs = config["num_classes"].get(task)
    model = build_model(task, BEiT3Config(**config["network"]), **({"num_classes": outputs} if outputs else {}))
    own, absent = weights_of(task, weights), () if _has_final_norm(model) else ("beit3.encoder.layer_norm.",)
    load_checkpoint(
        model, {name: x for name, x in own.items() if not name.startswith(absent)}, origin=f"embedded {task}"
    )
    return model


def _has_final_norm(model: Any) -> bool:
    return model.beit3.encoder.layer_norm is not None


def _make_ready(model: nn.Module, device: torch.device) -> None:
    """As `native.Captioner.make_ready`, too."""
    from beit3_bench.backbones.beit3.decoding_graphs import keep_graphs
    from beit3_bench.backbones.beit3.models import Captioning

    pack(model, device)
    if device.type == "cuda" and isinstance(model, Captioning):
        keep_graphs(model)


# ---- the ways through the heads -----------------------------------------------------------------------------------------


def _encoder(model: Any, given: Given) -> dict[str, Tensor]:
    """Two images with their texts, every token of every layer."""
    watch, text = Watch(), _text(given, "retrieval", 2)
    with watch.on(*_encoder_modules(model.beit3)):
        model.beit3(given["images"][:2], *text)
    return watch.stages()


def _retrieval_images(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(*_encoder_modules(model.beit3)):
        embedding = model.encode_image(given["images"][:4])
    return {**watch.stages(), "embedding": embedding}


def _retrieval_texts(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(*_encoder_modules(model.beit3)):
        embedding = model.encode_text(*_text(given, "retrieval", 4))
    return {**watch.stages(), "embedding": embedding}


def _vqav2(model: Any, given: Given) -> dict[str, Tensor]:
    watch, pooled = Watch(), Watch()
    with watch.on(*_encoder_modules(model.beit3)), pooled.on([("pooled", model.pooler)]):
        logits = model(given["images"][:4], *_text(given, "vqav2", 4))
    return {**watch.stages(), **pooled.stages(), "logits": logits}


def _nlvr2(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(*_encoder_modules(model.beit3)):
        logits = model(given["images"][:2], given["images"][4:6], *_text(given, "nlvr2", 2))
    return {**watch.stages(), "logits": logits}


def _imagenet(model: Any, given: Given) -> dict[str, Tensor]:
    watch = Watch()
    with watch.on(*_encoder_modules(model.beit3)):
        logits = model(given["images"][:4])
    return {**watch.stages(), "logits": logits}


def _captioning(model: Any, given: Given) -> dict[str, Tensor]:
    """The masked words of given captions."""
    watch, tokens = Watch(), given["captioning.masked_tokens"][:4]
    with watch.on(*_encoder_modules(model.beit3)):
        logits = model(
            given["images"][:4],
            tokens,
            given["captioning.padding_mask"][:4],
            given["captioning.language_masked_pos"][:4],
        )
    return {**watch.stages(), "logits": logits}


def _decoding(model: Any, given: Given) -> dict[str, Tensor]:
    """Word by word: the logits behind given words, then captions by beam search with their scores."""
    import torch

    from beit3_bench.backbones.beit3.generation import Decoding, decode_step, encode_images

    words, mask = given["captioning.tokens"][:2, :STEPS], model.config.mask_token_id
    images, decoding = given["images"][:4], Decoding(**DECODING)
    memory = encode_images(model.beit3, images[:2])
    hidden = [decode_step(model.beit3, memory, words[:, n : n + 1], mask, n)[:, 0] for n in range(STEPS)]
    hypotheses = model.hypotheses(images, decoding)
    return {
        "logits of each word": model.exact(model.mlm_head, torch.stack(hidden, dim=1)),
        "scores of captions": torch.tensor([h.score for h in hypotheses], dtype=torch.float64),
        "words of captions": padded([h.ids for h in hypotheses], decoding.max_length, model.config.pad_token_id),
    }


WAYS: dict[str, Way] = {
    "encoder": Way("retrieval", _encoder),
    "retrieval of images": Way("retrieval", _retrieval_images),
    "retrieval of texts": Way("retrieval", _retrieval_texts),
    "vqav2": Way("vqav2", _vqav2),
    "nlvr2": Way("nlvr2", _nlvr2),
    "imagenet-linear": Way("imagenet-linear", _imagenet),
    "coco-caption": Way("coco-caption", _captioning),
    "coco-caption, decoding": Way("coco-caption", _decoding),
}


def _text(given: Given, task: str, count: int) -> tuple[Tensor, Tensor]:
    return given[f"{task}.tokens"][:count], given[f"{task}.padding_mask"][:count]


def _encoder_modules(beit3: Any) -> tuple[Pairs, Pairs, int]:
    """What is watched: outputs of modules, and the two streams that the first layer takes."""
    encoder = beit3.encoder
    outputs = [("patches", beit3.vision_embed), ("words", beit3.text_embed)]
    outputs += [(f"layer {number}", layer) for number, layer in enumerate(encoder.layers, 1)]
    outputs += [("final norm", norm) for norm in (encoder.layer_norm or {}).values()]
    return outputs, [("with positions", encoder.layers[0])], 2


# ---- pictures -----------------------------------------------------------------------------------------------------------


def picture_stages(given: Given) -> dict[str, Tensor]:
    """Pixels of a picture in two formats, and what the official evaluation transforms make of it.

    given: the files' bytes, uint8 (n,).
    """
    from beit3_bench.backbones.preprocess import Preprocessing, decode, planes

    png, jpeg = (decode(f"embedded {name}", given[name].numpy().tobytes()) for name in ("png", "jpeg"))
    squashed, cropped = Preprocessing(32), Preprocessing.for_head("imagenet-linear", 40)
    return {
        "PNG, decoded": planes(png),
        "JPEG, decoded": planes(jpeg),
        "resized": squashed.normalise(squashed.pixels(png)),
        "resized and cropped": cropped.normalise(cropped.pixels(png)),
    }
