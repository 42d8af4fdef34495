"""Learning rate per optimizer step (official `utils.cosine_scheduler`)."""

from __future__ import annotations

import numpy as np

from beit3_bench.backbones.schedule import lr_multiplier
from beit3_bench.errors import BenchError


def cosine_schedule(
    peak: float, final: float, steps: int, warmup_steps: int = 0, start: float = 0.0, shape: str = "cosine"
) -> np.ndarray:
    """float64 (steps,): linear from ``start`` to ``peak`` (both included), then half a cosine, or a line, towards ``final``.

    As in the official code the first step has the rate ``start``, the peak comes twice, and the cosine ends one step
    before ``final``.

    Raises:
        BenchError: more warm-up than steps.
    """
    if not 0 <= warmup_steps <= steps:
        raise BenchError(
            f"{warmup_steps} warm-up steps do not fit into {steps} steps; lower warmup_epochs or warmup_steps"
        )
    rest = steps - warmup_steps
    if shape == "linear":
        tail = np.linspace(peak, final, rest)
    else:
        tail = final + 0.5 * (peak - final) * (1 + np.cos(np.pi * np.arange(rest) / max(rest, 1)))
    return np.concatenate([np.linspace(start, peak, warmup_steps), tail])


def step_schedule(peak: float, steps: int, warmup_steps: int = 0) -> np.ndarray:
    """float64 (steps,): linear from peak / 1000, then a tenth from 8/9 and again from 26/27 of the steps on (ViTDet).

    Raises:
        BenchError: more warm-up than steps.
    """
    if not 0 <= warmup_steps <= steps:
        raise BenchError(
            f"{warmup_steps} warm-up steps do not fit into {steps} steps; lower warmup_epochs or warmup_steps"
        )
    milestones = (round(steps * 8 / 9), round(steps * 26 / 27))
    return np.array([peak * lr_multiplier(step, steps, milestones, warmup_steps) for step in range(steps)])
