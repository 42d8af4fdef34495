"""Regions in their colours, names on them, shares in the legend."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beit3_bench.harness.pictures import label_maps as room
from beit3_bench.harness.pictures.colours import colours_of
from beit3_bench.harness.pictures.label_maps import areas_of, draw_label_map, resized_map, share

GREY = (128, 128, 128)
NAMES = [f"class {n}" for n in range(150)]


def halves() -> np.ndarray:
    label_map = np.full((480, 640), 3, dtype=np.uint8)
    label_map[:, 400:] = 7
    label_map[:100, :100] = 255
    return label_map


def test_every_region_has_its_colour_and_what_is_ignored_shows_the_picture():
    drawn = np.asarray(draw_label_map(Image.new("RGB", (640, 480), GREY), halves(), NAMES))
    colours = colours_of([3, 7])
    for (row, column), number in {(440, 30): 3, (440, 600): 7}.items():
        assert drawn[row, column] == pytest.approx(np.array(GREY) * 0.45 + np.array(colours[number]) * 0.55, abs=1)
    assert tuple(drawn[50, 50]) == GREY
    assert drawn.shape[0] > 480  # the legend
    assert drawn.shape[1] == 640


def test_large_regions_are_named_once_each_and_small_ones_in_the_legend_alone(monkeypatch):
    named = []
    monkeypatch.setattr(room, "draw_plate", lambda draw, plate, text, colour, face: named.append((text, plate)))
    label_map = halves()
    label_map[:10, 200:210] = 90
    draw_label_map(Image.new("RGB", (640, 480)), label_map, [*NAMES[:3], "wall, inside", *NAMES[4:]])
    assert [text for text, _ in named] == ["wall", "class 7"]
    x1, y1, x2, y2 = dict(named)["class 7"]
    assert (halves()[y1:y2, x1:x2] == 7).all()


def test_areas_come_largest_first():
    assert areas_of(halves()) == {3: 480 * 400 - 100 * 100, 7: 480 * 240}
    assert areas_of(np.full((2, 2), 255)) == {}


def test_the_legend_sums_up_what_it_leaves_out(monkeypatch):
    texts = []
    monkeypatch.setattr(room, "shortened", lambda text, *rest: (texts.append(text), text)[1])
    label_map = np.arange(40).repeat(100).reshape(40, 100)
    draw_label_map(Image.new("RGB", (100, 40)), label_map, None, entries=4)
    assert [t for t in texts if t.startswith("3  ")] == ["3  2.5%"]
    assert texts[-1] == "36 smaller classes  90%"


def test_a_map_is_resized_without_new_classes():
    resized = resized_map(np.array([[0, 9], [4, 2]]), (640, 4))
    assert set(np.unique(resized)) == {0, 2, 4, 9}
    assert resized[0, :320].tolist() == [0] * 320
    assert resized_map(halves(), (64, 48)).shape == (48, 64)


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (2000, 2)])
def test_pictures_of_any_shape_are_drawn_into(size):
    assert draw_label_map(Image.new("RGB", size), np.zeros((size[1], size[0]), dtype=np.uint8), ["x" * 300])


def test_nothing_but_ignored_pixels():
    drawn = np.asarray(draw_label_map(Image.new("RGB", (640, 480), GREY), np.full((480, 640), 255, dtype=np.uint8)))
    assert (drawn[:480] == GREY).all()


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="480 x 640"):
        draw_label_map(Image.new("RGB", (640, 480)), np.zeros((640, 480)))


@pytest.mark.parametrize(
    ("part", "text"), [(0, "0%"), (1, "<0.1%"), (40, "0.4%"), (997, "10.0%"), (1_000, "10%"), (10_000, "100%")]
)
def test_shares(part, text):
    assert share(part, 10_000) == text
