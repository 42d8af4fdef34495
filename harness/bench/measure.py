"""Timing: roof, warm-up, repeats in turn, medians, FLOPs from shapes, memory."""

from __future__ import annotations

import math
import resource
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from beit3_bench.harness.bench.cases import Case, difference
from beit3_bench.harness.bench.official import OfficialProcess
from beit3_bench.harness.bench.timing import precision, seconds_of
from beit3_bench.harness.engine import DTYPES

TOLERANCE = {"fp32": 2e-4, "bf16": 0.3, "fp16": 0.05}
ROOF_SHAPES = ((4096, 768, 3072), (4096, 3072, 768), (2048, 2048, 2048))
"""(m, k, n): the products of a base feed-forward, and a square one."""


def matmul_roof(device: torch.device, dtype: str, repeats: int = 5) -> float:
    """FLOP/s of the machine's best matrix product out of `ROOF_SHAPES`."""
    kind = DTYPES[dtype]
    scale = 1 if device.type == "cpu" else 8
    best = 0.0
    for m, k, n in ROOF_SHAPES:
        a, b = torch.randn(m * scale, k, device=device, dtype=kind), torch.randn(k, n, device=device, dtype=kind)
        torch.mm(a, b)
        for _ in range(repeats):
            best = max(best, 2 * m * scale * k * n / seconds_of(partial(torch.mm, a, b), device))
    return best


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    from torch.utils.flop_counter import sdpa_flop_count

    return sdpa_flop_count(query, key, value)


def _packed_flops(x: Sequence[int], packed: Any, weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * math.prod(weight)


def flops_of(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call, counted from the shapes of its products (torch's FlopCounterMode, which does not
    know the attention of CPUs nor products with packed weights).
    """
    from torch.utils.flop_counter import FlopCounterMode

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    known: dict[Any, Callable[..., int]] = {attention: _attention_flops}
    if torch.backends.mkl.is_available():
        known[torch.ops.mkl._mkl_linear] = _packed_flops
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        call()
    return counter.get_total_flops()


def measure(
    case: Case, device: torch.device, dtype: str, repeats: int, official: OfficialProcess | None = None
) -> dict[str, Any]:
    """Both paths in turn, after a warm-up that also compares their outputs.

    Args:
        official: the process of the reference path; None = it runs in this one.

    Returns:
        ``ratio`` is the median over repeats of (reference seconds / our seconds); ``roof_share`` is what image encoding
        reaches of the roof measured between the repeats.
    """
    with torch.inference_mode(), precision(device, dtype):
        case.ours()
        apart = difference(case.ours(), official.output() if official else case.theirs())
        encode_flops = flops_of(case.encode)
        ours, theirs, encode, roof = [], [], [], []
        for _ in range(repeats):
            theirs.append(official.seconds() if official else seconds_of(case.theirs, device))
            ours.append(seconds_of(case.ours, device))
            encode.append(seconds_of(case.encode, device))
            roof.append(matmul_roof(device, dtype, 2))
    result: dict[str, Any] = {
        "task": case.task,
        "image_size": case.image_size,
        "samples": case.samples,
        "reference": case.description,
        "reference_process": "its own, with default settings" if official else "this one",
        "seconds": statistics.median(ours),
        "reference_seconds": statistics.median(theirs),
        "ratio": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        "samples_per_second": case.samples / statistics.median(ours),
        "encode_seconds": statistics.median(encode),
        "encode_gflops": encode_flops / 1e9,
        "roof_gflops_per_second": statistics.median(roof) / 1e9,
        "roof_share": statistics.median(encode_flops / e / r for e, r in zip(encode, roof, strict=True)),
        "output_difference": apart,
        "outputs_equal": apart <= TOLERANCE[dtype],
        "repeats": repeats,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if device.type == "cuda":
        result["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return result
