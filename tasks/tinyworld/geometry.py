"""Outlines of the shapes: polygons in pixels, from which pictures, boxes, areas, masks and label maps are made."""

from __future__ import annotations

import math
from functools import cache

from beit3_bench.tasks.tinyworld.scenes import Rgb, Thing, rotate

Point = tuple[float, float]
Polygon = list[Point]


def _wheel(count: int, radius: float = 1.0, start: float = -math.pi / 2) -> Polygon:
    return [
        (radius * math.cos(start + 2 * math.pi * i / count), radius * math.sin(start + 2 * math.pi * i / count))
        for i in range(count)
    ]


def _heart() -> Polygon:
    points = []
    for i in range(32):
        t = 2 * math.pi * i / 32
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2) / 17))
    return points


@cache
def unit_outline(shape: str) -> tuple[Polygon, Polygon]:
    """(outer outline, hole or empty) of a shape of radius 1 about the origin, y pointing down."""
    if shape == "circle":
        return _wheel(32), []
    if shape == "ring":
        return _wheel(32), _wheel(24, 0.52)
    if shape == "square":
        side = 0.8
        return [(-side, -side), (side, -side), (side, side), (-side, side)], []
    if shape == "triangle":
        return [(0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)], []
    if shape == "star":
        outer, inner = _wheel(5), _wheel(5, 0.42, -math.pi / 2 + math.pi / 5)
        return [point for pair in zip(outer, inner, strict=True) for point in pair], []
    if shape == "cross":
        a, b = 0.95, 0.3
        corners = [
            (-b, -a),
            (b, -a),
            (b, -b),
            (a, -b),
            (a, b),
            (b, b),
            (b, a),
            (-b, a),
            (-b, b),
            (-a, b),
            (-a, -b),
            (-b, -b),
        ]
        return corners, []
    if shape == "heart":
        return _heart(), []
    if shape == "arrow":
        return [(0.0, -0.95), (0.85, 0.0), (0.32, 0.0), (0.32, 0.95), (-0.32, 0.95), (-0.32, 0.0), (-0.85, 0.0)], []
    raise ValueError(f"no shape {shape!r}")


def _place(thing: Thing, polygon: Polygon) -> Polygon:
    return [(thing.x + thing.radius * x, thing.y + thing.radius * y) for x, y in rotate(polygon, thing.angle)]


def _clip(polygon: Polygon, limit: float, side: int) -> Polygon:
    """The part of a convex polygon with ``side * x >= side * limit``."""
    kept: Polygon = []
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        inside0, inside1 = side * x0 >= side * limit, side * x1 >= side * limit
        if inside0:
            kept.append((x0, y0))
        if inside0 != inside1:
            share = (limit - x0) / (x1 - x0)
            kept.append((limit, y0 + share * (y1 - y0)))
    return kept


@cache
def _unit_mark(shape: str) -> tuple[Polygon, Rgb] | None:
    black, white = (15, 15, 15), (250, 250, 250)
    if shape == "square":
        return [(-0.42, -0.42), (0.42, -0.42), (0.42, 0.42), (-0.42, 0.42)], black
    if shape == "triangle":
        return [(x, y + 0.2) for x, y in _wheel(16, 0.36)], white
    if shape == "star":
        return _wheel(16, 0.36), black
    if shape == "cross":
        return [(-0.95, -0.15), (0.95, -0.15), (0.95, 0.15), (-0.95, 0.15)], white
    return None


def mark(thing: Thing) -> tuple[Polygon, Rgb] | None:
    """What is painted on a shape besides its colour, outline in pixels and paint: a second cue to tell shapes apart."""
    drawn = _unit_mark(thing.shape) if thing.texture == "marked" else None
    return (_place(thing, drawn[0]), drawn[1]) if drawn else None


def parts(thing: Thing) -> list[tuple[Polygon, Polygon]]:
    """The parts of a thing in pixels, each an outer outline and its hole (or an empty list)."""
    outer, hole = unit_outline(thing.shape)
    pieces = [(outer, hole)]
    if thing.gap:
        pieces = [(_clip(outer, -thing.gap, -1), []), (_clip(outer, thing.gap, 1), [])]
    return [(_place(thing, outline), _place(thing, inner)) for outline, inner in pieces]


def polygon_area(polygon: Polygon) -> float:
    """Area in square pixels (shoelace formula)."""
    pairs = zip(polygon, polygon[1:] + polygon[:1], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs)) / 2


def coco_polygons(thing: Thing) -> list[list[float]]:
    """COCO `segmentation`: one flat [x, y, x, y, ...] per part; a hole is reached through a seam of no width."""
    flat = []
    for outline, hole in parts(thing):
        points = [*outline, outline[0], hole[0], *hole[:0:-1], hole[0]] if hole else outline
        flat.append([round(value, 2) for point in points for value in point])
    return flat


def area(thing: Thing) -> float:
    """Visible area in square pixels."""
    return sum(polygon_area(outline) - (polygon_area(hole) if hole else 0.0) for outline, hole in parts(thing))


def box(thing: Thing) -> list[float]:
    """COCO `bbox`: [x, y, width, height] in pixels, of the polygons as they are written."""
    values = [value for flat in coco_polygons(thing) for value in flat]
    xs, ys = values[0::2], values[1::2]
    return [round(v, 2) for v in (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))]
