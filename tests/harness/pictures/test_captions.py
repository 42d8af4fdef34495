"""Texts and bars under a picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from beit3_bench.harness.pictures.captions import asked, bars, captioned, said, with_bars
from beit3_bench.harness.pictures.colours import INK, PALETTE, QUIET

GREEN = (0, 200, 0)


def dark(sheet: np.ndarray) -> np.ndarray:
    """Where text is."""
    return (sheet < 200).all(axis=-1)


@pytest.mark.parametrize("size", [(640, 480), (75, 56), (4000, 3000), (20, 900)])
def test_the_text_stands_below_the_picture_and_fits_its_width(size):
    drawn = np.asarray(captioned(Image.new("RGB", size, GREEN), [asked("what is it?"), said("a dog " * 30)]))
    green = (drawn == GREEN).all(axis=-1)
    height = int(green.any(axis=1).sum())
    assert green[:height, drawn.shape[1] // 2].all()
    panel = dark(drawn[height:])
    assert panel.any()
    assert not panel[:, -1].any()
    assert not panel[:, 0].any()


def test_a_longer_text_makes_a_higher_sheet_up_to_a_bound():
    heights = [captioned(Image.new("RGB", (640, 480)), [said("word " * n)]).height for n in (1, 50, 500, 100_000)]
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_answer_and_question_differ():
    drawn = np.asarray(captioned(Image.new("RGB", (640, 480), GREEN), [asked("MMM"), said("MMM")]))[480:]
    assert (drawn == QUIET).all(axis=-1).any()
    assert (drawn == INK).all(axis=-1).any()


def test_bars_are_as_long_as_their_scores():
    sheet = np.asarray(bars(["cat", "dog", "none", "too much", "too little"], [1.0, 0.5, 0.0, 7.0, -3.0], 640))
    filled = (sheet == PALETTE[1]).all(axis=-1) | (sheet == QUIET).all(axis=-1)
    lengths = [int(filled[rows].any(axis=0).sum()) for rows in np.array_split(np.arange(len(sheet)), 5)]
    whole = lengths[0]
    assert whole > 400
    assert lengths == [whole, pytest.approx(whole / 2, abs=1), 0, whole, 0]


def test_the_first_bar_is_the_one_that_counts():
    sheet = np.asarray(bars(["cat", "dog"], [0.5, 0.5], 640))
    half = len(sheet) // 2
    assert (sheet[:half] == PALETTE[1]).all(axis=-1).any()
    assert not (sheet[half:] == PALETTE[1]).all(axis=-1).any()


def test_names_that_begin_alike_are_told_apart_in_lines_of_their_own():
    same = "a dog in the grass that looks at somebody who holds"
    pair = [bars([f"{same} {last}", "x"], [0.5, 0.2], 426) for last in ("a stick", "a ball")]
    assert pair[0].size == pair[1].size
    assert pair[0].height > bars(["dog", "x"], [0.5, 0.2], 426).height
    assert not np.array_equal(*map(np.asarray, pair))


def test_words_below_a_picture_are_as_large_as_words_in_it():
    heights = []
    for size in ((1200, 1600), (1600, 1200)):
        drawn = np.asarray(captioned(Image.new("RGB", size, GREEN), [asked("x")]))
        heights.append(int(dark(drawn[size[1] :]).any(axis=1).sum()))
    assert heights[0] == heights[1] > 10


def test_long_names_leave_room_for_the_bars():
    drawn = with_bars(Image.new("RGB", (300, 200)), ["n" * 500, "m"], [0.9, 0.1], [asked("top 2")])
    assert drawn.width == 640
    assert (np.asarray(drawn) == PALETTE[1]).all(axis=-1).any(axis=0).sum() > 200
