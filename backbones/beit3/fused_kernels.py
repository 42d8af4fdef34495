"""The Triton kernel behind `fused_norms`. Imported only where there is a CUDA card, since Triton takes a while to import."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _kernel(
    x, update, weight, bias, summed, out, width, eps, ADD: tl.constexpr, GELU: tl.constexpr, BLOCK: tl.constexpr
):
    """One row per program; everything in float32."""
    column = tl.arange(0, BLOCK)
    inside = column < width
    place = tl.program_id(0).to(tl.int64) * width + column
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(summed + place, value.to(summed.dtype.element_ty), mask=inside)
    if GELU:
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    mean = tl.sum(value, axis=0) / width
    centred = tl.where(inside, value - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    gamma = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    beta = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, (centred * scale * gamma + beta).to(out.dtype.element_ty), mask=inside)


def _launch(
    x: Tensor,
    update: Tensor,
    weight: Tensor,
    bias: Tensor,
    summed: Tensor,
    out: Tensor,
    eps: float,
    add: bool,
    gelu: bool,
) -> None:
    width = x.shape[-1]
    rows = x.numel() // width
    if rows:
        block = 1 << (width - 1).bit_length()
        warps = 4 if block <= 1024 else 8
        _kernel[(rows,)](
            x, update, weight, bias, summed, out, width, eps, ADD=add, GELU=gelu, BLOCK=block, num_warps=warps
        )


def normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gelu: bool, dtype: torch.dtype) -> Tensor:
    """LayerNorm over the last dimension of x, or of its GELU, in ``dtype``."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    _launch(x, x, weight, bias, out, out, eps, add=False, gelu=gelu)
    return out


def add_normalise(
    x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + update, and its LayerNorm in ``dtype``."""
    x, update = x.contiguous(), update.contiguous()
    summed = torch.empty_like(x, dtype=torch.promote_types(x.dtype, update.dtype))
    out = torch.empty_like(x, dtype=dtype)
    _launch(x, update, weight, bias, summed, out, eps, add=True, gelu=False)
    return summed, out
