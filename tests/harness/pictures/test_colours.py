"""The palette, to every kind of colour vision; colours of classes; text on colours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from beit3_bench.harness.pictures.colours import INK, PALETTE, PAPER, QUIET, Colour, colours_of, contrast, ink_on

# Machado, Oliveira and Fernandes (2009), severity 1.0: linear RGB as it appears to a dichromat.
EYES = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(colour: Colour, eye: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of a colour as an eye sees it."""
    value = np.array(colour) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(eye @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_any_two_colours_can_be_told_apart_by(eye):
    seen = [lab(colour, EYES[eye]) for colour in PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 16


def test_text_on_every_colour_is_readable():
    assert all(contrast(ink_on(colour), colour) >= 4.2 for colour in PALETTE)
    assert contrast(QUIET, PAPER) > 4.5 < contrast(INK, PAPER)
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


def test_a_class_keeps_its_colour_unless_it_is_taken():
    assert colours_of([3, 1])[3] == colours_of([3])[3] == PALETTE[3]
    assert colours_of([3, 15]) == {3: PALETTE[3], 15: PALETTE[4]}  # 15 would have the place of 3
    twelve = colours_of(range(0, 12 * 12, 12))
    assert sorted(twelve.values()) == sorted(PALETTE)
    assert len(colours_of([*range(30), *range(30)])) == 30
