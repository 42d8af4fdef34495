"""JSON by msgspec: the values, the refusals and the texts of the standard library."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks import quick_json
from beit3_bench.tasks.files import read_json
from beit3_bench.tasks.quick_json import NotQuickError, canonical, parse, parse_line

KEYS = st.text(alphabet=':a"\\é\x00', max_size=3)
PLAIN = st.none() | st.booleans() | st.integers() | st.text() | st.text(alphabet=':\\"/\x7f\x1fé😀')
VALUES = st.recursive(
    PLAIN | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(), inner, max_size=4),
    max_leaves=20,
)
ODD = [
    "1e400",
    "-0",
    "-0.0",
    "18446744073709551616",
    "9" * 4000,
    "9" * 5000,
    "2.2250738585072011e-308",
    "NaN",
    "-Infinity",
    '"\\ud800"',
    '"\\ud83d\\ude00"',
    '{"a": 1, "a": 2}',
    '{"a": 1, "\\u0061": 2}',
    '[{"x": {"a": 1, "a": 1}}]',
    '{"a": "b\\u003a", "c": 1, "c": 2}',
    '{"a\\u003A": 1}',
    '{"a:": ":", "b": ["::"]}',
    '{"a": [{"b": 1, "b": 2}]}',
    '{"a": [{"b": 1}, 2, null, []]}',
    '{"a": {"b": 1}}',
    '{"a": [1], "a": [2]}',
    "[1,]",
    "01",
    "1 2",
    "\r\n [1]\r\n",
    "\u00a01",
    '"\t"',
    "",
    '"a',
    "[" * 2000 + "]" * 2000,
]


def exact(value):
    """A value with the types of its numbers, and the order of its keys."""
    return json.dumps(value)


def outcome(path, each=None):
    try:
        return exact(read_json(path, "test", each=each))
    except BenchError as error:
        return str(error)


@given(VALUES)
def test_values_are_those_of_the_standard_library(value):
    text = json.dumps(value)
    assert exact(parse_line(text.encode())) == text or "\\u" in text
    assert exact(json.loads(text)) == text
    try:
        assert exact(parse(text.encode())) == text
    except NotQuickError:
        assert "\\u" in text  # half a character, or a colon as few would write it


@pytest.mark.parametrize("each", [None, {"a": lambda record: record}], ids=["whole", "record by record"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("text", ODD, ids=lambda t: t[:20])
def test_a_file_says_the_same_with_msgspec_and_without(tmp_path, monkeypatch, text, mark, each):
    path = tmp_path / "x.json"
    path.write_bytes(mark + text.encode())
    quick = outcome(path, each)
    monkeypatch.setattr(quick_json, "msgspec", None)
    assert outcome(path, each) == quick


@pytest.mark.parametrize("text", [b'"\xff"', b'"\xed\xa0\x80"', b'{"a": ["\xc0\xaf"]}', b'{"\xff": 1}'])
def test_what_is_not_utf_8_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    for each in (None, {"a": lambda record: record}):
        with pytest.raises(BenchError, match="not UTF-8 text"):
            read_json(path, "test", each=each)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '{"a": "\\u003a", "b": 1, "b": 1}', '[{"a": {"b": 1, "b": 1}}]'])
def test_a_key_that_comes_twice_is_not_parsed_quickly(text):
    with pytest.raises(NotQuickError):
        parse(text.encode())


def test_records_are_made_one_by_one_and_the_rest_stays(monkeypatch, tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"info": {"year": 2014}, "a": [{"n": 1}, {"n": 2}], "b": [3], "c": 4}')
    expected = {"info": {"year": 2014}, "a": [1, 2], "b": [3], "c": 4}
    each = {"a": lambda record: record["n"], "absent": None}
    assert exact(read_json(path, "test", each=each)) == exact(expected)
    monkeypatch.setattr(quick_json, "msgspec", None)
    assert exact(read_json(path, "test", each=each)) == exact(expected)


@given(VALUES | st.dictionaries(st.integers() | st.text(), VALUES))
def test_a_canonical_text_is_that_of_the_standard_library_or_none(value):
    try:
        expected = json.dumps(value, sort_keys=True, separators=(",", ":"))
    except TypeError:  # keys that do not compare
        expected = None
    assert canonical(value) in (expected, None)


@pytest.mark.parametrize("value", [float("nan"), 1e16, b"a", {1}, {"a": 1.5}, {1: 2}, "é", "\x7f", "\ud800", object()])
def test_what_msgspec_would_write_otherwise_is_not_written(value):
    assert canonical(value) is None
    assert canonical({"a": [{"b": [value]}]}) is None


def test_usual_values_are_written_and_loops_end():
    assert canonical({"b": [1, (True, None)], "a": {"d": 10**30, "c": "\n"}}) == (
        '{"a":{"c":"\\n","d":1000000000000000000000000000000},"b":[1,[true,null]]}'
    )
    loop: list = []
    loop.append(loop)
    assert canonical(loop) is None
