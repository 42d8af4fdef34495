"""How a call is timed, in which precision it runs, and how two ways of one computation compare."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F

from beit3_bench.backbones.precision import DTYPES


def precision(device: torch.device, dtype: str) -> AbstractContextManager:
    """Autocast, or nothing for float32."""
    return nullcontext() if dtype == "fp32" else torch.autocast(device.type, dtype=DTYPES[dtype])


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: torch.device, dtype: str = "fp32") -> float:
    """One call, in a precision context of its own as a batch has in a run: weights are rounded within it."""
    _synchronise(device)
    start = time.perf_counter()
    with precision(device, dtype):
        call()
    _synchronise(device)
    return time.perf_counter() - start


def plain_products(rows: int, dim: int, ffn_dim: int, device: torch.device, dtype: str) -> float:
    """FLOP/s of the four products of an encoder layer (qkv, output, feed-forward) on ``rows`` tokens, one after another and
    nothing else: what an implementation with plain products could reach if all besides cost nothing.
    """
    kind = DTYPES[dtype]
    pairs = [
        (torch.randn(rows, k, device=device, dtype=kind), torch.randn(n, k, device=device, dtype=kind))
        for k, n in ((dim, 3 * dim), (dim, dim), (dim, ffn_dim), (ffn_dim, dim))
    ]

    def layer() -> None:
        for x, weight in pairs:
            F.linear(x, weight)

    layer()
    flops = 2 * rows * dim * (4 * dim + 2 * ffn_dim)
    return flops / statistics.median(seconds_of(layer, device) for _ in range(5))


TOLERANCE = 2e-4
"""Of outputs in float32; the two ways add up in another order."""


def in_turn(ours: Sequence[float], theirs: Sequence[float], device: torch.device) -> dict[str, Any]:
    """Medians of the seconds of calls that took turns, and of their ratios; with the memory that all of it took."""
    facts: dict[str, Any] = {
        "seconds": statistics.median(ours),
        "reference_seconds": statistics.median(theirs),
        "ratio": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        "repeats": len(ours),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    if device.type == "cuda":
        facts["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    return facts
