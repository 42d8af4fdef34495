"""Memory for networks that were built on the meta device."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def allocate(module: Network, device: torch.device | str = "cpu") -> Network:
    """`nn.Module.to_empty` for contiguous tensors, which imports no compiler: `torch.empty_like` of a meta tensor does, for a second."""

    def empty(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    return module._apply(empty)
