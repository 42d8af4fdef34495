"""Which matrix products give a row the same bits whatever rows stand beside it: tried once per process.

Libraries choose a product's kernel, and with it the order of summation, by the number of rows and threads. Only one
promises that results do not depend on it: Intel's MKL in its strict reproducible mode, on Intel's processors with AVX2 or
AVX-512 (oneMKL Developer Guide, "Reproducibility Conditions"; `beit3_bench.harness` asks for the mode). Elsewhere, MKL
on an AMD processor for one, products of fewer than 4 rows are summed in another order than those of more. There,
oneDNN's products over weights that it has laid out before may still agree, and so may plain ones of a few rows more.

Nothing of this is taken for granted: `exact_products` multiplies and compares.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Library = Literal["plain", "oneDNN"]

EXPECTED_ROWS = 512
"""oneDNN lays weights out for a number of rows; this layout serves batches of images and single rows equally well."""


class ExactProducts(NamedTuple):
    """Products of float32 on the CPU whose rows do not depend on each other, nor on the number of threads.

    library: ``"plain"`` (`F.linear`), or ``"oneDNN"`` with weights laid out by `onednn_layout`.
    least_rows: how many rows a product has at least; fewer are filled up.
    """

    library: Library
    least_rows: int


CANDIDATES = (
    ExactProducts("plain", 1),
    ExactProducts("oneDNN", 2),
    ExactProducts("plain", 4),
    ExactProducts("plain", 8),
)
"""In order of preference: as everybody computes, laid out by oneDNN, filled up."""
_SHAPES = ((32, 96), (48, 20), (768, 2), (768, 768), (3072, 64))
"""(in, out) features: narrow, wide and long ones, of which the last two are worth several threads."""
_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 15, 16, 17, 31, 33, 65, 197)


def exact_products() -> ExactProducts | None:
    """How products have to be made on this processor, with its libraries and settings, for rows that are exactly the same
    at any number of rows and threads; None where no way does it, and rows agree to rounding only.

    Takes about a tenth of a second, once per process and number of threads.
    """
    return _exact_products(torch.get_num_threads())


@functools.cache
def _exact_products(threads: int) -> ExactProducts | None:
    return next((way for way in CANDIDATES if _available(way.library) and _is_exact(way, threads)), None)


def _available(library: Library) -> bool:
    return library == "plain" or torch.backends.mkldnn.is_available()


def _is_exact(way: ExactProducts, threads: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            for inputs, outputs in _SHAPES:
                x = torch.randn(max(_ROWS), inputs, generator=generator)
                weight, bias = (
                    torch.randn(outputs, inputs, generator=generator),
                    torch.randn(outputs, generator=generator),
                )
                laid_out = onednn_layout(weight) if way.library == "oneDNN" else weight
                expected = exact_linear(way, x, laid_out, bias)
                apart = exact_linear(way, x.view(-1, 1, inputs).expand(-1, 2, -1)[::2, :1], laid_out, bias)
                if not torch.equal(apart[:, 0], expected[::2]):  # a view with gaps, of a sequence's first tokens
                    return False
                for count in dict.fromkeys((threads, 1)):
                    torch.set_num_threads(count)
                    for rows in _ROWS:
                        if not torch.equal(exact_linear(way, x[:rows], laid_out, bias), expected[:rows]):
                            return False
                torch.set_num_threads(threads)
    except (RuntimeError, AttributeError):  # built without this operator, or not for this processor
        return False
    finally:
        torch.set_num_threads(threads)
    return True


def onednn_layout(weight: Tensor) -> Tensor:
    """A weight (out, in), float32 or bfloat16, in the layout of oneDNN's kernels."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, EXPECTED_ROWS)


def exact_linear(way: ExactProducts, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` as ``way`` says.

    Args:
        x: (..., in), float32 on the CPU.
        weight: (out, in), for oneDNN as `onednn_layout` gives it.
    """
    rows = x.numel() // max(x.shape[-1], 1)
    if 0 < rows < way.least_rows:
        filled = F.pad(x.reshape(rows, -1), (0, 0, 0, way.least_rows - rows))
        return exact_linear(way, filled, weight, bias)[:rows].view(*x.shape[:-1], -1)
    if way.library == "oneDNN":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    # One flat product, whatever the strides: of a view with gaps PyTorch adds the bias by itself, where a flat product may begin with it.
    return F.linear(x.reshape(rows, x.shape[-1]), weight, bias).view(*x.shape[:-1], weight.shape[0])
