"""The learning curves as a picture, drawn with Pillow: loss, learning rate and validation metrics over steps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from beit3_bench.harness.scales import bounds, ticks

WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 34, 44
INK, GRID = (40, 40, 40), (225, 225, 225)
COLOURS = (
    (31, 119, 180), (214, 97, 14), (44, 140, 60), (190, 40, 50), (120, 85, 170), (120, 85, 70), (200, 100, 170), (110, 110, 110),
)  # fmt: skip
"""One per line of a panel; readable on white, and told apart by the legend where colours repeat."""

Line = tuple[str, Sequence[float], Sequence[float]]
"""Name, steps, values."""


def draw_panel(title: str, lines: Sequence[Line]) -> Image.Image:
    """One diagram, (480, 340) pixels; gaps in a line where its values are not finite."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    draw.text((WIDTH / 2, TOP / 2), title, fill=INK, font=ImageFont.load_default(15), anchor="mm")
    x_low, x_high = bounds([x for _, steps, _ in lines for x in steps])
    y_low, y_high = bounds([y for _, _, values in lines for y in values])
    margin = (y_high - y_low) * 0.04
    y_low, y_high = y_low - margin, y_high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    for x in ticks(x_low, x_high):
        at = place(x, y_low)
        draw.line([at, place(x, y_high)], fill=GRID)
        draw.text((at[0], at[1] + 5), f"{x:g}", fill=INK, font=font, anchor="ma")
    for y in ticks(y_low, y_high):
        at = place(x_low, y)
        draw.line([at, place(x_high, y)], fill=GRID)
        draw.text((at[0] - 5, at[1]), f"{y:.4g}", fill=INK, font=font, anchor="rm")
    draw.rectangle([place(x_low, y_high), place(x_high, y_low)], outline=INK)
    draw.text((LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 6), "step", fill=INK, font=font, anchor="mb")
    for number, (_, steps, values) in enumerate(lines):
        _draw_line(
            draw, [place(x, y) if math.isfinite(y) else None for x, y in zip(steps, values, strict=True)], number
        )
    if len(lines) > 1:
        _draw_legend(draw, [name for name, _, _ in lines], font)
    return image


def _draw_line(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float] | None], number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    for start, end in pairwise(points):
        if start is not None and end is not None:
            draw.line([start, end], fill=colour, width=2)
    if len(points) <= 40:
        for point in points:
            if point is not None:
                x, y = point
                draw.ellipse([x - 2.5, y - 2.5, x + 2.5, y + 2.5], fill=colour)


def _draw_legend(
    draw: ImageDraw.ImageDraw, names: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    width = max(draw.textlength(name, font=font) for name in names)
    left, top = LEFT + 8, TOP + 6
    draw.rectangle([left, top, left + width + 30, top + 15 * len(names) + 4], fill="white", outline=GRID)
    for number, name in enumerate(names):
        y = top + 10 + 15 * number
        draw.line([(left + 5, y), (left + 20, y)], fill=COLOURS[number % len(COLOURS)], width=3)
        draw.text((left + 25, y), name, fill=INK, font=font, anchor="lm")


def draw_panels(panels: Sequence[tuple[str, Sequence[Line]]]) -> bytes:
    """Diagrams side by side as a PNG; those without a line are left out."""
    drawn = [draw_panel(title, lines) for title, lines in panels if lines]
    image = Image.new("RGB", (WIDTH * max(len(drawn), 1), HEIGHT), "white")
    for number, panel in enumerate(drawn):
        image.paste(panel, (number * WIDTH, 0))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
