"""From image files to what a detector takes; runs in decoding processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.abilities import Batch, Item, Reader
from beit3_bench.backbones.beit3.detection.resize import ShortestEdge
from beit3_bench.backbones.preprocess import decode, upright, wrong_size
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from beit3_bench.backbones.corruptions import Corruption


class DetectionReader(Reader):
    """Upright images, resized by their shorter and longer side.

    sides: longer sides at which an image is seen several times; empty = once, as ``preprocessing`` says.
    """

    def __init__(self, preprocessing: ShortestEdge, sides: Sequence[int] = ()):
        self.preprocessing = preprocessing
        self.resizings = [replace(preprocessing, short_side=s, longest_side=s) for s in sides] or [preprocessing]
        self.corruption: Corruption | None = None

    def corrupt(self, corruption: Corruption) -> None:
        self.corruption = corruption

    def collate(self, items: Sequence[Item]) -> Batch:
        """``images``: uint8 (n, 3, h, w), resized and stacked at the top left of zeros; ``scaled``: the same at every further
        scale; ``shapes``: per scale and image (height, width) without the zeros; ``sizes``: of the images themselves.
        """
        versions: list[list[Tensor]] = [[] for _ in self.resizings]
        sizes = []
        for item in items:
            image = checked_image(item, self.corruption)
            sizes.append((image.height, image.width))
            for images, resizing in zip(versions, self.resizings, strict=True):
                images.append(resizing.pixels(image))
        stacked = [_stacked(images) for images in versions]
        return {
            "images": stacked[0],
            "scaled": stacked[1:],
            "shapes": [[tuple(image.shape[1:]) for image in images] for images in versions],
            "sizes": sizes,
        }


def checked_image(item: Item, corruption: Corruption | None = None) -> Image.Image:
    """The item's image as RGB, upright (`_apply_exif_orientation` of detectron2), and corrupted where that is asked for.

    Raises:
        BenchError: it does not decode, or is not of the size that `Item.size` says.
    """
    given: Any = item.images[0]
    if not isinstance(given, (str, Path)):
        image = upright(given) if corruption is None else corruption.given(upright(given))
    elif corruption is None:
        image = decode(given, upright=True)
    else:
        image = corruption.decoded(given, upright=True)
    problem = None if item.size is None else wrong_size(given, image.size, item.size)
    if problem is not None:
        raise BenchError(problem)
    return image


def _stacked(images: Sequence[Tensor]) -> Tensor:
    import torch

    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    stack = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for place, image in zip(stack, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return stack
