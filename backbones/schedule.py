"""Learning rate over the steps of a training, as detectron2 lets it fall."""

from __future__ import annotations

from collections.abc import Sequence


def lr_multiplier(
    step: int, max_steps: int, milestones: Sequence[int], warmup_steps: int = 250, warmup_factor: float = 1e-3
) -> float:
    """Multiplier of the learning rate at ``step`` (0-based): linear warm-up, then a tenth of it from each milestone on.

    ViTDet-B, 100 epochs at batch 64: ``max_steps=184375, milestones=(163889, 177546)``.
    """

    def decayed(at: float) -> float:
        return 0.1 ** sum(at >= milestone for milestone in milestones)

    warmup_steps = min(warmup_steps, max_steps)
    if step < warmup_steps:
        done = step / warmup_steps
        return decayed(0) * warmup_factor * (1 - done) + decayed(warmup_steps) * done
    return decayed(step)
