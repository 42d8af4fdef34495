"""Texts and scores under a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from beit3_bench.harness.pictures.colours import FAINT, INK, PALETTE, PAPER, QUIET, Colour
from beit3_bench.harness.pictures.lettering import font, letter_size, line_height, panel_letters, width_of, wrapped
from beit3_bench.harness.pictures.sheets import LIMITS, fitted, panel_width, stacked

MOST_LINES = 12
"""Of one text under a picture; what is longer is cut with an ellipsis."""

NAME_LINES = 3
"""Of a name beside a bar."""


@dataclass(frozen=True)
class Line:
    """A text under a picture. size: as a multiple of the usual letters."""

    text: str
    size: float = 1.0
    colour: Colour = INK


def said(text: str) -> Line:
    """What a model says: large."""
    return Line(text, 1.35)


def asked(text: str) -> Line:
    """What it was asked, or anything else that stands beside it: small and quiet."""
    return Line(text, 1.0, QUIET)


def captioned(image: Image.Image, lines: Sequence[Line], limits: tuple[int, int] = LIMITS) -> Image.Image:
    """The picture, and wrapped texts below it, one under the other.

    limits: of the longer side of the picture without its texts, see `sheets.fitted`.
    """
    picture = fitted(image, limits)
    width = panel_width(picture)
    return stacked([picture, text_panel(lines, width, panel_letters(picture.size, width))])


def text_panel(lines: Sequence[Line], width: int, usual: int, goes_on: bool = False) -> Image.Image:
    """Wrapped texts on a sheet of a width in pixels.

    usual: height in pixels of the usual letters.  goes_on: what follows below belongs to them, and has a margin of its own.
    """
    margin = round(usual * 0.8)
    set_lines = [
        (one, font(max(1, round(usual * line.size))), line.colour)
        for line in lines
        for one in wrapped(line.text, font(round(usual * line.size)), max(1, width - 2 * margin), MOST_LINES)
    ]
    height = sum(line_height(face) for _, face, _ in set_lines) + (1 if goes_on else 2) * margin
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, top = ImageDraw.Draw(sheet), margin
    for text, face, colour in set_lines:
        draw.text((margin, top + line_height(face) / 2), text, font=face, fill=colour, anchor="lm")
        top += line_height(face)
    return sheet


def bars(
    names: Sequence[str],
    scores: Sequence[float],
    width: int,
    texts: Sequence[str] | None = None,
    marked: int | None = None,
    letters: int | None = None,
) -> Image.Image:
    """Names with their scores as bars, one under the other, on a sheet of a width in pixels.

    Args:
        scores: 0 to 1; a bar is empty at 0 and full at 1.
        texts: the numbers as they are printed; None = with two decimals.
        marked: which bar is drawn in the strong colour (the one that counts); None = the first.
        letters: their height in pixels; None = as in a picture of that width.
    """
    texts = [f"{score:.2f}" for score in scores] if texts is None else texts
    face = font(letter_size((width, 0)) if letters is None else letters)
    margin, line = round(face.size * 0.8), round(line_height(face) * 1.25)
    usable = max(1, width - 2 * margin)
    number = max((width_of(text, face) for text in texts), default=0)
    name = min(max((width_of(n, face) for n in names), default=0), usable // 2)
    left = margin + name + margin
    right = max(left + 1, width - margin - number - margin // 2)
    labels = [wrapped(n, face, name, NAME_LINES) for n in names]
    heights = [line + (len(label) - 1) * line_height(face) for label in labels]
    sheet = Image.new("RGB", (width, sum(heights) + 2 * margin), PAPER)
    draw, top = ImageDraw.Draw(sheet), margin
    for n, (label, score, text) in enumerate(zip(labels, scores, texts, strict=True)):
        middle = top + line // 2
        thick = max(2, round(face.size / 3))
        strong = n == (0 if marked is None else marked)
        for place, part in enumerate(label):
            draw.text((margin, middle + place * line_height(face)), part, font=face, fill=INK, anchor="lm")
        draw.rectangle((left, middle - thick, right - 1, middle + thick), fill=FAINT)
        full = round((right - left) * min(max(score, 0.0), 1.0))
        if full:
            colour = PALETTE[1] if strong else QUIET
            draw.rectangle((left, middle - thick, left + full - 1, middle + thick), fill=colour)
        draw.text((width - margin, middle), text, font=face, fill=INK, anchor="rm")
        top += heights[n]
    return sheet


def with_bars(
    image: Image.Image,
    names: Sequence[str],
    scores: Sequence[float],
    lines: Sequence[Line] = (),
    texts: Sequence[str] | None = None,
    limits: tuple[int, int] = LIMITS,
) -> Image.Image:
    """The picture, texts below it, and below these `bars`."""
    picture = fitted(image, limits)
    width = panel_width(picture)
    letters = panel_letters(picture.size, width)
    panels = [text_panel(lines, width, letters, goes_on=True)] if lines else []
    return stacked([picture, *panels, bars(names, scores, width, texts, letters=letters)])
