"""Products of somebody else's network whose rows do not depend on their batch: CPU, float32, evaluation.

`packing` replaces the linear layers of a network. What a network multiplies otherwise (the projections inside of
`nn.MultiheadAttention`, ``x @ self.proj``) is caught here on its way to the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from beit3_bench.backbones.packing import PLAIN
from beit3_bench.backbones.products import exact_linear, exact_products, onednn_layout

_ATEN = torch.ops.aten


class ExactRows(TorchDispatchMode):
    """While it is entered, products with a network's parameters are made as `products.exact_products` says. Needs memory for a
    second copy of those parameters where that is over oneDNN's layout.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.way = exact_products() or PLAIN
        self._storages = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._laid_out: dict[tuple[Any, ...], Tensor] = {}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The mode, and without PyTorch's fused attention layer, which multiplies by itself; nothing where plain products are exact."""
        if self.way == PLAIN:
            yield
            return
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with self:
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs and func is _ATEN.linear.default and self._ours(args[0], args[1]):
            return exact_linear(self.way, args[0], self._layout(args[1]), args[2] if len(args) > 2 else None)
        if not kwargs and func is _ATEN.addmm.default and args[0].ndim == 1 and self._ours(args[1], args[2]):
            return exact_linear(self.way, args[1], self._layout(args[2].t()), args[0])
        if func in (_ATEN.mm.default, _ATEN.matmul.default) and self._ours(args[0], args[1]):
            return exact_linear(self.way, args[0], self._layout(args[1].t()), None)
        return func(*args, **(kwargs or {}))

    def _ours(self, x: Any, weight: Any) -> bool:
        """Whether this is a product of float32 rows with a parameter, or with a part of one."""
        return (
            isinstance(x, Tensor)
            and isinstance(weight, Tensor)
            and weight.ndim == 2
            and x.ndim >= 2
            and x.numel() > 0
            and x.is_cpu
            and x.dtype == weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and weight.untyped_storage().data_ptr() in self._storages
        )

    def _layout(self, weight: Tensor) -> Tensor:
        """(out, in) as the way of multiplying wants it."""
        key = (weight.data_ptr(), tuple(weight.shape), weight.stride())
        if key not in self._laid_out:
            flat = weight.detach().contiguous()
            self._laid_out[key] = onednn_layout(flat) if self.way.library == "oneDNN" else flat
        return self._laid_out[key]
