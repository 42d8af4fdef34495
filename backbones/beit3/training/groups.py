"""Parameter groups of the official optimizer (`optim_factory.get_parameter_groups`), built on official names.

No weight decay on one-dimensional parameters, biases and the list `NO_DECAY`. With layer decay, embeddings are layer 0,
encoder layer n is n + 1 and everything else (heads, final norms, logit_scale) is the last; a layer's rate is
``decay ** (depth + 1 - layer)``.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from beit3_bench.backbones.beit3.checkpoint import official_names

NO_DECAY = ("beit3.encoder.embed_positions.A.weight", "beit3.vision_embed.cls_token", "logit_scale")
"""What the official models add to the rule of one dimension; text tables and the mask token do decay."""

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def layer_of(name: str, depth: int) -> int:
    """Layer id of an official name: 0 (embeddings) to depth + 1 (heads)."""
    if "embed" in name:
        return 0
    layer = _LAYER.search(name)
    return int(layer[1]) + 1 if layer else depth + 1


def parameter_groups(
    model: nn.Module, depth: int, weight_decay: float, layer_decay: float = 1.0, head_lr_factor: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, in order of first appearance.

    Args:
        depth: number of encoder layers.
        head_lr_factor: rate factor of names that start with ``head``, where there is no layer decay and it is above 1.

    Returns:
        ``{"name", "params", "names" (ours), "lr_scale", "weight_decay"}``; the rate of a group is schedule x lr_scale.
    """
    groups: dict[str, dict[str, Any]] = {}
    names = official_names(model)
    for own, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # The parts of a fused qkv share shape, ending and layer, so the first one speaks for all.
        official = names[own][0]
        decays = not (parameter.ndim <= 1 or official.endswith(".bias") or official in NO_DECAY)
        kind, scale = "decay" if decays else "no_decay", 1.0
        if layer_decay < 1.0:
            layer = layer_of(official, depth)
            kind, scale = f"layer_{layer}_{kind}", layer_decay ** (depth + 1 - layer)
        elif head_lr_factor > 1.0:
            layer = int(official.startswith("head"))
            kind, scale = f"layer_{layer}_{kind}", head_lr_factor if layer else 1.0
        group = groups.setdefault(
            kind,
            {
                "name": kind,
                "params": [],
                "names": [],
                "lr_scale": scale,
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(own)
    return list(groups.values())
