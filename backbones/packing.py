"""Linear layers whose weights Intel MKL keeps in the layout of its product kernel: CPU, float32, evaluation.

A plain product lays its weights out anew at every call, which costs a few percent for a batch of images and half of the
time for the few rows of a decoding step. Under MKL's strict reproducibility the results are the same bit for bit.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Linear):
    """`nn.Linear` that packs its weights for the first number of rows it meets twice in a row.

    MKL packs for one number of rows; all other products, and all that a gradient flows through, are plain ones.
    """

    packed: Tensor | None
    packed_rows: int
    last_rows: int

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        usable = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if rows == 0 or not usable or torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        if self.packed is None and rows == self.last_rows:
            self.packed, self.packed_rows = torch.ops.mkl._mkl_reorder_linear_weight(self.weight.detach(), rows), rows
        self.last_rows = rows
        if self.packed is None or rows != self.packed_rows:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, rows)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*args, **kwargs)


def pack_weights(model: nn.Module) -> bool:
    """Turn the linear layers of a model, whose weights will not change any more, into `PackedLinear` in place.

    Names, parameters and outputs stay as they are. Takes memory for a second copy of the weights.

    Returns:
        False, and nothing is changed, without MKL, on another device than the CPU, or where memory is short.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32]
    size = sum(layer.weight.nbytes for layer in layers)
    if not torch.backends.mkl.is_available() or not all(layer.weight.is_cpu for layer in layers):
        return False
    if psutil.virtual_memory().available < 2 * size:
        return False
    for layer in layers:
        layer.__class__ = PackedLinear
        layer.packed, layer.packed_rows, layer.last_rows = None, 0, 0  # type: ignore[assignment]
    return True
