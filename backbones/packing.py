"""Linear layers that keep their weights in the layout of the processor's product kernels: CPU, evaluation.

A plain product lays its weights out anew at every call, and under autocast it rounds them anew too.

- float32, where plain products are exact (`products.exact_products`: Intel): packed for MKL, a few percent for a batch of
  images, half of the time for the few rows of a decoding step. A layer's packed product is used once it has been seen to
  be the plain one bit for bit.
- float32, where products over oneDNN's layout are exact and plain ones are not (AMD with AVX-512): packed for oneDNN, so
  that rows do not depend on their batch. Sums run in another order than plain ones: outputs differ from theirs by the
  rounding of float32.
- bfloat16 under autocast, oneDNN: a third of the time and more. Rounded like plain products, but sums may run in
  another order, so that outputs differ by the rounding of bfloat16.
"""

from __future__ import annotations

from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from beit3_bench.backbones.products import ExactProducts, exact_linear, exact_products, onednn_layout

PLAIN = ExactProducts("plain", 1)


class PackedLinear(nn.Linear):
    """`nn.Linear` that packs its weights when they are used, and whose rows are exact where that can be had.

    MKL packs for one number of rows: the first that is met twice in a row; oneDNN packs once for any. All other
    products, and all that a gradient flows through, are plain ones.

    way: how products are exact on this processor; `PLAIN` too where no way is.
    packs: whether MKL's packed product is the plain one bit for bit, as far as it has been seen.
    parts: oneDNN's layout of the rows from..to of the weight, with their bias.
    """

    way: ExactProducts
    packs: bool
    packed: Tensor | None
    packed_rows: int
    last_rows: int
    parts: dict[tuple[int, int], tuple[Tensor, Tensor | None]]
    rounded: tuple[Tensor, Tensor | None] | None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if rows == 0 or not x.is_cpu or torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        if torch.is_autocast_enabled("cpu"):
            return self._rounded_product(x)
        if x.dtype != torch.float32:
            return F.linear(x, self.weight, self.bias)
        if self.way != PLAIN:
            return self._exact_product(x, 0, self.out_features)
        flat = x.reshape(rows, self.in_features)  # for the same reason as in `products.exact_linear`
        return self._plain_product(flat, rows).view(*x.shape[:-1], self.out_features)

    def _plain_product(self, x: Tensor, rows: int) -> Tensor:
        if not self.packs or not torch.backends.mkl.is_available():
            return F.linear(x, self.weight, self.bias)
        if self.packed is None and rows == self.last_rows:
            return self._pack(x, rows)
        self.last_rows = rows
        if self.packed is None or rows != self.packed_rows:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, rows)

    def _pack(self, x: Tensor, rows: int) -> Tensor:
        """The plain product; from now on the packed one serves as many rows if it is the same."""
        packed = torch.ops.mkl._mkl_reorder_linear_weight(self.weight.detach(), rows)
        product = F.linear(x, self.weight, self.bias)
        with _disable_current_modes():  # who counts a model's operations is not to count the comparison
            self.packs = torch.equal(torch.ops.mkl._mkl_linear(x, packed, self.weight, self.bias, rows), product)
        if self.packs:
            self.packed, self.packed_rows = packed, rows
        return product

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Output features ``start`` to ``stop`` only: (..., in) -> (..., stop - start)."""
        bias = None if self.bias is None else self.bias[start:stop]
        exact = x.is_cpu and x.dtype == torch.float32 and x.numel() > 0
        if not exact or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.weight[start:stop], bias)
        if self.way == PLAIN:
            return exact_linear(PLAIN, x, self.weight[start:stop], bias)
        return self._exact_product(x, start, stop)

    def _exact_product(self, x: Tensor, start: int, stop: int) -> Tensor:
        weight = self.weight.detach()[start:stop]
        bias = None if self.bias is None else self.bias.detach()[start:stop]
        if self.way.library != "oneDNN":
            return exact_linear(self.way, x, weight, bias)
        if (start, stop) not in self.parts:
            self.parts[start, stop] = onednn_layout(weight.contiguous()), bias
        return exact_linear(self.way, x, *self.parts[start, stop])

    def _rounded_product(self, x: Tensor) -> Tensor:
        """The product in autocast's precision; packed in bfloat16."""
        if torch.get_autocast_dtype("cpu") != torch.bfloat16 or not _has_bfloat16():
            return F.linear(x, self.weight, self.bias)
        if self.rounded is None:
            weight = self.weight.detach().to(torch.bfloat16)
            bias = None if self.bias is None else self.bias.detach().to(torch.bfloat16)
            self.rounded = onednn_layout(weight), bias
        return torch.ops.mkldnn._linear_pointwise(x.to(torch.bfloat16), *self.rounded, "none", [], "")

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def _forget(self) -> None:
        """What was laid out of earlier weights."""
        self.packed, self.packed_rows, self.last_rows, self.packs = None, 0, 0, True
        self.parts, self.rounded = {}, None


def _has_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def linear_part(layer: nn.Linear, x: Tensor, start: int, stop: int) -> Tensor:
    """Output features ``start`` to ``stop`` of a linear layer, packed or not: (..., in) -> (..., stop - start)."""
    if isinstance(layer, PackedLinear):
        return layer.part(x, start, stop)
    return F.linear(x, layer.weight[start:stop], None if layer.bias is None else layer.bias[start:stop])


def pack_weights(model: nn.Module) -> bool:
    """Turn the linear layers of a model, whose weights will not change any more, into `PackedLinear` in place.

    Names and parameters stay as they are, and so do outputs where plain products are exact (see the head of this module;
    elsewhere they move by rounding). Takes memory for a second copy of the weights.

    Returns:
        False, and nothing is changed, without MKL and oneDNN, on another device than the CPU, or where memory is short.
    """
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.dtype == torch.float32]
    size = sum(layer.weight.nbytes for layer in layers)
    if not (torch.backends.mkl.is_available() or torch.backends.mkldnn.is_available()):
        return False
    if not all(layer.weight.is_cpu for layer in layers) or psutil.virtual_memory().available < 2 * size:
        return False
    way = exact_products() or PLAIN
    for layer in layers:
        layer.__class__ = PackedLinear
        layer.way = way  # type: ignore[assignment]
        layer._forget()
    return True
