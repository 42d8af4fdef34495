"""LayerNorms on a CUDA card under autocast: one pass over memory each, with what stands before them.

Autocast computes a LayerNorm in float32 and writes float32, which the product behind it reads again to round it; GELU and
residuals are passes of their own. At base size that is half of the time of an encoder. Here each is one kernel: it reads its
input once, computes in float32 and writes what the product reads. Nothing is rounded that autocast would not round.

Elsewhere, in float32 and in training, everything is as PyTorch does it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSED = False
"""Whether this process has the kernels."""
if torch.cuda.is_available():
    try:
        from beit3_bench.backbones.beit3 import fused_kernels
    except ImportError:  # no Triton: it comes with torch on Linux
        pass
    else:
        FUSED = True

WIDEST = 16_384
"""Widest row that one program holds in registers."""


def _fused(x: Tensor) -> bool:
    return (
        FUSED
        and x.is_cuda
        and x.shape[-1] <= WIDEST
        and not torch.is_grad_enabled()
        and torch.is_autocast_enabled("cuda")
    )


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """``norm(x)``; fused, in autocast's dtype."""
    if not _fused(x):
        return norm(x)
    return fused_kernels.normalise(x, norm.weight, norm.bias, norm.eps, False, torch.get_autocast_dtype("cuda"))


def gelu_layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """``norm(gelu(x))`` with the exact (erf) GELU; fused, in autocast's dtype."""
    if not _fused(x):
        return norm(F.gelu(x))
    return fused_kernels.normalise(x, norm.weight, norm.bias, norm.eps, True, torch.get_autocast_dtype("cuda"))


def add_layer_norm(norm: nn.LayerNorm, x: Tensor, update: Tensor) -> tuple[Tensor, Tensor]:
    """``y = x + update`` and ``norm(y)``; fused, the latter in autocast's dtype."""
    if not _fused(x):
        y = x + update
        return y, norm(y)
    dtype = torch.get_autocast_dtype("cuda")
    return fused_kernels.add_normalise(x, update, norm.weight, norm.bias, norm.eps, dtype)
