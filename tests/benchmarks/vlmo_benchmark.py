"""VLMo base on a CPU in float32: our forward pass against one that works as the official code does.

    python tests/benchmarks/vlmo_benchmark.py [--preset base] [--image-size 384] [--images 2] [--repeats 5]

The official way (`multiway_transformer.py`, `vlmo_module.py`): texts padded to 40 tokens, the position biases of all layers gathered for
every batch, scores and probabilities of attention written out, all tokens through the last layer. Both have the same random
weights, their outputs are compared, and they take turns; the ratio is the median over repeats.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
import torch.nn.functional as F

import beit3_bench  # noqa: F401  (before torch: it sets how products are made)
from beit3_bench.backbones.packing import pack_weights
from beit3_bench.backbones.vlmo.config import VLMoConfig
from beit3_bench.backbones.vlmo.loading import random_model
from beit3_bench.backbones.vlmo.model import VLMo, relative_positions

LENGTHS = (9, 12, 7, 10, 14, 8, 11, 9)
"""Tokens of typical questions, [CLS] and [SEP] included."""


def official_biases(model: VLMo, image: bool, text: bool) -> list[torch.Tensor | None]:
    """Per layer (heads, T, T), the text first."""
    table, config = model.relative_position_bias_table, model.config
    if table is None:
        return [None] * config.depth
    index = relative_positions(config.grid, config.max_text_length, config.initial_text_length)
    split = config.image_tokens
    order = torch.cat(
        [torch.arange(split, len(index)) if text else torch.arange(0), torch.arange(split if image else 0)]
    )
    biases = F.embedding(index[order][:, order], table).permute(2, 0, 1)
    return list(biases.contiguous().chunk(config.depth))


def official_states(
    model: VLMo, images: torch.Tensor | None, ids: torch.Tensor | None, kept: torch.Tensor | None
) -> torch.Tensor:
    """All tokens behind the final norm: (B, 40 + N, D)."""
    parts = [] if ids is None else [model.embed_text(ids)]
    parts += [] if images is None else [model.embed_image(images)]
    x = torch.cat(parts, dim=1)
    text = 0 if ids is None else ids.shape[1]
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    if kept is not None:
        mask[:, :text] = kept
    biases = official_biases(model, images is not None, ids is not None)
    add = lambda x, y, gamma: x + y if gamma is None else x + gamma * y  # noqa: E731
    for block, bias in zip(model.transformer.blocks, biases, strict=True):
        q, k, v = block.attn.heads(block.attn.qkv(block.norm1(x)))
        scores = (q * q.shape[-1] ** -0.5).float() @ k.float().transpose(-2, -1)
        scores = scores if bias is None else scores + bias.unsqueeze(0)
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        heads = (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = add(x, block.attn.proj(heads), block.gamma_1)
        if images is not None and ids is not None and block.has_vl:
            x = add(x, block.mlp_vl(block.norm2_vl(x)), block.gamma_2)
        else:
            first, second = x[:, :text], x[:, text:]
            first = first if ids is None else add(first, block.mlp_text(block.norm2_text(first)), block.gamma_2)
            second = second if images is None else add(second, block.mlp_imag(block.norm2_imag(second)), block.gamma_2)
            x = torch.cat([first, second], dim=1)
    return model.transformer.norm(x)


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.inference_mode()
def main(preset: str, image_size: int, images: int, repeats: int) -> None:
    config = VLMoConfig.preset(preset, image_size=image_size)
    torch.manual_seed(0)
    ours = random_model("vqav2", config, 3129)
    theirs = copy.deepcopy(ours)
    pack_weights(ours)
    pixels = torch.randn(images, 3, image_size, image_size)
    lengths = torch.tensor((LENGTHS * images)[:images])
    longest = int(lengths.max())
    kept = torch.arange(config.max_text_length) < lengths[:, None]
    ids = torch.randint(1000, config.vocab_size, kept.shape).where(kept, 0)

    def vqa_ours() -> torch.Tensor:
        return ours(pixels, ids[:, :longest], ~kept[:, :longest])

    def vqa_theirs() -> torch.Tensor:
        return theirs.vqa_classifier(theirs.pooler(official_states(theirs, pixels, ids, kept)[:, 0]))

    cases = {
        "question and image": (vqa_ours, vqa_theirs),
        "image": (lambda: ours.image_state(pixels), lambda: official_states(theirs, pixels, None, None)[:, 0]),
        "text": (lambda: ours.text_state(ids[:, :longest], ~kept[:, :longest]), lambda: official_states(theirs, None, ids, kept)[:, 0]),
    }  # fmt: skip
    for name, (mine, official) in cases.items():
        apart = (mine() - official()).abs().max().item()
        pairs = [(seconds(official), seconds(mine)) for _ in range(repeats)]
        ratio = statistics.median(a / b for a, b in pairs)
        official_s, own_s = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(
            f"{name}: {ratio:.2f} times as fast ({official_s:.3f} s -> {own_s:.3f} s for {images}), outputs {apart:.1e} apart"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    main(arguments.preset, arguments.image_size, arguments.images, arguments.repeats)
