"""Resizing only what a centre crop keeps, equal bit for bit to resizing everything and cropping then.

Enlarging a very long image to a given shorter side makes a much longer one, of which a square is kept: of 1 x 8,000 pixels
256 x 2,048,000. Pillow's ``box`` takes its bounds in single precision and so gives other pixels; here the pass along the
longer side is done for the kept rows alone, in the arithmetic of Pillow's 8-bit resampling (Resample.c: weights in double
precision, rounded to 22 bits, sums in integers), and the pass across by Pillow itself. The order is Pillow's: where an image
becomes larger it resizes along the rows first (an image that becomes smaller costs no more than it has pixels, and Pillow 13
chooses the order anew; it is left to Pillow).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

EXTREME = 8
"""Ratio of the sides from which on it is worth it."""
_BITS = 22


def resized_crop(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """``image.resize(size, BICUBIC).crop(box)`` for an RGB image.

    Args:
        size: (width, height) of the whole.  box: (left, top, right, bottom) within it or beyond (filled with 0).
    """
    from PIL import Image

    axis = 0 if size[0] > size[1] else 1
    if max(size) < EXTREME * min(size) or size[axis] <= image.size[axis] or size[1 - axis] < image.size[1 - axis]:
        return image.resize(size, Image.Resampling.BICUBIC).crop(box)
    low, high = max(box[axis], 0), min(box[axis + 2], size[axis])
    taps = [_weights(i, image.size[axis], size[axis]) for i in range(low, high)]
    first, last = taps[0][0], taps[-1][0] + len(taps[-1][1])
    across = size[1 - axis]
    if axis == 0:
        part = _combine(image.crop((first, 0, last, image.height)), taps, first, 1)
        part = part.resize((high - low, across), Image.Resampling.BICUBIC)
        return part.crop((box[0] - low, box[1], box[2] - low, box[3]))
    part = image.crop((0, first, image.width, last)).resize((across, last - first), Image.Resampling.BICUBIC)
    return _combine(part, taps, first, 0).crop((box[0], box[1] - low, box[2], box[3] - low))


def _weights(index: int, before: int, after: int) -> tuple[int, np.ndarray]:
    """First input pixel of an output pixel and the weights from there on: int64 (n,), in units of 2**-22.

    ``precompute_coeffs`` and ``normalize_coeffs_8bpc`` of Pillow, bicubic.
    """
    import numpy as np

    scale = before / after
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    centre = (index + 0.5) * scale
    first, last = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), before)
    x = np.abs((np.arange(first, last) - centre + 0.5) * (1.0 / stretch))
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    total = np.cumsum(weights)[-1]  # one after the other, as Pillow adds them
    if total != 0.0:
        weights = weights / total
    return first, np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)


def _combine(image: Image.Image, taps: list[tuple[int, np.ndarray]], origin: int, axis: int) -> Image.Image:
    """Weighted sums of rows (axis 0) or columns (axis 1) of an image that begins at pixel ``origin``, one for each of
    ``taps``.
    """
    import numpy as np
    from PIL import Image

    pixels = np.moveaxis(np.asarray(image), axis, 0).astype(np.int64)
    lines = []
    for first, weights in taps:
        part = pixels[first - origin : first - origin + len(weights)]
        total = np.tensordot(weights, part, axes=1) + (1 << (_BITS - 1))
        lines.append(np.clip(total >> _BITS, 0, 255).astype(np.uint8))
    return Image.fromarray(np.ascontiguousarray(np.moveaxis(np.stack(lines), 0, axis)))
