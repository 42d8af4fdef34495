"""Sizes of pictures, and several pictures on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from beit3_bench.harness.pictures.colours import PAPER

LIMITS = (640, 1600)
"""Pixels of the longer side of a picture that is drawn into: below, letters would hide it; above, it is more than screens show."""
LEAST_PANEL = 360
"""Pixels that what is written under a picture is wide at least, however narrow the picture."""
MAX_SHEET = 60_000
"""Pixels of a sheet's side: below what PNG viewers and JPEG (65,535) take."""


def scaled_size(size: tuple[int, int], longer: float) -> tuple[int, int]:
    """(width, height) in the same proportions, the longer side ``longer`` pixels; no side below 1."""
    factor = longer / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def fitted_side(size: tuple[int, int], limits: tuple[int, int] = LIMITS) -> int:
    """Pixels of the longer side of a picture of a size (width, height) once it is `fitted`."""
    return min(max(max(size), limits[0]), limits[1])


def fitted(image: Image.Image, limits: tuple[int, int] = LIMITS) -> Image.Image:
    """The picture in RGB, its longer side within ``limits`` pixels; a copy, also where it fits."""
    image = image.convert("RGB") if image.mode != "RGB" else image.copy()
    longer = fitted_side(image.size, limits)
    if longer == max(image.size):
        return image
    return image.resize(
        scaled_size(image.size, longer),
        Image.Resampling.LANCZOS,
        reducing_gap=3.0 if longer < max(image.size) else None,
    )


def grid(
    pictures: Sequence[Image.Image],
    columns: int | None = None,
    cell: int | None = None,
    gap: int = 16,
    ground: tuple[int, int, int] = PAPER,
) -> Image.Image:
    """Pictures in rows from left to right, in the order given.

    Args:
        columns: per row; None = as many as make the sheet about as wide as high, three at least where there are so many.
        cell: width in pixels of a column; what is wider is made smaller, and nothing is made larger. None = that of the widest.
        gap: pixels around every picture.

    Returns:
        RGB; on its longer side at most `MAX_SHEET` pixels, for which all are made smaller alike.
    """
    if not pictures:
        raise ValueError("a grid of no picture")
    if columns is None:
        columns = min(len(pictures), max(3, round(len(pictures) ** 0.5)))
    cells = [picture if cell is None else _to_width(picture, min(picture.width, cell)) for picture in pictures]
    width = max(c.width for c in cells)
    rows = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(c.height for c in row) for row in rows]
    full = (min(columns, len(cells)) * (width + gap) + gap, sum(heights) + gap * (len(rows) + 1))
    if max(full) > MAX_SHEET:
        smaller = max(1, int(width * MAX_SHEET / max(full) * 0.95) - gap)
        return grid([_to_width(c, smaller) for c in cells], columns, None, min(gap, smaller), ground)
    sheet = Image.new("RGB", full, ground)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for n, picture in enumerate(row):
            sheet.paste(picture, (gap + n * (width + gap) + (width - picture.width) // 2, top))
        top += height + gap
    return sheet


def stacked(pictures: Sequence[Image.Image], ground: tuple[int, int, int] = PAPER) -> Image.Image:
    """Pictures one below the other, centred, without a gap: a picture, and what is written under it."""
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), ground)
    top = 0
    for picture in pictures:
        sheet.paste(picture, ((sheet.width - picture.width) // 2, top))
        top += picture.height
    return sheet


def scaled(picture: Image.Image, factor: float) -> Image.Image:
    """The picture with both sides as many times as long."""
    return picture.resize(scaled_size(picture.size, max(picture.size) * factor), Image.Resampling.LANCZOS)


def panel_width(picture: Image.Image) -> int:
    """The width in pixels of what is written under a picture: the picture's, and enough for words."""
    return max(picture.width, LEAST_PANEL)


def _to_width(picture: Image.Image, width: int) -> Image.Image:
    if picture.width == width:
        return picture
    height = max(1, round(picture.height * width / picture.width))
    return picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
