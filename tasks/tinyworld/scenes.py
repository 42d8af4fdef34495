"""What a picture of the tiny world shows: one to three coloured shapes on a 2 x 2 grid, drawn from a seeded generator.

A scene is the single source of truth: the picture, its captions, questions, boxes, masks and label map all follow from
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

COLORS = {
    "red": (215, 35, 40),
    "green": (35, 160, 60),
    "blue": (40, 75, 220),
    "yellow": (245, 220, 40),
    "purple": (140, 45, 180),
    "orange": (245, 130, 25),
}
BACKGROUNDS = {
    "gray": (140, 140, 140),
    "white": (240, 240, 240),
    "tan": (215, 190, 150),
    "black": (35, 35, 40),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
NOVEL_SHAPES = ("heart", "arrow")
"""Never in the COCO, Flickr30K or NLVR2 pictures: nocaps' out-of-domain objects, ADE20K's unlabelled ones."""

CELLS = ("top left", "top right", "bottom left", "bottom right")
SIZES = {"big": 0.9, "small": 0.66}
"""Radius of a shape over half of the shorter side of its grid cell."""

FRAMES = ((96, 80), (80, 96), (96, 88), (88, 96), (88, 88))
"""(width, height) in pixels. Near squares: a square resize to 64 pixels leaves the shapes recognisable."""

Rgb = tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """One shape. x, y, radius: pixels from the top left corner; angle: radians, clockwise.

    gap: half-width, in radii, of a see-through slit down the middle that cuts the shape into two parts (0 = none).
    texture: ``"marked"`` (with the mark of its shape, see `geometry.mark`), ``"plain"``, ``"striped"`` or ``"dotted"``.
    """

    shape: str
    color: str
    size: str
    cell: int
    x: float
    y: float
    radius: float
    angle: float
    rgb: Rgb
    gap: float = 0.0
    texture: str = "marked"

    @property
    def kind(self) -> tuple[str, str]:
        return self.color, self.shape

    @property
    def left(self) -> bool:
        return self.cell % 2 == 0

    @property
    def top(self) -> bool:
        return self.cell < 2


@dataclass(frozen=True)
class Scene:
    """A picture. things: in reading order (top left to bottom right); crowd: tiny shapes of one kind in one grid cell.

    ground: name of a second background below the horizon (a row in pixels), or None.
    """

    width: int
    height: int
    background: str
    rgb: Rgb
    things: tuple[Thing, ...]
    crowd: tuple[Thing, ...] = ()
    ground: str | None = None
    ground_rgb: Rgb = (0, 0, 0)
    horizon: int = 0

    @property
    def signature(self) -> tuple:
        """What is shown, up to colour shades and jitter: two scenes of the same signature count as the same."""
        shown = tuple((t.shape, t.color, t.size, t.cell) for t in self.things)
        return self.background, self.ground, shown, tuple(sorted({t.kind for t in self.crowd}))

    @property
    def kinds(self) -> tuple:
        """What a caption tells for certain: colours and shapes, crowd included; the background of an empty scene."""
        shown = tuple(sorted(t.kind for t in self.things))
        return shown, tuple(sorted({t.kind for t in self.crowd})), None if shown else self.background


def shade(rng: Random, rgb: Rgb, spread: int) -> Rgb:
    """A colour near ``rgb``: every channel moved by at most ``spread``."""
    red, green, blue = (min(255, max(0, channel + rng.randint(-spread, spread))) for channel in rgb)
    return red, green, blue


def sample_thing(
    rng: Random, frame: tuple[int, int], cell: int, shape: str, color: str, size: str | None = None
) -> Thing:
    """A shape in the middle of a cell of the 2 x 2 grid, moved by at most two pixels.

    The coarse grid makes the world quickly learnable: a patch token meets a shape always in nearly the same phase.
    """
    width, height = frame[0] / 2, frame[1] / 2
    size = size or rng.choice(tuple(SIZES))
    half = min(width, height) / 2
    radius = SIZES[size] * half * rng.uniform(0.95, 1.05)
    # Turned by so little, no shape reaches beyond its radius: it stays inside its cell.
    x = (cell % 2 + 0.5) * width + rng.uniform(-1, 1) * min(2.0, width / 2 - radius)
    y = (cell // 2 + 0.5) * height + rng.uniform(-1, 1) * min(2.0, height / 2 - radius)
    angle = rng.uniform(-0.06, 0.06)
    return Thing(shape, color, size, cell, x, y, radius, angle, shade(rng, COLORS[color], 12))


def sample_crowd(rng: Random, frame: tuple[int, int], cell: int, shape: str, color: str) -> tuple[Thing, ...]:
    """Five tiny shapes of one kind in one cell."""
    width, height = frame[0] / 2, frame[1] / 2
    rgb = shade(rng, COLORS[color], 12)
    radius = 0.24 * min(width, height) / 2
    spots = [(0.25, 0.28), (0.75, 0.26), (0.5, 0.5), (0.27, 0.75), (0.74, 0.73)]
    things = []
    for u, v in spots:
        x = (cell % 2 + u + rng.uniform(-0.05, 0.05)) * width
        y = (cell // 2 + v + rng.uniform(-0.05, 0.05)) * height
        things.append(Thing(shape, color, "tiny", cell, x, y, radius, rng.uniform(-0.2, 0.2), rgb))
    return tuple(things)


def sample_scene(
    rng: Random,
    count: int | None = None,
    shapes: Sequence[str] = SHAPES,
    crowds: float = 0.0,
    splits: float = 0.0,
) -> Scene:
    """A scene of ``count`` things of distinct (colour, shape); by default one (30%), two (45%) or three (25%).

    Args:
        crowds: chance of a crowd in one of the free cells.
        splits: chance that a circle, square or triangle is cut into two parts.
    """
    frame = rng.choice(FRAMES)
    if count is None:
        count = rng.choices((1, 2, 3), weights=(30, 45, 25))[0]
    cells = rng.sample(range(4), 4)
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        kind = rng.choice(tuple(COLORS)), rng.choice(tuple(shapes))
        if kind not in kinds:
            kinds.append(kind)
    things = []
    for cell, (color, shape) in zip(sorted(cells[:count]), kinds, strict=True):
        split = shape in ("circle", "square", "triangle") and rng.random() < splits
        thing = sample_thing(rng, frame, cell, shape, color, "big" if split else None)
        things.append(replace(thing, gap=0.14) if split else thing)
    crowd: tuple[Thing, ...] = ()
    if count < 4 and rng.random() < crowds:
        taken = {t.shape for t in things}
        shape = rng.choice([s for s in shapes if s not in taken])
        crowd = sample_crowd(rng, frame, cells[-1], shape, rng.choice(tuple(COLORS)))
    background = rng.choice(tuple(BACKGROUNDS))
    return Scene(*frame, background, shade(rng, BACKGROUNDS[background], 10), tuple(things), crowd)


def add_ground(rng: Random, scene: Scene, background: str, ground: str) -> Scene:
    """The scene before a wall or sky (``background``) above a ``ground``."""
    horizon = round(scene.height * rng.uniform(0.42, 0.58))
    return replace(
        scene,
        background=background,
        rgb=shade(rng, BACKGROUNDS[background], 10),
        ground=ground,
        ground_rgb=shade(rng, BACKGROUNDS[ground], 10),
        horizon=horizon,
    )


def sample_portrait(rng: Random, shape: str, color: str, rgb: Rgb, texture: str) -> Scene:
    """One large textured shape near the middle of the picture."""
    width, height = rng.choice(FRAMES)
    half = min(width, height) / 2
    radius = rng.uniform(0.6, 0.85) * half
    x = width / 2 + rng.uniform(-1, 1) * (width / 2 - radius) * 0.6
    y = height / 2 + rng.uniform(-1, 1) * (height / 2 - radius) * 0.6
    angle = rng.uniform(-0.25, 0.25)
    thing = Thing(shape, color, "big", 0, x, y, radius, angle, shade(rng, rgb, 12), texture=texture)
    background = rng.choice(tuple(BACKGROUNDS))
    return Scene(width, height, background, shade(rng, BACKGROUNDS[background], 10), (thing,))


class SceneSource:
    """Draws scenes no two of which have the same signature, across everything drawn from one source.

    A *gallery* (a split in which pictures must be told apart by their captions) moreover has distinct `Scene.kinds`.
    """

    def __init__(self) -> None:
        self._seen: set[tuple] = set()

    def draw(self, rng: Random, number: int, gallery: bool = False, **options: Any) -> list[Scene]:
        scenes: list[Scene] = []
        kinds: set[tuple] = set()
        for _ in range(200 * number + 1000):
            if len(scenes) == number:
                break
            scene = sample_scene(rng, **options)
            if scene.signature in self._seen or (gallery and scene.kinds in kinds):
                continue
            self._seen.add(scene.signature)
            kinds.add(scene.kinds)
            scenes.append(scene)
        if len(scenes) < number:
            raise ValueError(f"only {len(scenes)} of {number} different scenes exist for these options")
        return scenes


def rotate(points: Sequence[tuple[float, float]], angle: float) -> list[tuple[float, float]]:
    """Points turned about the origin by ``angle`` radians (clockwise where y points down)."""
    cos, sin = math.cos(angle), math.sin(angle)
    return [(cos * x - sin * y, sin * x + cos * y) for x, y in points]
