"""Masks as outlines that a page can draw: a few points instead of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SIDE = 96
"""Cells of a side of the grid, laid over the mask, on which its edge is followed."""
TOLERANCE = 0.7
"""How far, in cells, an outline may lie from the mask's edge."""


def outline_path(mask: Mapping[str, Any]) -> str:
    """The edge of a mask as path data of SVG (even-odd fill), in pixels of its image; "" for an empty mask.

    mask: COCO RLE.
    """
    from pycocotools import mask as coco

    counts = mask["counts"]
    whole = coco.decode({"size": list(mask["size"]), "counts": counts.encode() if isinstance(counts, str) else counts})
    there = np.nonzero(whole)
    if not len(there[0]):
        return ""
    (top, left), (bottom, right) = (tuple(int(end(axis)) for axis in there) for end in (np.min, np.max))
    part = whole[top : bottom + 1, left : right + 1].astype(bool)
    down, across = (max(1, -(-side // SIDE)) for side in part.shape)
    grid = part[min(down // 2, part.shape[0] - 1) :: down, min(across // 2, part.shape[1] - 1) :: across]
    lines = [simplified(points) for points in edges(grid)]
    return "".join(
        "M" + "L".join(f"{left + x * across} {top + y * down}" for x, y in line) + "Z"
        for line in lines
        if len(line) > 2
    )


def edges(grid: np.ndarray) -> list[list[tuple[int, int]]]:
    """Closed lines (x, y) of cell corners around the cells of a bool (H, W) that are set."""
    padded = np.pad(grid, 1).astype(np.int8)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    across, down = np.diff(padded, axis=0), np.diff(padded, axis=1)
    for y, x in np.argwhere(across != 0).tolist():  # between rows y - 1 and y; inside lies to the right
        start, end = ((x - 1, y), (x, y)) if across[y, x] > 0 else ((x, y), (x - 1, y))
        following.setdefault(start, []).append(end)
    for y, x in np.argwhere(down != 0).tolist():  # between columns x - 1 and x
        start, end = ((x, y), (x, y - 1)) if down[y, x] > 0 else ((x, y - 1), (x, y))
        following.setdefault(start, []).append(end)
    lines = []
    while following:
        start = at = next(iter(following))
        line = []
        while True:
            line.append(at)
            ends = following[at]
            then = ends.pop()
            if not ends:
                del following[at]
            at = then
            if at == start:
                break
        lines.append(line)
    return lines


def simplified(line: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Fewer points of a closed line, none of the left out further than `TOLERANCE` from it (Douglas and Peucker 1973)."""
    points = np.array(line, dtype=np.float64)
    far = int(np.argmax(((points - points[0]) ** 2).sum(axis=1)))
    closed = np.concatenate([points, points[:1]])
    kept = {0, far}
    stack = [(0, far), (far, len(points))]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        start, end = closed[first], closed[last]
        between, along = closed[first + 1 : last] - start, end - start
        length = float(np.hypot(*along))
        distance = (
            np.abs(along[0] * between[:, 1] - along[1] * between[:, 0]) / length
            if length
            else np.hypot(between[:, 0], between[:, 1])
        )
        worst = int(np.argmax(distance))
        if distance[worst] > TOLERANCE:
            middle = first + 1 + worst
            kept.add(middle)
            stack += [(first, middle), (middle, last)]
    return [line[k] for k in sorted(kept)]
