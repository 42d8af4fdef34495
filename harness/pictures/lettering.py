"""Text in pictures: the font that Pillow brings along, lines that fit, and words that are too long."""

from __future__ import annotations

from functools import cache

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

from beit3_bench.text import visible, visible_lines

LEAST = 13
"""Pixels: smaller letters are not read."""
LONGER_SIDE_IN_LETTERS = 46
"""A picture's longer side is so many letters high: shown in half its size, its labels still are read."""
LEAST_LETTERS = 24
"""A panel is so many letters' heights wide at least: room for seven words."""
ELLIPSIS = "\u2026"


@cache
def font(size: int) -> FreeTypeFont:
    """The font at a size in pixels.

    Raises:
        RuntimeError: this Pillow was built without FreeType.
    """
    loaded = ImageFont.load_default(size)
    if not isinstance(loaded, FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType; install Pillow's own wheel")
    return loaded


def letter_size(size: tuple[int, int]) -> int:
    """Height in pixels of text that belongs into a picture of a size (width, height)."""
    return max(LEAST, round(max(size) / LONGER_SIDE_IN_LETTERS))


def panel_letters(size: tuple[int, int], width: int) -> int:
    """Height in pixels of text below a picture of a size: that of text in it, where a panel of this width has room for words so high."""
    return min(letter_size(size), max(LEAST, width // LEAST_LETTERS))


def line_height(face: FreeTypeFont) -> int:
    """Pixels from one line to the next."""
    return round(face.size * 1.35)


def width_of(text: str, face: FreeTypeFont) -> int:
    """Pixels that a line takes."""
    return int(-(-face.getlength(text) // 1))


def shortened(text: str, face: FreeTypeFont, width: int) -> str:
    """A line that is at most ``width`` pixels wide: whole, or cut with an ellipsis; empty where not even that fits."""
    text = visible(_start(text, width))
    if width_of(text, face) <= width:
        return text
    return (
        f"{text[: _fitting(text, face, width - width_of(ELLIPSIS, face))].rstrip()}{ELLIPSIS}"
        if (width >= width_of(ELLIPSIS, face))
        else ""
    )


def wrapped(text: str, face: FreeTypeFont, width: int, most: int | None = None) -> list[str]:
    """A text as lines of at most ``width`` pixels, broken between words, and within a word that is wider than a line.

    Args:
        most: lines; the last ends with an ellipsis where there would be more. None = as many as there are.

    Returns:
        At least one line, which may be empty.
    """
    lines: list[str] = []
    for paragraph in visible_lines(_start(text, width * (most or 0))).split("\n"):
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if width_of(joined, face) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            while len(word) > 1 and width_of(_start(word, width), face) > width:
                cut = max(1, _fitting(word, face, width))
                lines.append(word[:cut])
                word = word[cut:]
            line = word
            if most is not None and len(lines) > most:
                break
        lines.append(line)
        if most is not None and len(lines) > most:
            return [*lines[: most - 1], shortened(f"{lines[most - 1]}{ELLIPSIS}", face, width)]
    return lines


def _start(text: str, width: int) -> str:
    """So much of a text as may fit into a width, and more: a megabyte is not measured. 0 = all of it."""
    return text[: 4 * width + 80] if width else text


def _fitting(text: str, face: FreeTypeFont, width: int) -> int:
    """How many characters from the start fit into a width."""
    low, high = 0, min(len(text), max(1, 4 * width))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width_of(text[:middle], face) <= width else (low, middle - 1)
    return low
