"""Tables of positions at another image size, as the official loader makes them before fine-tuning (`load_pretrained_weight`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from beit3_bench.backbones.patches import resize_positions
from beit3_bench.backbones.vlmo.config import BIAS_TABLE, IMAGE_POSITIONS, TEXT_POSITIONS, FileShape

_BRACKET = 1e-6


def resized_tables(tensors: Mapping[str, Tensor], shape: FileShape) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors with position tables of the size of ``shape.config``, and what was resized: name -> "14x14 -> 24x24"."""
    config, changed = shape.config, dict(tensors)
    resized: dict[str, str] = {}
    table = BIAS_TABLE if config.relative else IMAGE_POSITIONS
    if shape.grid != config.grid:
        resize = resize_biases if config.relative else resize_positions
        changed[table] = resize(tensors[table], shape.grid, config.grid)
        resized[table] = f"{shape.grid}x{shape.grid} -> {config.grid}x{config.grid}"
    rows = len(tensors[TEXT_POSITIONS])
    if rows > config.text_rows:
        changed[TEXT_POSITIONS] = tensors[TEXT_POSITIONS][: config.text_rows]
        resized[TEXT_POSITIONS] = f"{rows} -> {config.text_rows}"
    return changed, resized


def resize_biases(table: Tensor, source: int, target: int) -> Tensor:
    """Relative biases of a source x source grid, one column per head and layer, for a target x target grid: a cubic spline through
    points that lie the farther apart the longer the distance; rows behind those of patches are kept.
    """
    from scipy.interpolate import RectBivariateSpline

    size, wanted = 2 * source - 1, 2 * target - 1
    at = _spread(size, wanted)
    half = wanted // 2
    asked = np.clip(np.arange(-half, half + 1, dtype=float), at[0], at[-1])
    squares = table[: size**2].float().t().reshape(-1, size, size).double().numpy()
    resized = np.stack([RectBivariateSpline(at, at, square)(asked, asked) for square in squares])
    rows = torch.from_numpy(resized.reshape(len(resized), -1)).to(torch.float32).t()
    return torch.cat([rows.to(table.dtype), table[size**2 :]])


def _spread(size: int, wanted: int) -> np.ndarray:
    """Coordinates of ``size`` distances among ``wanted``: 0, 1, 1 + q, 1 + q + q^2, ... to both sides, q by bisection."""
    low, high, ratio = 1.01, 1.5, 1.25
    while high - low > _BRACKET:
        ratio = (low + high) / 2.0
        if _geometric(ratio, size // 2) > wanted // 2:
            high = ratio
        else:
            low = ratio
    steps = np.cumsum(ratio ** np.arange(size // 2))
    return np.concatenate([-steps[::-1], [0.0], steps])


def _geometric(ratio: float, terms: int) -> float:
    """1 + q + ... + q^(terms - 1)."""
    return (1.0 - ratio**terms) / (1.0 - ratio)
