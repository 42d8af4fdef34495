"""Timing: roof, warm-up, repeats in turn, medians, FLOPs from shapes, memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from beit3_bench.harness.bench.cases import Case, difference

TOLERANCE = {"fp32": 2e-4, "bf16": 0.3, "fp16": 0.05}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROOF_SHAPES = ((4096, 768, 3072), (4096, 3072, 768), (2048, 2048, 2048))
"""(m, k, n): the products of a base feed-forward, and a square one."""


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - start


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


def flops_of(call: Callable[[], Any]) -> int:
    """Floating-point operations of a call, counted from the shapes of its products (torch's FlopCounterMode, which knows
    the attention kernels of GPUs but not that of CPUs).
    """
    from torch.utils.flop_counter import FlopCounterMode

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={attention: _attention_flops}) as counter:
        call()
    return counter.get_total_flops()


def measure(case: Case, device: torch.device, dtype: str, repeats: int, warmup: int = 1) -> dict[str, Any]:
    """Both paths in turn, after a warm-up that also compares their outputs.

    Returns:
        ``ratio`` is the median over repeats of (reference seconds / our seconds); ``roof_share`` is what image encoding
        reaches of the roof measured between the repeats.
    """
    precision: AbstractContextManager = nullcontext()
    if dtype != "fp32":
        precision = torch.autocast(device.type, dtype=DTYPES[dtype])
    with torch.inference_mode(), precision:
        apart = difference(case.ours(), case.theirs())
        for _ in range(warmup - 1):
            case.ours()
        encode_flops = flops_of(case.encode)
        ours, theirs, encode, roof = [], [], [], []
        for _ in range(repeats):
            theirs.append(seconds_of(case.theirs, device))
            ours.append(seconds_of(case.ours, device))
            encode.append(seconds_of(case.encode, device))
            roof.append(matmul_roof(device, dtype, 2))
    result: dict[str, Any] = {
        "task": case.task,
        "image_size": case.image_size,
        "samples": case.samples,
        "reference": case.description,
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
