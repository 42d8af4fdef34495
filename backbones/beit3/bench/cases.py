"""What is measured: per task the real path and the reference path on the same random weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_bench.backbones.beit3.bench import reference
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.decoding_graphs import keep_graphs
from beit3_bench.backbones.beit3.models import BEiT3Head, Captioning, build_model
from beit3_bench.backbones.packing import pack_weights
from beit3_bench.errors import BenchError

CAPTIONS_PER_IMAGE = 5
TEXT_LENGTHS = {"coco-retrieval": 14, "vqav2": 10, "nlvr2": 20}  # typical BPE tokens with CLS and SEP
NUM_BEAMS, NEW_TOKENS = 3, 20
IMAGE_SIZES = {"coco-retrieval": 384, "coco-caption": 480, "nlvr2": 224, "vqav2": 480, "imagenet": 224}


@dataclass
class Case:
    """ours, theirs: the two paths, each returning what is compared.  samples: how many one call evaluates.

    encode: only the image encoder, for the share of the roof.
    """

    task: str
    image_size: int
    samples: int
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    encode: Callable[[], Any]
    description: str
    model: BEiT3Head

    @property
    def config(self) -> BEiT3Config:
        return self.model.beit3.config

    @property
    def images(self) -> int:
        """How many one call of `encode` encodes."""
        return self.samples * (2 if self.task == "nlvr2" else 1)

    @property
    def product_sizes(self) -> tuple[int, int, int]:
        """Image tokens of one call of `encode`, embedding and feed-forward dimension."""
        return self.images * (self.config.num_patches + 1), self.config.embed_dim, self.config.ffn_dim


def texts(config: BEiT3Config, count: int, length: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Random texts of one length, CLS and SEP around them."""
    ids = torch.randint(4, config.num_pieces or config.vocab_size, (count, length), generator=generator)
    ids[:, 0], ids[:, -1] = config.cls_token_id, config.sep_token_id
    return ids.to(device)


def automatic_samples(image_size: int, device: torch.device) -> int:
    """Samples per call that fill a batch without making a measurement of minutes: about 3,000 image tokens, on a card 32,000."""
    tokens = 3000 if device.type == "cpu" else 32_000
    return max(2, tokens // (image_size // 16) ** 2 // 2 * 2)


def make_case(
    task: str,
    preset: str,
    device: torch.device,
    samples: int | None = None,
    image_size: int | None = None,
    packed: bool = False,
) -> Case:
    """Model, inputs and both paths of a task.

    Args:
        samples: per call; None = `automatic_samples`.
        packed: let the real path keep packed weights, as a run on a CPU does.

    Raises:
        BenchError: a task without a native head.
    """
    case = _make_case(task, preset, device, samples, image_size)
    if packed:
        pack_weights(case.model)
    if device.type == "cuda" and isinstance(case.model, Captioning):
        keep_graphs(case.model)
    return case


def _make_case(task: str, preset: str, device: torch.device, samples: int | None, image_size: int | None) -> Case:
    if task not in IMAGE_SIZES:
        raise BenchError(f"bench has no case for task {task!r}; it has: {', '.join(IMAGE_SIZES)}")
    size = image_size or IMAGE_SIZES[task]
    samples = samples or automatic_samples(size, device)
    config = BEiT3Config.preset(preset, image_size=size)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)

    def images(count: int) -> Tensor:
        return (torch.rand(count, 3, size, size, generator=generator) * 2 - 1).to(device)

    if task in ("coco-retrieval", "imagenet"):
        model = build_model("retrieval", config).to(device)
        if task == "imagenet":
            pictures = images(samples)
            return Case(
                task,
                size,
                samples,
                lambda: model.encode_image(pictures),
                lambda: _unit(model.vision_head(reference.encode(model.beit3, pictures)[:, 0])),
                lambda: model.encode_image(pictures),
                "image encoding, eager attention and one projection each for q, k, v",
                model,
            )
        pictures, captions = (
            images(samples),
            texts(config, samples * CAPTIONS_PER_IMAGE, TEXT_LENGTHS[task], generator, device),
        )

        def retrieval_reference() -> tuple[Tensor, Tensor]:
            first: list[Tensor] = []
            for _ in range(CAPTIONS_PER_IMAGE):  # the official loader has one item per caption
                encoded = _unit(model.vision_head(reference.encode(model.beit3, pictures)[:, 0]))
                first = first or [encoded]
            ids, mask = reference.pad_to_64(captions, None, config.pad_token_id)
            return first[0], _unit(model.language_head(reference.encode(model.beit3, None, ids, mask)[:, 0]))

        return Case(
            task,
            size,
            samples,
            lambda: (model.encode_image(pictures), model.encode_text(captions)),
            retrieval_reference,
            lambda: model.encode_image(pictures),
            f"{CAPTIONS_PER_IMAGE} captions of {TEXT_LENGTHS[task]} tokens per image; image encoded per caption, text padded to 64",
            model,
        )
    if task == "coco-caption":
        model = build_model("coco-caption", config).to(device)
        with torch.no_grad():
            model.mlm_head.weight.mul_(20)  # peaked enough that rounding decides no word
            model.mlm_head.bias[config.sep_token_id] = -1e4  # all captions have the full length
        pictures = images(samples)
        length = NEW_TOKENS + 3
        return Case(
            task,
            size,
            samples,
            lambda: model.generate(pictures, NUM_BEAMS, length, 0.6),
            lambda: reference.generate(model, pictures, NUM_BEAMS, length, 0.6),
            lambda: model.beit3(pictures),
            f"{NUM_BEAMS} beams, {NEW_TOKENS} words; image repeated per beam, caches copied",
            model,
        )
    captions = texts(config, samples, TEXT_LENGTHS[task], generator, device)
    ids, mask = reference.pad_to_64(captions, None, config.pad_token_id)
    if task == "vqav2":
        model = build_model("vqav2", config, num_classes=3129).to(device)
        pictures = images(samples)
        return Case(
            task,
            size,
            samples,
            lambda: model(pictures, captions),
            lambda: model.head(model.pooler(reference.encode(model.beit3, pictures, ids, mask)[:, 0])),
            lambda: model.beit3(pictures),
            f"questions of {TEXT_LENGTHS[task]} tokens; padded to 64",
            model,
        )
    model = build_model("nlvr2", config).to(device)
    left, right = images(samples), images(samples)

    def nlvr2_reference() -> Tensor:
        both = reference.encode(model.beit3, torch.cat([left, right]), ids.repeat(2, 1), mask.repeat(2, 1))
        pooled = torch.cat([both[:, 0], both[:, config.num_patches + 1]], dim=-1)
        return model.head(torch.cat([pooled[:samples], pooled[samples:]], dim=-1))

    return Case(
        task,
        size,
        samples,
        lambda: model(left, right, captions),
        nlvr2_reference,
        lambda: model.beit3(torch.cat([left, right])),
        f"sentences of {TEXT_LENGTHS[task]} tokens; padded to 64",
        model,
    )


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def difference(a: Any, b: Any) -> float:
    """Largest absolute difference of two outputs, the second perhaps an array; of token ids the share of
    sequences that differ.
    """
    if isinstance(a, Tensor):
        return float((a.float() - torch.as_tensor(b, device=a.device).float()).abs().max())
    if isinstance(a, tuple):
        return max(difference(x, y) for x, y in zip(a, b, strict=True))
    return sum(x != y for x, y in zip(a, b, strict=True)) / len(a)
