"""Keys and values of the words that a decoder has read."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values of the words so far, per layer: (rows, heads, t, head width)."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all words, the new ones behind."""
        if layer in self.layers:
            before = self.layers[layer]
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        self.layers[layer] = keys, values
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Rows that are continued, in their new order."""
        self.layers = {n: (k[rows], v[rows]) for n, (k, v) in self.layers.items()}

    @property
    def length(self) -> int:
        return next(iter(self.layers.values()))[0].shape[2] if self.layers else 0
