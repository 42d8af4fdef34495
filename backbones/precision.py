"""The arithmetic that `--dtype` names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    """A last layer in the precision of its weights, also under autocast: eight bits of a logit or an embedding make ties."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(next(layer.parameters()).dtype))
