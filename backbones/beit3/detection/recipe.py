"""The ViTDet fine-tuning recipe: layer-wise decay by parameter name, AdamW groups."""

from __future__ import annotations

from typing import Any

from torch import nn

from beit3_bench.backbones.schedule import lr_multiplier as lr_multiplier

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
"""Modules exempt from weight decay. The channel LayerNorm of pyramid and heads is decayed, as in detectron2."""


def layer_decay_factor(name: str, rate: float, num_layers: int) -> float:
    """Factor of the learning rate by a parameter's name: ``rate`` to the power of its distance from the head.

    ``backbone...pos_embed``, ``...patch_embed`` and ``...cls_token`` are layer 0, ``...blocks.N.`` is layer N + 1,
    all else has the full rate (detectron2 `get_vit_lr_decay_rate`, which knows no ``cls_token``).
    """
    layer = num_layers + 1
    if name.startswith("backbone"):
        if ".pos_embed" in name or ".patch_embed" in name or ".cls_token" in name:
            layer = 0
        elif ".blocks." in name and ".residual." not in name:
            layer = int(name.split(".blocks.")[1].split(".")[0]) + 1
    return rate ** (num_layers + 1 - layer)


def param_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float, num_layers: int
) -> list[dict[str, Any]]:
    """AdamW groups of a detector: layer-wise learning rates; no weight decay for `NORMS` and ``pos_embed``.

    Parameters of equal settings share a group; every group carries ``names`` (its parameters' names) and ``params``.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            name = f"{prefix}.{local}" if prefix else local
            exempt = isinstance(module, NORMS) or local == "pos_embed"
            key = (lr * layer_decay_factor(name, layer_decay, num_layers), 0.0 if exempt else weight_decay)
            group = groups.setdefault(key, {"params": [], "names": [], "lr": key[0], "weight_decay": key[1]})
            group["params"].append(parameter)
            group["names"].append(name)
    return list(groups.values())
