"""Timing: roof, warm-up, repeats in turn, medians, FLOPs from shapes, memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from beit3_bench.backbones.beit3.bench.cases import Case, difference
from beit3_bench.backbones.beit3.native import compile_layers
from beit3_bench.backbones.official_process import OfficialProcess
from beit3_bench.backbones.packing import pack_weights
from beit3_bench.backbones.precision import DTYPES
from beit3_bench.backbones.timing import TOLERANCE, in_turn, plain_products, precision, seconds_of

ROOF_SHAPES = ((4096, 768, 3072), (4096, 3072, 768), (2048, 2048, 2048))
"""(m, k, n): the products of a base feed-forward, and a square one."""


def matmul_roof(device: torch.device, dtype: str, repeats: int = 5) -> float:
    """FLOP/s of the machine's best matrix product out of `ROOF_SHAPES`, on a CPU with packed weights or without."""
    kind = DTYPES[dtype]
    scale = 1 if device.type == "cpu" else 8
    best = 0.0
    with precision(device, dtype):
        for m, k, n in ROOF_SHAPES:
            x, weight = (
                torch.randn(m * scale, k, device=device, dtype=kind),
                torch.randn(n, k, device=device, dtype=kind),
            )
            calls = [partial(F.linear, x, weight)]
            if device.type == "cpu":
                layer = nn.Linear(k, n, bias=False)
                pack_weights(layer)
                calls.append(partial(layer, x))
            for call in calls:
                call()
                call()
                for _ in range(repeats):
                    best = max(best, 2 * m * scale * k * n / seconds_of(call, device))
    return best


def timm_encoder(case: Case, device: torch.device) -> Callable[[], Any]:
    """timm's plain ViT of the same size on as many images: what a widely used implementation reaches here."""
    from timm.models.vision_transformer import VisionTransformer

    config = case.config
    model = VisionTransformer(
        img_size=case.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.ffn_dim / config.embed_dim,
        num_classes=0,
    )
    images = torch.randn(case.images, 3, case.image_size, case.image_size, device=device)
    return partial(model.to(device).eval(), images)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    from torch.utils.flop_counter import sdpa_flop_count

    return sdpa_flop_count(query, key, value)


def _packed_flops(x: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return 2 * math.prod(x) * out_shape[-1]


def flops_of(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call, counted from the shapes of its products (torch's FlopCounterMode, which does not
    know the attention of CPUs nor products with packed weights).
    """
    from torch.utils.flop_counter import FlopCounterMode

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    known: dict[Any, Callable[..., int]] = {attention: _attention_flops}
    if torch.backends.mkl.is_available():
        known[torch.ops.mkl._mkl_linear] = _packed_flops
    if torch.backends.mkldnn.is_available():
        known[torch.ops.mkldnn._linear_pointwise] = _packed_flops
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        call()
    return counter.get_total_flops()


def measure(
    case: Case,
    device: torch.device,
    dtype: str,
    repeats: int,
    official: OfficialProcess | None = None,
    compiled: bool = False,
) -> dict[str, Any]:
    """Both paths in turn, after a warm-up that also compares their outputs, in float32.

    Args:
        official: the process of the reference path; None = it runs in this one.
        compiled: compile the encoder's layers, once the outputs of both paths have been compared.

    Returns:
        ``ratio`` is the median over repeats of (reference seconds / our seconds). What image encoding reaches is given
        as ``roof_share``, of the best matrix product (`matmul_roof`), and as ``products_share``, of the rate of its own
        products alone, done plainly in the reference's process (`plain_products`). ``timm_roof_share``: what timm's ViT
        reaches. ``dtype_difference``: largest change of our outputs against float32, or the share of captions that change.
    """
    with torch.inference_mode():
        exact = case.ours()
        apart = difference(exact, official.output() if official else case.theirs())
    timm = timm_encoder(case, device)
    with torch.inference_mode():
        with precision(device, dtype):
            timm()
            encode_flops, timm_flops = flops_of(case.encode), flops_of(timm)
        if compiled:
            compile_layers(case.model)
        with precision(device, dtype):
            case.ours()
            rounded = difference(case.ours(), exact) if dtype != "fp32" or compiled else 0.0
            case.encode()
        theirs_once = official.seconds if official else partial(seconds_of, case.theirs, device, dtype)
        products_once = (
            partial(official.products, case.product_sizes)
            if official
            else partial(plain_products, *case.product_sizes, device, dtype)
        )
        theirs_once()
        ours, theirs, encode, timms, roof, products = [], [], [], [], [], []
        for _ in range(repeats):
            theirs.append(theirs_once())
            ours.append(seconds_of(case.ours, device, dtype))
            encode.append(seconds_of(case.encode, device, dtype))
            timms.append(seconds_of(timm, device, dtype))
            roof.append(matmul_roof(device, dtype, 2))
            products.append(products_once())
    rates = [encode_flops / seconds for seconds in encode]
    both = in_turn(ours, theirs, device)
    return {
        "task": case.task,
        "image_size": case.image_size,
        "samples": case.samples,
        "reference": case.description,
        "reference_process": "its own, with default settings" if official else "this one",
        **both,
        "samples_per_second": case.samples / both["seconds"],
        "encode_seconds": statistics.median(encode),
        "encode_gflops": encode_flops / 1e9,
        "roof_gflops_per_second": statistics.median(roof) / 1e9,
        "roof_share": statistics.median(a / b for a, b in zip(rates, roof, strict=True)),
        "products_gflops_per_second": statistics.median(products) / 1e9,
        "products_share": statistics.median(a / b for a, b in zip(rates, products, strict=True)),
        "timm_seconds": statistics.median(timms),
        "timm_roof_share": statistics.median(timm_flops / a / b for a, b in zip(timms, roof, strict=True)),
        "output_difference": apart,
        "outputs_equal": apart <= TOLERANCE,
        "dtype_difference": rounded,
    }
