"""Test-time and large-scale-jitter resizing rules of detectron2, and its resize: PIL bilinear on uint8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MODE = "shortest-edge"


def resize_shortest_edge(height: int, width: int, short_edge: int, max_size: int) -> tuple[int, int]:
    """New (height, width): the shorter side ``short_edge``, unless the longer exceeds ``max_size``; halves round up. At least
    one pixel, where detectron2 fails on an image that is too long.

    ViTDet evaluates with ``short_edge == max_size == image_size``, that is, the longer side becomes ``image_size``.
    """
    scale = short_edge * 1.0 / min(height, width)
    new = (short_edge * 1.0, scale * width) if height < width else (scale * height, short_edge * 1.0)
    if max(new) > max_size:
        scale = max_size * 1.0 / max(new)
        new = (new[0] * scale, new[1] * scale)
    return max(int(new[0] + 0.5), 1), max(int(new[1] + 0.5), 1)


def resize_scale(height: int, width: int, scale: float, target: int) -> tuple[int, int]:
    """New (height, width) of large-scale jitter: the longer side ``scale * target``; halves round to even."""
    factor = min(target * scale / height, target * scale / width)
    return max(round(height * factor), 1), max(round(width * factor), 1)


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


@dataclass(frozen=True)
class ShortestEdge(Preprocessing):
    """Resizing by `resize_shortest_edge`; ``size`` is the detector's square, ``mode`` is `MODE`."""

    short_side: int = 1024
    longest_side: int = 1024

    def __post_init__(self) -> None:
        if self.mode != MODE or min(self.short_side, self.longest_side) < 1:
            raise BenchError(
                f"preprocessing {self.mode!r} to {self.short_side}, at most {self.longest_side} pixels: give {MODE!r} and sizes above 0"
            )

    def pixels(self, image: Image.Image) -> Tensor:
        """PIL RGB -> uint8 (3, h, w), PIL bilinear."""
        import numpy as np
        import torch
        from PIL import Image

        height, width = resize_shortest_edge(image.height, image.width, self.short_side, self.longest_side)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
