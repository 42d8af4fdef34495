"""Semantic label maps over their picture: regions in colours, with their names, and a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from beit3_bench.harness.pictures.boxes import Rectangle, draw_plate, overlaps, plate_around
from beit3_bench.harness.pictures.colours import INK, PAPER, QUIET, Colour, colours_of
from beit3_bench.harness.pictures.lettering import font, letter_size, line_height, panel_letters, shortened, width_of
from beit3_bench.harness.pictures.sheets import LIMITS, fitted, panel_width, scaled_size, stacked

_COVER = 0.55
_NAMED = (
    0.03  # of the picture: smaller regions stand in the legend alone, as do narrower ones than two thirds of a line
)
_LOOK = 256  # pixels of the map's longer side, where the widest place of a region is looked for


def areas_of(label_map: np.ndarray, ignore: int = 255) -> dict[int, int]:
    """Pixels per class of a label map, the largest first; ``ignore`` is no class. label_map: whole numbers (H, W)."""
    classes, counts = np.unique(np.asarray(label_map), return_counts=True)
    order = np.lexsort((classes, -counts))
    return {int(classes[n]): int(counts[n]) for n in order if classes[n] != ignore}


def draw_label_map(
    image: Image.Image,
    label_map: np.ndarray,
    names: Sequence[str] | None = None,
    entries: int = 12,
    ignore: int = 255,
    limits: tuple[int, int] = LIMITS,
) -> Image.Image:
    """The picture under its label map, the large regions named, with a legend below that gives every class its share.

    Args:
        label_map: whole numbers (H, W) of the image's size, positions in ``names``.
        names: of the classes; None = their numbers.
        entries: of the legend; smaller classes are summed up in a line.
        ignore: the number where nothing is said: the picture shows.
        limits: of the longer side of the picture without the legend, see `sheets.fitted`.

    Returns:
        RGB, the picture on top; as wide as it, and wide enough for the legend.
    """
    label_map = np.asarray(label_map)
    if label_map.shape != (image.height, image.width):
        raise ValueError(f"a label map {label_map.shape} of an image of {image.height} x {image.width}")
    areas = areas_of(label_map, ignore)
    colours = colours_of(areas)
    drawn = fitted(image, limits)
    resized = resized_map(label_map, drawn.size)
    covered = _cover(drawn, resized, colours)
    named = {number: str(number) if names is None else names[number] for number in areas}
    _name_regions(covered, label_map, areas, colours, named)
    width = panel_width(covered)
    letters = panel_letters(covered.size, width)
    return stacked([covered, legend(areas, colours, named, label_map.size, width, entries, letters)])


def resized_map(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map at another size (width, height), by the nearest pixel: no class appears that was not there."""
    height, width = label_map.shape
    rows = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(np.int64).clip(0, height - 1)
    columns = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(np.int64).clip(0, width - 1)
    return label_map[rows[:, None], columns[None, :]]


def _cover(picture: Image.Image, label_map: np.ndarray, colours: Mapping[int, Colour]) -> Image.Image:
    """Mix every class's colour into its pixels, with a light line between the classes."""
    pixels = np.asarray(picture).astype(np.float32)
    paint = pixels.copy()
    for number, colour in colours.items():
        paint[label_map == number] = colour
    mixed = pixels * (1 - _COVER) + paint * _COVER
    border = np.zeros(label_map.shape, dtype=bool)
    border[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    border[1:] |= label_map[1:] != label_map[:-1]
    mixed[border] = PAPER
    return Image.fromarray(mixed.round().astype(np.uint8))


def _name_regions(
    picture: Image.Image,
    label_map: np.ndarray,
    areas: Mapping[int, int],
    colours: Mapping[int, Colour],
    names: Mapping[int, str],
) -> None:
    """Write the name of every class where its region is widest; changes the picture."""
    from scipy.ndimage import distance_transform_edt

    small = resized_map(label_map, scaled_size((label_map.shape[1], label_map.shape[0]), _LOOK))
    face = font(letter_size(picture.size))
    draw, taken = ImageDraw.Draw(picture), list[Rectangle]()
    for number, area in areas.items():
        if area < _NAMED * label_map.size:
            break
        depth = distance_transform_edt(np.pad(small == number, 1))[1:-1, 1:-1]
        if 1.5 * depth.max() * picture.height / small.shape[0] < face.size:
            continue
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        centre = (
            (float(column) + 0.5) * picture.width / small.shape[1],
            (float(row) + 0.5) * picture.height / small.shape[0],
        )
        text = shortened(names[number].split(",")[0], face, picture.width // 2)
        plate = plate_around(centre, text, face, picture.size)
        if text and not overlaps(plate, taken):
            taken.append(plate)
            draw_plate(draw, plate, text, colours[number], face)


def legend(
    areas: Mapping[int, int],
    colours: Mapping[int, Colour],
    names: Mapping[int, str],
    total: int,
    width: int,
    entries: int = 12,
    letters: int | None = None,
) -> Image.Image:
    """Classes with their colours and shares of ``total`` pixels, in columns on a sheet of a width in pixels.

    Args:
        areas: pixels by class, in the order of the legend.
        entries: at most; what is left is summed up in a last line.
        letters: their height in pixels; None = as in a picture of that width.
    """
    face = font(letter_size((width, 0)) if letters is None else letters)
    gap, swatch, line = round(face.size * 0.8), round(face.size * 0.9), round(line_height(face) * 1.1)
    shown = list(areas.items())[:entries]
    rest = sum(areas.values()) - sum(area for _, area in shown)
    count = len(areas) - len(shown)
    texts = [f"{names[number]}  {share(area, total)}" for number, area in shown]
    cell = min(max((width_of(t, face) for t in texts), default=0) + swatch + 2 * gap, max(1, width - 2 * gap))
    columns = max(1, (width - gap) // cell)
    rows = -(-len(shown) // columns)
    more = f"{count} smaller {'class' if count == 1 else 'classes'}  {share(rest, total)}" if count else ""
    if not areas:
        more = "no class"
    sheet = Image.new("RGB", (width, (rows + bool(more)) * line + 2 * gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for n, ((number, _), text) in enumerate(zip(shown, texts, strict=True)):
        left, middle = gap + n // rows * cell, gap + n % rows * line + line // 2
        place = (left, middle - swatch // 2, left + swatch, middle - swatch // 2 + swatch)
        draw.rectangle(place, fill=colours[number], outline=INK)
        at = left + swatch + gap // 2
        draw.text((at, middle), shortened(text, face, width - at), font=face, fill=INK, anchor="lm")
    if more:
        place_of_rest = (gap, gap + rows * line + line // 2)
        draw.text(place_of_rest, shortened(more, face, width - 2 * gap), font=face, fill=QUIET, anchor="lm")
    return sheet


def share(part: int, total: int) -> str:
    """A part as text: ``"38%"``, ``"0.4%"``, ``"<0.1%"``."""
    percent = 100 * part / max(total, 1)
    if 0 < percent < 0.1:
        return "<0.1%"
    return f"{percent:.0f}%" if percent >= 10 or percent == 0 else f"{percent:.1f}%"
