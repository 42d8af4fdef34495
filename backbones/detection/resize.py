"""Test-time and large-scale-jitter resizing rules of detectron2, and its resize: PIL bilinear on uint8."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def resize_shortest_edge(height: int, width: int, short_edge: int, max_size: int) -> tuple[int, int]:
    """New (height, width): the shorter side ``short_edge``, unless the longer exceeds ``max_size``; halves round up.

    ViTDet evaluates with ``short_edge == max_size == image_size``, that is, the longer side becomes ``image_size``.
    """
    scale = short_edge * 1.0 / min(height, width)
    new = (short_edge * 1.0, scale * width) if height < width else (scale * height, short_edge * 1.0)
    if max(new) > max_size:
        scale = max_size * 1.0 / max(new)
        new = (new[0] * scale, new[1] * scale)
    return int(new[0] + 0.5), int(new[1] + 0.5)


def resize_scale(height: int, width: int, scale: float, target: int) -> tuple[int, int]:
    """New (height, width) of large-scale jitter: the longer side ``scale * target``; halves round to even."""
    factor = min(target * scale / height, target * scale / width)
    return round(height * factor), round(width * factor)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 (3, h, w) to ``size`` (height, width) as PIL does: bilinear, antialiased when shrinking."""
    import numpy as np
    import torch
    from PIL import Image

    if tuple(image.shape[1:]) == tuple(size):
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    resized = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
