"""How much memory a training of a BEiT-3 takes, estimated from its shapes."""

from __future__ import annotations

from torch import nn

from beit3_bench.backbones.beit3.config import BEiT3Config

STORED_ROWS = 34
"""Rows of width D that one layer keeps per token for the backward pass, where the feed-forward is 4 D wide: two layer
norms, q, k, v, attention, two sub-norms, and three copies of the hidden state with their inputs."""


def memory_bytes(
    config: BEiT3Config,
    parameters: int,
    samples: int,
    text_tokens: int,
    dtype: str,
    average: bool,
    shards: int = 1,
    layer: int = 0,
    root: int = 0,
) -> dict[str, int]:
    """Estimated bytes on one device.

    Args:
        samples: forward passes of one image (and one text) at once.
        shards: processes that share weights, gradients and moments (FSDP); 1 = whole copies.
        layer, root: parameters of the largest layer, and of everything outside of layers.

    Returns:
        ``weights`` (float32 weights, gradients, two moments, and the average), ``gathered`` (FSDP: what is whole for a moment:
        everything outside of layers with gradients, one layer with gradients and the next one, or all weights while it
        validates), ``activations``, ``total``.
    """
    weights = -(-parameters * 4 * (4 + average) // shards)
    width = 4 if dtype == "fp32" else 2
    tokens = config.num_patches + 1 + text_tokens
    row = tokens * config.embed_dim * width
    per_layer = row * (STORED_ROWS - 16 + 4 * config.ffn_dim // config.embed_dim)
    layers = per_layer + config.depth * row if config.checkpoint_activations else config.depth * per_layer
    activations = samples * layers
    gathered = 4 * (2 * root + 3 * layer) if shards > 1 else 0
    validation = 4 * parameters if shards > 1 else 0
    total = weights + max(gathered + activations, validation)
    return {"weights": weights, "gathered": max(gathered, validation), "activations": activations, "total": total}


def gathered_parts(model: nn.Module, layers: tuple[str, ...]) -> dict[str, int]:
    """Parameters of the largest layer that FSDP gathers at once, and of what lies outside of layers.

    layers: names of the layers' classes.
    """
    sizes = [sum(p.numel() for p in m.parameters()) for m in model.modules() if type(m).__name__ in layers]
    return {"layer": max(sizes, default=0), "root": sum(p.numel() for p in model.parameters()) - sum(sizes)}
