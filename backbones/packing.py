"""Linear layers that keep their weights in the layout of the processor's product kernels: CPU, evaluation.

A plain product lays its weights out anew at every call, and under autocast it rounds them anew too.

- float32, Intel MKL: a few percent for a batch of images, half of the time for the few rows of a decoding step. Under
  MKL's strict reproducibility the results are the same bit for bit.
- bfloat16 under autocast, oneDNN: a third of the time and more. Rounded like plain products, but sums may run in
  another order, so that outputs differ by the rounding of bfloat16.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED_ROWS = 512
"""oneDNN lays weights out for a number of rows; this layout serves batches of images and single rows equally well."""


class PackedLinear(nn.Linear):
    """`nn.Linear` that packs its weights when they are used.

    MKL packs for one number of rows: the first that is met twice in a row; oneDNN packs once for any. All other
    products, and all that a gradient flows through, are plain ones.
    """

    packed: Tensor | None
    packed_rows: int
    last_rows: int
    rounded: tuple[Tensor, Tensor | None] | None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if rows == 0 or not x.is_cpu or torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        if torch.is_autocast_enabled("cpu"):
            return self._rounded_product(x)
        if x.dtype != torch.float32 or not torch.backends.mkl.is_available():
            return F.linear(x, self.weight, self.bias)
        if self.packed is None and rows == self.last_rows:
            self.packed, self.packed_rows = torch.ops.mkl._mkl_reorder_linear_weight(self.weight.detach(), rows), rows
        self.last_rows = rows
        if self.packed is None or rows != self.packed_rows:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, rows)

    def _rounded_product(self, x: Tensor) -> Tensor:
        """The product in autocast's precision; packed in bfloat16."""
        if torch.get_autocast_dtype("cpu") != torch.bfloat16 or not _has_bfloat16():
            return F.linear(x, self.weight, self.bias)
        if self.rounded is None:
            weight = self.weight.detach().to(torch.bfloat16)
            bias = None if self.bias is None else self.bias.detach().to(torch.bfloat16)
            self.rounded = torch.ops.mkldnn._reorder_linear_weight(weight, EXPECTED_ROWS), bias
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), *self.rounded, "none", [], "")

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.packed = self.rounded = None
        super()._load_from_state_dict(*args, **kwargs)


def _has_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack_weights(model: nn.Module) -> bool:
    """Turn the linear layers of a model, whose weights will not change any more, into `PackedLinear` in place.

    Names, parameters and outputs stay as they are. Takes memory for a second copy of the weights.

    Returns:
        False, and nothing is changed, without MKL and oneDNN, on another device than the CPU, or where memory is short.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32]
    size = sum(layer.weight.nbytes for layer in layers)
    if not (torch.backends.mkl.is_available() or _has_bfloat16()) or not all(layer.weight.is_cpu for layer in layers):
        return False
    if psutil.virtual_memory().available < 2 * size:
        return False
    for layer in layers:
        layer.__class__ = PackedLinear
        layer.packed, layer.packed_rows, layer.last_rows, layer.rounded = None, 0, 0, None  # type: ignore[assignment]
    return True
