"""The arithmetic that `--dtype` names."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def arithmetic(dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """The arithmetic of ``--dtype`` on a device, to be entered around a network."""
    kind = DTYPES[dtype]
    return nullcontext() if kind is torch.float32 else torch.autocast(device.type, dtype=kind)


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    """A last layer in the precision of its weights, also under autocast: eight bits of a logit or an embedding make ties."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(next(layer.parameters()).dtype))
