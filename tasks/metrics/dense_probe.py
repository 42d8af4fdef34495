"""Fitting a linear head to frozen patches: the schedule of DINOv2's linear evaluation on ADE20K, without its augmentation.

From the configuration that facebookresearch/dinov2 released with its heads (`dinov2_vits14_ade20k_linear_config.py`): 40,000 iterations
of 16 images, AdamW (lr 1e-3, betas 0.9 and 0.999, weight decay 1e-4), 1,500 iterations of linear warm-up from a millionth of the rate, and
a linear decay to 0 (``policy='poly'``, power 1.0). The loss is mmsegmentation's: cross-entropy over pixels, those that are ignored counting
as 0 in the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_bench.backbones.linear_segmentation import LinearHead, bilinear, upsampled
from beit3_bench.tasks.metrics.segmentation import IGNORE

ITERATIONS, BATCH = 40_000, 16
_WARMUP, _WARMUP_RATIO = 1_500 / ITERATIONS, 1e-6
_RATE, _DECAY, _BETAS = 1e-3, 1e-4, (0.9, 0.999)


@dataclass(frozen=True)
class Schedule:
    """iterations: of `BATCH` images; others than `ITERATIONS` shorten warm-up and decay alike."""

    iterations: int = ITERATIONS

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0 (mmcv's `PolyLrUpdaterHook` with a linear warm-up)."""
        regular = _RATE * (1 - step / self.iterations)
        warmup = max(round(_WARMUP * self.iterations), 1)
        return regular * (1 - (1 - step / warmup) * (1 - _WARMUP_RATIO)) if step < warmup else regular

    def facts(self) -> dict[str, Any]:
        """What a card says of it."""
        return {
            "iterations": self.iterations,
            "batch": BATCH,
            "optimiser": "AdamW",
            "lr": _RATE,
            "weight_decay": _DECAY,
            "betas": list(_BETAS),
            "warmup": _WARMUP,
            "decay": "linear",
        }


def batch_of(step: int, images: int, seed: int) -> list[int]:
    """Places of the images of a step: one order of all images after the other, each drawn by seed and number."""
    places = (divmod(place, images) for place in range(step * BATCH, (step + 1) * BATCH))
    return [int(_order(images, seed, epoch)[at]) for epoch, at in places]


@lru_cache(maxsize=2)
def _order(images: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(images)


class Fit:
    """A head on its way; what a step does follows from its number, the weights and the moments alone."""

    def __init__(self, dim: int, classes: int, schedule: Schedule, seed: int, device: torch.device):
        self.head = LinearHead(dim, classes).initialise(torch.Generator().manual_seed(seed)).to(device)
        self.schedule, self.step = schedule, 0
        self.optimiser = torch.optim.AdamW(self.head.parameters(), lr=_RATE, betas=_BETAS, weight_decay=_DECAY)

    def advance(self, patches: Tensor, labels: Tensor) -> Tensor:
        """One step.

        Args:
            patches: float32 (B, h, w, D).
            labels: integer (B, H, W), `IGNORE` where nothing is known; logits are upsampled to (H, W).

        Returns:
            The loss, on the device.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        self.head.train()
        logits = self.head(patches)
        rows, columns = (bilinear(*sizes, logits) for sizes in zip(labels.shape[1:], patches.shape[1:3], strict=True))
        flat = upsampled(logits, rows, columns).flatten(0, -2)
        loss = F.cross_entropy(flat, labels.flatten().long(), ignore_index=IGNORE, reduction="sum") / labels.numel()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return loss.detach()

    @property
    def finished(self) -> bool:
        return self.step >= self.schedule.iterations

    def state(self) -> dict[str, Any]:
        """All that `load` needs to go on."""
        return {"step": self.step, "head": self.head.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            KeyError, RuntimeError, ValueError: it is not of this head.
        """
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
