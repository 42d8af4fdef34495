"""Sizes and grids."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beit3_bench.harness.pictures.sheets import MAX_SHEET, fitted, grid, scaled_size, stacked


@pytest.mark.parametrize("size", [(64, 48), (700, 500), (4000, 3000), (1, 1), (5000, 1), (1, 9000)])
def test_a_fitted_picture_lies_within_the_limits(size):
    image = Image.new("RGB", size, (9, 99, 199))
    drawn = fitted(image, (640, 1600))
    assert 640 <= max(drawn.size) <= 1600
    assert min(drawn.size) >= 1
    assert drawn is not image
    assert np.abs(np.asarray(drawn).astype(int) - [9, 99, 199]).max() <= 1


def test_proportions_are_kept():
    assert scaled_size((640, 480), 320) == (320, 240)
    assert scaled_size((3, 30_000), 100) == (1, 100)


def test_a_grid_holds_its_pictures_in_order():
    shades = [(40 * n, 10, 10) for n in range(5)]
    sheet = np.asarray(grid([Image.new("RGB", (50, 30), c) for c in shades], columns=2, gap=10))
    assert sheet.shape == (3 * 40 + 10, 2 * 60 + 10, 3)
    centres = [tuple(sheet[10 + 40 * (n // 2) + 15, 10 + 60 * (n % 2) + 25]) for n in range(5)]
    assert centres == shades
    assert tuple(sheet[-20, -20]) == (255, 255, 255)


def test_a_grid_of_cells_makes_what_is_wider_smaller_and_nothing_larger():
    sheet = np.asarray(grid([Image.new("RGB", (500, 100)), Image.new("RGB", (20, 40))], cell=100, gap=0))
    assert sheet.shape == (40, 200, 3)
    dark = (sheet == 0).all(axis=-1)
    assert (dark[:, :100].sum(), dark[:, 100:].sum()) == (20 * 100, 20 * 40)
    assert dark[:, 140:160].all()


def test_a_sheet_never_grows_beyond_what_viewers_take():
    sheet = grid([Image.new("RGB", (90, 9000))] * 10, columns=1)
    assert MAX_SHEET / 2 < max(sheet.size) <= MAX_SHEET


def test_no_picture_makes_no_grid():
    with pytest.raises(ValueError, match="no picture"):
        grid([])


def test_stacked_pictures_are_centred():
    sheet = np.asarray(stacked([Image.new("RGB", (9, 5), (1, 2, 3)), Image.new("RGB", (4, 5), (4, 5, 6))]))
    assert sheet.shape == (10, 9, 3)
    assert sheet[7, 4].tolist() == [4, 5, 6]
    assert sheet[7, 7].tolist() == sheet[7, 1].tolist() == [255, 255, 255]
