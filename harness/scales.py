"""Scales of diagrams: their ends, and the round numbers along them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within low..high; low < high."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 and 5 times powers of ten, or fewer of these) within low..high; 0 < low < high."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    chosen: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        values = [digit * 10.0**power for power in powers for digit in digits]
        chosen = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)] or chosen
        if len(chosen) <= most:
            return chosen
    return chosen[:: -(-len(chosen) // most)]


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Least and greatest finite value, a little apart where they are the same."""
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        wider = abs(low) / 10 or 1.0
        low, high = low - wider, high + wider
    return low, high
