"""Large-scale jitter: pixels, boxes and masks must stay together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from beit3_bench.backbones.beit3.detection.masks import polygon_bitmaps
from beit3_bench.backbones.beit3.training.scale_jitter import LargeScaleJitter, Motion, visible_extent

WIDTH, HEIGHT = 90, 60
SQUARE = [20.0, 10, 50, 10, 50, 40, 20, 40]


def scene(segmentation=None):
    """A black picture with one white square, and its annotation."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[10:40, 20:50] = 255
    thing = {"bbox": [20.0, 10, 30, 30], "class": 2, "segmentation": segmentation or [SQUARE]}
    return Image.fromarray(pixels), [thing]


def rle(bitmap):
    from pycocotools import mask

    return mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))


def generators():
    return [torch.Generator().manual_seed(seed) for seed in range(40)]


def white(image):
    """Bounding box of the bright pixels, or None."""
    rows, columns = np.nonzero(image[0].numpy() > 127)
    return None if not len(rows) else np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("kind", ["polygon", "rle", "box"])
def test_boxes_follow_what_is_seen_of_the_object(kind):
    full = np.zeros((HEIGHT, WIDTH), dtype=bool)
    full[10:40, 20:50] = True
    image, objects = scene(rle(full) if kind == "rle" else None)
    jitter, seen = LargeScaleJitter(64, (0.3, 2.0)), 0
    for generator in generators():
        pixels, target = jitter(image, objects, kind != "box", generator)
        assert pixels.dtype == torch.uint8
        assert max(pixels.shape[1:]) <= 64
        bright = white(pixels)
        if bright is None:
            assert len(target["boxes"]) == 0 or (target["boxes"][0, 2:] - target["boxes"][0, :2]).min() < 2
            continue
        seen += 1
        assert target["classes"].tolist() == [2]
        assert np.abs(target["boxes"][0].numpy() - bright).max() <= 1.5
    assert seen > 25


@pytest.mark.parametrize("kind", ["polygon", "rle"])
def test_masks_follow_what_is_seen_of_the_object(kind):
    full = np.zeros((HEIGHT, WIDTH), dtype=bool)
    full[10:40, 20:50] = True
    image, objects = scene(rle(full) if kind == "rle" else None)
    jitter, compared = LargeScaleJitter(64, (0.3, 2.0)), 0
    for generator in generators():
        pixels, target = jitter(image, objects, True, generator)
        if not len(target["boxes"]):
            continue
        height, width = pixels.shape[1:]
        masks = target["masks"]
        bitmap = masks[0].numpy() if kind == "rle" else polygon_bitmaps(masks, height, width)[0]
        bright = pixels[0].numpy() > 127
        compared += 1
        assert (bitmap & bright).sum() / max((bitmap | bright).sum(), 1) > 0.85
    assert compared > 25


def test_flip_size_and_place_follow_the_seed_and_cover_their_ranges():
    jitter = LargeScaleJitter(64, (0.5, 2.0), flip=0.5)
    motions = [jitter.motion(WIDTH, HEIGHT, torch.Generator().manual_seed(s)) for s in range(400)]
    again = [jitter.motion(WIDTH, HEIGHT, torch.Generator().manual_seed(s)) for s in range(400)]
    assert motions == again
    assert 0.4 < np.mean([m.mirrored for m in motions]) < 0.6
    longer = np.array([max(m.new) for m in motions])
    assert longer.min() in range(32, 36)
    assert longer.max() in range(124, 129)
    assert all(m.offset == (0, 0) for m in motions if max(m.new) <= 64)
    assert max(m.offset[0] for m in motions) > 40
    assert all(m.size == (min(m.new[0], 64), min(m.new[1], 64)) for m in motions)


def test_images_without_objects_give_empty_targets():
    _, target = LargeScaleJitter(64)(scene()[0], [], True, torch.Generator())
    assert target["boxes"].shape == (0, 4)
    assert target["classes"].shape == (0,)
    assert list(target["masks"]) == []


def test_mirroring_moves_points_like_pixels():
    motion = Motion((WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT), True, (10, 4), (64, 64))
    bitmap = np.zeros((HEIGHT, WIDTH), dtype=bool)
    bitmap[10:14, 60:66] = True
    rows, columns = np.nonzero(motion.bitmap(bitmap))
    corners = motion.points(np.array([[60.0, 10], [66, 14]]))
    assert [columns.min(), columns.max() + 1] == sorted(corners[:, 0])
    assert [rows.min(), rows.max() + 1] == corners[:, 1].tolist()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-30, 60), st.integers(-30, 60)), min_size=3, max_size=9))
def test_extent_of_the_visible_part_equals_a_fine_raster(points):
    """Star-shaped polygons around their centre are simple, and concave often enough."""
    cloud = np.unique(np.array(points, dtype=np.float64), axis=0)
    centre = cloud.mean(axis=0)
    angle = np.arctan2(*(cloud - centre).T)
    cloud = cloud[np.argsort(angle)]
    if len(cloud) < 3 or len(np.unique(np.sort(angle))) < len(cloud):
        return
    size, fine = 32, 8
    extent = visible_extent(cloud, size, size)
    flat = ((cloud + 64) * fine).ravel().tolist()
    raster = polygon_bitmaps([[flat]], 192 * fine, 192 * fine)[0][64 * fine : 96 * fine, 64 * fine : 96 * fine]
    rows, columns = np.nonzero(raster)
    if not len(rows):
        assert extent is None or min(extent[2] - extent[0], extent[3] - extent[1]) < 1
        return
    if extent is None:
        assert min(np.ptp(rows), np.ptp(columns)) <= 2
        return
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / fine
    area = raster.sum() / fine**2
    assert (np.array(extent[:2]) <= seen[:2] + 0.3).all()
    assert (np.array(extent[2:]) >= seen[2:] - 0.3).all()
    if area > 20:  # slivers have corners that no raster shows
        assert np.abs(np.array(extent) - seen).max() < 4
