"""Scenes to pixels: antialiased pictures, label maps and masks."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from beit3_bench.tasks.tinyworld.geometry import Polygon, mark, parts
from beit3_bench.tasks.tinyworld.scenes import Scene, Thing

SUPERSAMPLING = 3
NOISE = 5.0
_INK = (15, 15, 15)


class Painter:
    """Renders scenes and writes them as image files; pixel noise is cut from one seeded field."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng([seed, 7])
        self._field = (self._rng.standard_normal((160, 160, 3)) * NOISE).astype(np.int16)

    def picture(self, scene: Scene, noise: bool = True) -> Image.Image:
        """The scene as an RGB image of (width, height) pixels."""
        image = _draw(scene)
        if not noise:
            return image
        top, left = self._rng.integers(0, 160 - scene.height), self._rng.integers(0, 160 - scene.width)
        grain = self._field[top : top + scene.height, left : left + scene.width]
        pixels = np.asarray(image, dtype=np.int16) + grain
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))

    def save_jpeg(self, scene: Scene, path: Path, mode: str = "RGB") -> None:
        """Write a JPEG; mode ``"L"`` or ``"CMYK"`` for the odd ones that real datasets hold."""
        image = self.picture(scene)
        encode(image if mode == "RGB" else image.convert(mode), path, "JPEG", quality=90)

    def save_png(self, scene: Scene, path: Path, noise: bool = False) -> None:
        """Write a PNG, noise-free by default (it compresses to a few hundred bytes)."""
        encode(self.picture(scene, noise), path, "PNG")


def encode(image: Image.Image, path: Path, kind: str, **options: int) -> None:
    """Write an image file in format ``kind``, whatever its name ends in."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    path.write_bytes(buffer.getvalue())


def _scaled(polygon: Polygon, scale: int, shift: tuple[float, float] = (0.0, 0.0)) -> list[tuple[float, float]]:
    # Pillow's polygon coordinates name pixel centres, ours pixel corners: hence half a pixel.
    return [((x - shift[0]) * scale - 0.5, (y - shift[1]) * scale - 0.5) for x, y in polygon]


def _draw(scene: Scene) -> Image.Image:
    scale = SUPERSAMPLING
    canvas = Image.new("RGB", (scene.width * scale, scene.height * scale), scene.rgb)
    if scene.ground:
        canvas.paste(scene.ground_rgb, (0, scene.horizon * scale, canvas.width, canvas.height))
    for thing in (*scene.things, *scene.crowd):
        left, top = int(thing.x - thing.radius * 1.2) - 1, int(thing.y - thing.radius * 1.2) - 1
        side = int(2.4 * thing.radius) + 4
        stencil = Image.new("L", (side * scale, side * scale))
        pen = ImageDraw.Draw(stencil)
        for outline, hole in parts(thing):
            pen.polygon(_scaled(outline, scale, (left, top)), fill=255)
            if hole:
                pen.polygon(_scaled(hole, scale, (left, top)), fill=0)
        canvas.paste(_fill(thing, side, left, top), (left * scale, top * scale), stencil)
    return canvas.reduce(scale)


def _fill(thing: Thing, side: int, left: int, top: int) -> Image.Image:
    side *= SUPERSAMPLING
    tile = Image.new("RGB", (side, side), thing.rgb)
    pen = ImageDraw.Draw(tile)
    if thing.texture == "striped":
        step = max(2, side // 9)
        for x in range(step // 2, side, 2 * step):
            pen.rectangle((x, 0, x + step - 1, side), fill=_INK)
    elif thing.texture == "dotted":
        pitch, dot = side / 5.5, side / 16
        for row in range(7):
            for column in range(7):
                right, down = (column + 0.5 * (row % 2)) * pitch, row * pitch
                pen.ellipse((right - dot, down - dot, right + dot, down + dot), fill=_INK)
    painted = mark(thing)
    if painted:
        pen.polygon(_scaled(painted[0], SUPERSAMPLING, (left, top)), fill=painted[1])
    return tile


def stamp(size: tuple[int, int], layers: Iterable[tuple[Thing, int]], base: np.ndarray | None = None) -> np.ndarray:
    """Label map uint8 (height, width): each thing's pixels get its value, later ones on top of earlier ones.

    A pixel belongs to a thing if its centre does.
    """
    width, height = size
    scale = 4
    labels = np.zeros((height, width), dtype=np.uint8) if base is None else base.copy()
    for thing, value in layers:
        stencil = Image.new("L", (width * scale, height * scale))
        pen = ImageDraw.Draw(stencil)
        for outline, hole in parts(thing):
            pen.polygon(_scaled(outline, scale), fill=255)
            if hole:
                pen.polygon(_scaled(hole, scale), fill=0)
        labels[np.asarray(stencil)[scale // 2 :: scale, scale // 2 :: scale] > 0] = value
    return labels


def label_map(scene: Scene, stuff: Mapping[str, int], classes: Mapping[str, int]) -> np.ndarray:
    """Semantic labels uint8 (height, width): ``stuff`` by background, ``classes`` by shape; an unlisted shape is 0."""
    base = np.full((scene.height, scene.width), stuff[scene.background], dtype=np.uint8)
    if scene.ground:
        base[scene.horizon :] = stuff[scene.ground]
    layers = [(thing, classes.get(thing.shape, 0)) for thing in (*scene.things, *scene.crowd)]
    return stamp((scene.width, scene.height), layers, base)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO run lengths of a bool mask (height, width): column by column, beginning with the zeros."""
    flat = mask.astype(bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *counts] if flat[0] else counts
