"""`BEiT3LayerDecay`: parameter groups of AdamW with a learning rate that falls towards the first layer."""

from __future__ import annotations

import re
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmseg.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

EMBEDDINGS = ("pos_embed", "cls_token", "level_embed", "level_encoding", "query_embed", "query_feat")
"""Parameters without weight decay, beside norms and biases (mmseg's Mask2Former configs; ViT's embeddings)."""

HEAD_EMBEDDINGS = tuple(f"decode_head.{part}" for part in ("mask_embed", "cls_embed", "level_embed", "query_"))
"""What ViT-Adapter's optimizer takes for the first layer (its `get_num_layer_for_vit`)."""

_BLOCK = re.compile(r"backbone\.net\.blocks\.(\d+)\.")


def layer_of(name: str, depth: int, head_embeddings_first: bool = False) -> int:
    """0 for the embeddings of the tower, 1..depth for its blocks, depth + 1 for adapter, pyramid and head.

    head_embeddings_first: `HEAD_EMBEDDINGS` are 0, too.
    """
    if head_embeddings_first and name.startswith(HEAD_EMBEDDINGS):
        return 0
    if name.startswith(("backbone.net.pos_embed", "backbone.net.cls_token", "backbone.net.patch_embed")):
        return 0
    block = _BLOCK.match(name)
    return int(block[1]) + 1 if block else depth + 1


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class BEiT3LayerDecay(DefaultOptimWrapperConstructor):
    """One group per layer and kind of decay.

    ``paramwise_cfg``: ``layer_decay`` (rate of a layer relative to the one above; 1 = none), ``backbone_lr_mult`` (on
    all of the tower, default 1), ``head_embeddings_first`` (see `layer_of`; these then decay as all matrices do, default
    False). New layers (adapter, pyramid, head) have the full rate.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **_: Any) -> None:
        depth = len(module.backbone.net.blocks)
        decay, tower = self.paramwise_cfg.get("layer_decay", 1.0), self.paramwise_cfg.get("backbone_lr_mult", 1.0)
        first = bool(self.paramwise_cfg.get("head_embeddings_first", False))
        kept = EMBEDDINGS[:2] if first else EMBEDDINGS
        groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            plain = parameter.ndim == 1 or any(part in kept for part in name.split("."))
            layer, of_tower = layer_of(name, depth, first), name.startswith("backbone.net.")
            scale = decay ** (depth + 1 - layer) * (tower if of_tower else 1.0)
            key = (layer, not of_tower, plain)
            group = groups.setdefault(
                key,
                {
                    "params": [],
                    "lr": self.base_lr * scale,
                    "weight_decay": 0.0 if plain else self.base_wd,
                    "name": f"layer {layer}{' without decay' if plain else ''}",
                },
            )
            group["params"].append(parameter)
        params.extend(groups[key] for key in sorted(groups))
