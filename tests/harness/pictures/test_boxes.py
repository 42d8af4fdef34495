"""Boxes where they belong, labels that are seen, masks inside of their instances."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from beit3_bench.harness.pictures import boxes as room
from beit3_bench.harness.pictures.boxes import draw_boxes
from beit3_bench.harness.pictures.colours import PALETTE
from beit3_bench.harness.pictures.lettering import font

GREY = (128, 128, 128)


def drawn_plates(monkeypatch) -> list:
    """Places of labels as they are drawn, from the call on."""
    plates: list = []
    plate = room.draw_plate
    monkeypatch.setattr(
        room, "draw_plate", lambda draw, place, *rest: (plates.append(place), plate(draw, place, *rest))
    )
    return plates


def test_a_box_stands_at_its_place_in_a_picture_that_was_scaled():
    image = Image.new("RGB", (400, 300), GREY)
    drawn = np.asarray(draw_boxes(image, np.array([[100, 50, 300, 250]]), [""], limits=(800, 800)))
    assert drawn.shape == (600, 800, 3)
    middle = drawn[300]
    assert tuple(middle[200]) == tuple(middle[599]) == PALETTE[0]
    assert tuple(middle[400]) == tuple(middle[190]) == tuple(middle[610]) == GREY
    assert tuple(drawn[100, 400]) == tuple(drawn[499, 400]) == PALETTE[0]
    assert set(image.getdata()) == {GREY}


def test_a_dashed_box_has_gaps():
    def line(dashed: bool) -> np.ndarray:
        box = np.array([[100, 100, 600, 400]])
        return np.asarray(draw_boxes(Image.new("RGB", (700, 500), GREY), box, [""], dashed=[dashed]))[100, 100:600]

    assert (line(False) == PALETTE[0]).all(axis=-1).all()
    share = (line(True) == PALETTE[0]).all(axis=-1).mean()
    assert 0.4 < share < 0.6


def test_a_mask_is_shaded_inside_alone():
    image = Image.new("RGB", (640, 480), GREY)
    mask = np.zeros((480, 640), dtype=bool)
    mask[200:300, 300:400] = True
    drawn = np.asarray(
        draw_boxes(image, np.array([[300, 200, 400, 300]]), [""], masks=mask[None], colours=[(255, 0, 0)])
    )
    assert drawn[250, 350].tolist() == [round(128 * 0.55 + 255 * 0.45), round(128 * 0.55), round(128 * 0.55)]
    changed = (drawn != GREY).any(axis=-1)
    assert changed[200:300, 300:400].all()
    changed[195:305, 295:405] = False
    assert not changed.any()


def test_labels_lie_within_the_picture_and_beside_each_other(monkeypatch):
    plates = drawn_plates(monkeypatch)
    places = np.array([[0, 0, 90, 60], [2, 2, 92, 62], [560, 420, 640, 480], [300, -50, 340, 900], [0, 200, 30, 230]])
    names = ["person 0.97", "dining table 0.91", "traffic light 0.85", "cat 0.60", "n" * 400]
    draw_boxes(Image.new("RGB", (640, 480), GREY), places, names)
    assert len(plates) == 5
    assert all(0 <= x1 < x2 <= 640 and 0 <= y1 < y2 <= 480 for x1, y1, x2, y2 in plates)
    assert not any(room.overlaps(a, [b]) for a, b in itertools.combinations(plates, 2))


def test_the_most_important_label_lies_on_top(monkeypatch):
    plates = drawn_plates(monkeypatch)
    draw_boxes(Image.new("RGB", (640, 480)), np.array([[9, 300, 90, 400], [400, 300, 500, 400]]), ["first", "second"])
    assert plates[-1][0] < 100  # drawn last


def test_a_label_is_readable_on_its_colour():
    drawn = np.asarray(draw_boxes(Image.new("RGB", (640, 480), GREY), np.array([[100, 100, 400, 300]]), ["dog 0.93"]))
    plate = drawn[80:100, 100:180].reshape(-1, 3)
    assert {tuple(pixel) for pixel in plate.tolist()} >= {PALETTE[0], (26, 26, 26)}
    assert font(14).size == 14


@pytest.mark.parametrize("size", [(1, 1), (8, 6), (3, 900), (900, 3), (5000, 20)])
def test_pictures_of_any_shape_are_drawn_into(size):
    masks = np.ones((3, size[1], size[0]), dtype=bool)
    places = np.array([[0, 0, size[0], size[1]], [-5, -5, 1e30, np.inf], [np.nan, 2, 1, 1]])
    drawn = draw_boxes(Image.new("RGB", size), places, ["a", "b" * 999, "c"], masks=masks)
    assert max(drawn.size) >= 640


def test_many_boxes_and_none():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 400, (100, 2))
    places = np.concatenate([corners, corners + rng.uniform(1, 200, (100, 2))], axis=1)
    assert draw_boxes(Image.new("P", (640, 480)), places, ["x"] * 100).mode == "RGB"
    nothing = draw_boxes(Image.new("RGB", (640, 480), GREY), np.zeros((0, 4)), [])
    assert set(nothing.getdata()) == {GREY}


def test_numbers_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="1 boxes, 2 labels"):
        draw_boxes(Image.new("RGB", (9, 9)), np.zeros((1, 4)), ["a", "b"])
