"""Lines that fit, whatever the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.harness.pictures.lettering import LEAST, font, letter_size, shortened, width_of, wrapped
from beit3_bench.text import visible_lines


@given(st.text(max_size=200), st.integers(60, 400))
@settings(max_examples=60, deadline=None)
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    face = font(14)
    lines = wrapped(text, face, width)
    assert all(width_of(line, face) <= width or len(line) == 1 for line in lines)
    assert "".join("".join(lines).split()) == "".join(visible_lines(text).split())


@given(st.text(max_size=200), st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_a_shortened_line_fits(text, width):
    assert width_of(shortened(text, font(14), width), font(14)) <= width


def test_words_stay_whole_where_they_can():
    face = font(14)
    assert wrapped("a dog on the grass", face, width_of("the grass", face)) == ["a dog on", "the grass"]
    assert wrapped("one\ntwo", face, 500) == ["one", "two"]
    assert wrapped("", face, 500) == [""]


def test_what_is_left_out_is_shown():
    face = font(14)
    lines = wrapped("word " * 200_000, face, 200, most=3)
    assert len(lines) == 3
    assert lines[-1].endswith("\u2026")
    assert shortened("a name that is too long", face, 90).endswith("\u2026")
    assert shortened("short", face, 90) == "short"


def test_controls_are_written_out():
    assert shortened("a\x1b[2Jb\u202e", font(14), 900) == r"a\x1b[2Jb\u202e"


@pytest.mark.parametrize(("size", "letters"), [((64, 48), LEAST), ((640, 480), 14), ((920, 1600), 35)])
def test_letters_grow_with_the_picture(size, letters):
    assert letter_size(size) == letters
