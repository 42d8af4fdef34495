"""The ViTDet fine-tuning recipe: learning rate schedule, layer-wise decay by parameter name, AdamW groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
"""Modules exempt from weight decay. The channel LayerNorm of pyramid and heads is decayed, as in detectron2."""


def lr_multiplier(
    step: int, max_steps: int, milestones: Sequence[int], warmup_steps: int = 250, warmup_factor: float = 1e-3
) -> float:
    """Multiplier of the learning rate at ``step`` (0-based): linear warm-up, then a tenth of it from each milestone on.

    ViTDet-B, 100 epochs at batch 64: ``max_steps=184375, milestones=(163889, 177546)``.
    """

    def decayed(at: float) -> float:
        return 0.1 ** sum(at >= milestone for milestone in milestones)

    warmup_steps = min(warmup_steps, max_steps)
    if step < warmup_steps:
        done = step / warmup_steps
        return decayed(0) * warmup_factor * (1 - done) + decayed(warmup_steps) * done
    return decayed(step)


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
