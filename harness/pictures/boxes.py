"""Boxes with labels, and instance masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from PIL.ImageFont import FreeTypeFont

from beit3_bench.harness.pictures.colours import INK, PALETTE, PAPER, Colour, ink_on
from beit3_bench.harness.pictures.lettering import font, letter_size, shortened, width_of
from beit3_bench.harness.pictures.sheets import LIMITS, fitted

Rectangle = tuple[int, int, int, int]
"""left, top, right, bottom in pixels, the last two outside."""

_COVER = 0.45  # of a mask, over the picture


def draw_boxes(
    image: Image.Image,
    boxes: np.ndarray,
    labels: Sequence[str],
    colours: Sequence[Colour] | None = None,
    masks: np.ndarray | Sequence[np.ndarray] | None = None,
    dashed: Sequence[bool] | None = None,
    limits: tuple[int, int] = LIMITS,
) -> Image.Image:
    """The picture with boxes, a label at each, and instances shaded.

    Args:
        boxes: float (n, 4), x1 y1 x2 y2 in pixels of the image as given.
        labels: n texts (``"dog 0.93"``), the most important first: their labels lie on top; "" = a box without one.
        colours: one per box; None = the palette's, box by box.
        masks: bool (n, H, W) of the image's size, or such arrays in a list.
        dashed: which boxes are drawn with a broken line (the truth beside predictions); None = none.
        limits: of the longer side of the result, see `sheets.fitted`.

    Returns:
        RGB; labels lie within the picture, and beside each other where there is room.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if len(labels) != len(boxes) or (masks is not None and len(masks) != len(boxes)):
        raise ValueError(f"{len(boxes)} boxes, {len(labels)} labels, {'no' if masks is None else len(masks)} masks")
    colours = [PALETTE[n % len(PALETTE)] for n in range(len(boxes))] if colours is None else colours
    drawn = fitted(image, limits)
    if masks is not None:
        for mask, colour in reversed(list(zip(masks, colours, strict=True))):
            _shade(drawn, mask, colour)
    scale = np.array([drawn.width / image.width, drawn.height / image.height] * 2)
    places = [_rectangle(box, drawn.size) for box in boxes * scale]
    width = max(2, round(max(drawn.size) / 400))
    draw = ImageDraw.Draw(drawn)
    for n in reversed(range(len(places))):
        _frame(draw, places[n], colours[n], width, dashed is not None and dashed[n])
    _label_all(draw, places, labels, colours, drawn.size)
    return drawn


def _rectangle(box: np.ndarray, size: tuple[int, int]) -> Rectangle:
    """A box in whole pixels of the picture, at least a pixel wide and high."""
    x1, y1, x2, y2 = np.nan_to_num(box, posinf=1e6, neginf=-1e6)
    left, right = sorted(min(max(round(float(x)), 0), size[0]) for x in (x1, x2))
    top, bottom = sorted(min(max(round(float(y)), 0), size[1]) for y in (y1, y2))
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _frame(draw: ImageDraw.ImageDraw, place: Rectangle, colour: Colour, width: int, dashed: bool) -> None:
    """A line in the colour between two of the opposite lightness, so that it is seen on every ground."""
    left, top, right, bottom = place
    halo = PAPER if ink_on(colour) == PAPER else INK
    draw.rectangle((left - 1, top - 1, right, bottom), outline=halo, width=width + 2)
    if not dashed:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
        return
    dash = 4 * width
    for x in range(left, right, 2 * dash):
        for y in (top, bottom - width):
            draw.rectangle((x, y, min(x + dash, right) - 1, y + width - 1), fill=colour)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right - width):
            draw.rectangle((x, y, x + width - 1, min(y + dash, bottom) - 1), fill=colour)


def _label_all(
    draw: ImageDraw.ImageDraw,
    places: Sequence[Rectangle],
    labels: Sequence[str],
    colours: Sequence[Colour],
    size: tuple[int, int],
) -> None:
    face = font(letter_size(size))
    taken: list[Rectangle] = []
    plates: list[tuple[Rectangle, str, Colour]] = []
    for place, label, colour in zip(places, labels, colours, strict=True):
        text = shortened(label, face, size[0] - 8) if label else ""
        if text:
            plate = _free_plate(place, _plate_size(text, face), taken, size)
            taken.append(plate)
            plates.append((plate, text, colour))
    for plate, text, colour in reversed(plates):
        draw_plate(draw, plate, text, colour, face)


def _plate_size(text: str, face: FreeTypeFont) -> tuple[int, int]:
    pad = _pad(face)
    return width_of(text, face) + 2 * pad, round(face.size * 1.1) + 2 * (pad // 2) + 1


def _pad(face: FreeTypeFont) -> int:
    return max(3, round(face.size / 4))


def draw_plate(draw: ImageDraw.ImageDraw, plate: Rectangle, text: str, colour: Colour, face: FreeTypeFont) -> None:
    """A line of text on a ground of a colour. plate: its place, as large as `plate_around` says."""
    left, top, right, bottom = plate
    draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    draw.text((left + _pad(face), (top + bottom) / 2), text, font=face, fill=ink_on(colour), anchor="lm")


def plate_around(centre: tuple[float, float], text: str, face: FreeTypeFont, size: tuple[int, int]) -> Rectangle:
    """The place of a line of text with its ground around a point, moved into a picture of a size (width, height)."""
    width, height = _plate_size(text, face)
    return _within((round(centre[0] - width / 2), round(centre[1] - height / 2)), (width, height), size)


def _within(corner: tuple[int, int], plate: tuple[int, int], size: tuple[int, int]) -> Rectangle:
    left = max(0, min(corner[0], size[0] - plate[0]))
    top = max(0, min(corner[1], size[1] - plate[1]))
    return left, top, left + plate[0], top + plate[1]


def _free_plate(
    place: Rectangle, plate: tuple[int, int], taken: Sequence[Rectangle], size: tuple[int, int]
) -> Rectangle:
    """Where a label goes: at a corner of its box, outside before inside, on as little of other labels as there is a way."""
    left, top, right, bottom = place
    width, height = plate
    corners = [
        *((left, top - height), (right - width, top - height), (left, bottom), (right - width, bottom)),
        *((left, top), (right - width, top), (left, bottom - height), (right - width, bottom - height)),
        *((left, (top + bottom - height) // 2), (left, top + height), (left, top + 2 * height)),
    ]
    inside = [corner for corner in corners if 0 <= corner[1] <= size[1] - height]
    options = [_within(corner, plate, size) for corner in inside or corners]
    return min(options, key=lambda option: sum(_overlap(option, other) for other in taken))


def overlaps(plate: Rectangle, others: Sequence[Rectangle]) -> bool:
    """Whether a rectangle covers a part of any of the others."""
    return any(_overlap(plate, other) for other in others)


def _overlap(a: Rectangle, b: Rectangle) -> int:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0


def _shade(picture: Image.Image, mask: np.ndarray, colour: Colour) -> None:
    """Cover an instance with its colour, and draw its outline; changes the picture."""
    stencil = Image.fromarray(np.asarray(mask, dtype=bool).astype(np.uint8) * 255)
    stencil = stencil.resize(picture.size, Image.Resampling.BILINEAR).point([255 if v > 127 else 0 for v in range(256)])
    place = stencil.getbbox()
    if place is None:
        return
    part = stencil.crop(place)
    picture.paste(colour, place[:2], part.point([round(v * _COVER) for v in range(256)]))
    edge = 2 * max(1, round(max(picture.size) / 800)) + 1
    framed = Image.new(
        "L", (part.width + 2 * edge, part.height + 2 * edge)
    )  # the outline is drawn at the mask's borders, too
    framed.paste(part, (edge, edge))
    core = framed.filter(ImageFilter.MinFilter(edge)).crop((edge, edge, edge + part.width, edge + part.height))
    picture.paste(colour, place[:2], ImageChops.subtract(part, core))
