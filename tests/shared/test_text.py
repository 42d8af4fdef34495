"""Text of files and names, made safe to show."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_bench.text import is_visible_json, visible, visible_json, visible_lines, visible_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\nb\r\tc\x00\x7f", r"a\nb\r\tc\x00\x7f"),
        ("\x9b31m csi of one byte", r"\x9b31m csi of one byte"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("half \ud800 byte \udcff", r"half \ud800 byte \udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
    ],
)
def test_characters_that_control_or_hide_are_written_out(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize("text", ["beit3_base.pth", "größe 日本語 🦆", "क्\u200dष", "👩\u200d🚀", "a\\x1b"])
def test_ordinary_text_of_any_language_stays(text):
    assert visible(text) == visible_lines(text) == text


@given(st.text())
def test_any_text_becomes_one_printable_line_of_utf8(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert len(shown.splitlines()) <= 1
    assert all(character >= " " for character in shown)
    assert visible(shown) == shown


def test_lines_stay_lines():
    assert visible_lines("a\n\x1bb\r\n") == "a\n\\x1bb\\r\n"


@given(st.text())
def test_json_keeps_its_values(text):
    written = visible_json(json.dumps([text, {text: 1}], ensure_ascii=False))
    written.encode("utf-8")
    assert json.loads(written) == [text, {text: 1}]
    assert visible(written) == written


def test_nested_values_are_cleaned_with_their_keys():
    assert visible_values({"a\x07": ["\x1b", 1, None, {"b": "\n"}]}) == {r"a\x07": [r"\x1b", 1, None, {"b": r"\n"}]}


@given(
    st.text() | st.text('\\"/u0n\x1b\x7f'),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]),
    st.booleans(),
)
def test_json_that_is_visible_before_it_is_parsed_holds_visible_texts_alone(text, encoding, ascii):
    content = json.dumps({text: [text]}, ensure_ascii=ascii).encode(encoding, "surrogatepass")
    if is_visible_json(content):
        value = json.loads(content)
        assert visible_values(value) == value


def test_quotes_and_slashes_do_not_make_json_another_one():
    assert is_visible_json(json.dumps({"command": 'run -o "a b" C:\\d a/b'}, indent=1).encode())
    assert not is_visible_json(json.dumps(["\n"]).encode())
    assert not is_visible_json(json.dumps(["\u202e"]).encode())
