"""Small BEiT-3 models with weights drawn so that every one of them matters, in both forms, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from beit3_bench.backbones import BEiT3Config, build_model

RELEASED = {"shared_attention": False, "vl_layers": 0}
GIANT = {"shared_attention": True, "vl_layers": 2, "patch_size": 14, "image_size": 42}
FORMS = {"released": RELEASED, "giant": GIANT}

NUM_CLASSES = {"vqav2": 7, "imagenet-linear": 9}


def config(form: str = "released", **changes: Any) -> BEiT3Config:
    fields = {
        "image_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "num_heads": 4,
        "ffn_dim": 64,
        "depth": 3,
        "vocab_size": 61,
        "num_pieces": 57,
        **FORMS[form],
    }
    return BEiT3Config(**{**fields, **changes})


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter: no LayerNorm at 1 and 0, no bias at 0, attention peaked. Independent of the order of parameters."""
    for name, parameter in sorted(model.named_parameters()):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + sum(ord(c) * (i + 1) for i, c in enumerate(name)))
        draw = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2 and "embed" not in name and "token" not in name:
            draw *= 1.3 / parameter[0].numel() ** 0.5
        elif "norm" in name or "_ln" in name:
            draw = 0.25 * draw + (1.0 if name.endswith("weight") else 0.0)
        else:
            draw *= 0.5
        parameter.copy_(draw)
    return model


def build(task: str, form: str = "released", seed: int = 0, **changes: Any) -> nn.Module:
    arguments = {"num_classes": NUM_CLASSES[task]} if task in NUM_CLASSES else {}
    return randomise(build_model(task, config(form, **changes), **arguments), seed)


def pictures(model: nn.Module, count: int, seed: int = 0) -> Tensor:
    size = model.config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed + 77))


def texts(lengths: list[int], width: int | None = None, seed: int = 0, vocabulary: int = 57) -> tuple[Tensor, Tensor]:
    """Token ids int64 (n, width) and padding mask bool; the same rows for every width."""
    width = width or max(lengths)
    ids = torch.ones(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(seed * 997 + row)
        words = torch.randint(4, vocabulary - 1, (length - 2,), generator=generator).tolist()
        ids[row, :length] = torch.tensor([0, *words, 2])
    return ids, torch.arange(width) >= torch.tensor(lengths).unsqueeze(1)
