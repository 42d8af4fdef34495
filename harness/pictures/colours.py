"""Colours that people with any kind of colour vision can tell apart."""

from __future__ import annotations

from collections.abc import Iterable

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

PALETTE: tuple[Colour, ...] = (
    # Okabe and Ito, "Color Universal Design" (2008), without black
    *((213, 94, 0), (0, 114, 178), (240, 228, 66), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0)),
    # farthest from those and from each other, to normal, protan, deutan and tritan eyes (Machado et al., 2009)
    *((153, 51, 255), (204, 255, 204), (0, 0, 102), (153, 0, 0), (102, 51, 102)),
)
"""Any two are at least 16 apart in CIELAB to every one of these eyes; the first are the easiest to tell apart."""

PAPER: Colour = (255, 255, 255)
INK: Colour = (26, 26, 26)
QUIET: Colour = (90, 90, 90)
"""Of text that says how the rest is to be read; 6.9:1 on `PAPER`."""
FAINT: Colour = (229, 229, 229)
"""Of rules and of the ground that bars stand on."""


def colours_of(numbers: Iterable[int]) -> dict[int, Colour]:
    """A colour per distinct number (a class, an instance), first come first served.

    A number has the same colour in every picture (by its place in the palette), unless that colour is taken in this one: then the
    next that is free. Beyond twelve numbers colours come again.
    """
    chosen: dict[int, Colour] = {}
    free = set(PALETTE)
    for number in dict.fromkeys(numbers):
        free = free or set(PALETTE)
        start = number % len(PALETTE)
        chosen[number] = next(c for c in (*PALETTE[start:], *PALETTE[:start]) if c in free)
        free.discard(chosen[number])
    return chosen


def luminance(colour: Colour) -> float:
    """Relative luminance, 0 to 1 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: Colour, b: Colour) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2)."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def ink_on(ground: Colour) -> Colour:
    """The colour of text on a ground: dark or white, whichever stands out more."""
    return max((INK, PAPER), key=lambda ink: contrast(ink, ground))
