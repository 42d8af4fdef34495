"""Large-scale jitter: flip, resize by a random factor, crop to a fixed square; image, boxes and masks alike.

As detectron2's ViTDet training transform (RandomFlip, ResizeScale, FixedSizeCrop without padding, recomputed boxes);
what happens to an image follows from the generator's seed and the image's id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from beit3_bench.backbones.beit3.detection.masks import bitmap_boxes, polygon_bitmaps
from beit3_bench.backbones.beit3.detection.resize import resize_scale

SMALLEST = 1e-5
"""Pixels; a box that is not wider and higher is dropped."""


@dataclass(frozen=True)
class Motion:
    """Where the pixels of an image go: mirrored, resized from ``old`` to ``new`` (width, height), cropped."""

    old: tuple[int, int]
    new: tuple[int, int]
    mirrored: bool
    offset: tuple[int, int]
    size: tuple[int, int]

    def image(self, image: Image.Image) -> Image.Image:
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.new != self.old:
            image = image.resize(self.new, Image.Resampling.BILINEAR)
        left, top = self.offset
        return image.crop((left, top, left + self.size[0], top + self.size[1]))

    def points(self, points: np.ndarray) -> np.ndarray:
        """(k, 2) x and y, in pixels, float64."""
        x = self.old[0] - points[:, 0] if self.mirrored else points[:, 0]
        x = x * (self.new[0] / self.old[0]) - self.offset[0]
        return np.stack([x, points[:, 1] * (self.new[1] / self.old[1]) - self.offset[1]], axis=1)

    def bitmap(self, bitmap: np.ndarray) -> np.ndarray:
        """bool (h, w), nearest neighbour."""
        picture = Image.fromarray(np.ascontiguousarray(bitmap[:, ::-1] if self.mirrored else bitmap).astype(np.uint8))
        left, top = self.offset
        moved = picture.resize(self.new, Image.Resampling.NEAREST)
        return np.asarray(moved.crop((left, top, left + self.size[0], top + self.size[1]))).astype(bool)


@dataclass(frozen=True)
class LargeScaleJitter:
    """size: pixels of the square.  scale: least and greatest factor of the longer side over ``size``."""

    size: int
    scale: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5

    def motion(self, width: int, height: int, generator: torch.Generator) -> Motion:
        """One draw: flip, factor, and place of the crop (the same share of the room in both directions)."""
        flip, factor, place = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        low, high = self.scale
        new_height, new_width = resize_scale(height, width, low + (high - low) * factor, self.size)
        new = (max(new_width, 1), max(new_height, 1))
        offset = tuple(round(max(side - self.size, 0) * place) for side in new)
        size = tuple(min(side, self.size) for side in new)
        return Motion((width, height), new, flip < self.flip, offset, size)  # type: ignore[arg-type]

    def __call__(
        self, image: Image.Image, objects: Sequence[Mapping[str, Any]], with_masks: bool, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Any]]:
        """Transform an image and its objects; objects that are not visible any more are dropped.

        Args:
            image: RGB.
            objects: with ``bbox`` [x, y, width, height], ``class`` (0-based) and, with masks, ``segmentation``.

        Returns:
            uint8 (3, h, w), h and w at most ``size``, and the targets of `Detector`: ``boxes`` float32 (m, 4),
            ``classes`` int64 (m,), and ``masks``: polygons, or bool (m, h, w) where an object has an RLE.
        """
        motion = self.motion(*image.size, generator)
        pixels = torch.from_numpy(np.array(motion.image(image))).permute(2, 0, 1).contiguous()
        masks: Any = None
        if not with_masks:
            boxes = _moved_boxes(objects, motion)
        elif any(isinstance(o["segmentation"], Mapping) for o in objects):
            bitmaps = [motion.bitmap(_bitmap(o["segmentation"], image.height, image.width)) for o in objects]
            masks = torch.from_numpy(np.stack(bitmaps))
            boxes = bitmap_boxes(masks).numpy()
        else:
            masks, boxes = _moved_polygons(objects, motion)
        seen = ((boxes[:, 2:] - boxes[:, :2]) > SMALLEST).all(axis=1)
        targets: dict[str, Any] = {
            "boxes": torch.from_numpy(boxes[seen].astype(np.float32)),
            "classes": torch.tensor([o["class"] for o in objects], dtype=torch.int64)[torch.from_numpy(seen)],
        }
        if with_masks:
            rows = np.flatnonzero(seen).tolist()
            targets["masks"] = masks[rows] if isinstance(masks, Tensor) else [masks[row] for row in rows]
        return pixels, targets


def _moved_boxes(objects: Sequence[Mapping[str, Any]], motion: Motion) -> np.ndarray:
    boxes = np.array([o["bbox"] for o in objects], dtype=np.float64).reshape(-1, 4)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    first, second = np.split(motion.points(corners).clip(0, motion.size), 2)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)


def _moved_polygons(objects: Sequence[Mapping[str, Any]], motion: Motion) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """Polygons that are still visible, not clipped (targets are cut to boxes), and the boxes of what is visible."""
    kept, boxes = [], np.zeros((len(objects), 4))
    for number, thing in enumerate(objects):
        polygons, extents = [], []
        for flat in thing["segmentation"]:
            points = motion.points(np.asarray(flat, dtype=np.float64).reshape(-1, 2))
            extent = visible_extent(points, *motion.size)
            if extent is not None:
                polygons.append(points.ravel())
                extents.append(extent)
        kept.append(polygons)
        if extents:
            all_ = np.array(extents)
            boxes[number] = [*all_[:, :2].min(axis=0), *all_[:, 2:].max(axis=0)]
    return kept, boxes


def _bitmap(segmentation: Any, height: int, width: int) -> np.ndarray:
    if not isinstance(segmentation, Mapping):
        return polygon_bitmaps([segmentation], height, width)[0]
    from pycocotools import mask

    plain = isinstance(segmentation["counts"], list)
    return mask.decode(mask.frPyObjects(segmentation, height, width) if plain else segmentation).astype(bool)


def visible_extent(points: np.ndarray, width: float, height: float) -> tuple[float, float, float, float] | None:
    """Bounding box of the part of a polygon (k, 2) inside [0, width] x [0, height]; None where that has no area.

    Exact for simple polygons: the extremes lie at vertices inside, where edges cross the border, or at corners of the
    rectangle that lie inside of the polygon.
    """
    limits = np.array([width, height], dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    if (low < 0).any() or (high > limits).any():
        if (high <= 0).any() or (low >= limits).any():
            return None
        ends = np.roll(points, -1, axis=0)
        kept_points = [points[((points >= 0) & (points <= limits)).all(axis=1)]]
        for axis in (0, 1):
            for border in (0.0, limits[axis]):
                crosses = (points[:, axis] < border) != (ends[:, axis] < border)
                a, b = points[crosses], ends[crosses]
                share = (border - a[:, axis]) / (b[:, axis] - a[:, axis])
                at = a + share[:, None] * (b - a)
                at[:, axis] = border
                other = 1 - axis
                kept_points.append(at[(at[:, other] >= 0) & (at[:, other] <= limits[other])])
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)
        kept_points.append(corners[_inside(corners, points, ends)])
        inside = np.concatenate(kept_points)
        if not len(inside):
            return None
        low, high = inside.min(axis=0), inside.max(axis=0)
    if (high - low <= SMALLEST).any():
        return None
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _inside(points: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Even-odd rule: bool (n,) for points (n, 2) and edges (k, 2) to (k, 2)."""
    x, y = points[:, :1], points[:, 1:]
    spans = (starts[:, 1] > y) != (ends[:, 1] > y)
    rise = np.where(ends[:, 1] == starts[:, 1], 1.0, ends[:, 1] - starts[:, 1])
    crossing = starts[:, 0] + (y - starts[:, 1]) * (ends[:, 0] - starts[:, 0]) / rise
    return (np.count_nonzero(spans & (x < crossing), axis=1) % 2).astype(bool)
