"""Dataclasses from JSON, TOML and the command line: every type, and a line for everything that does not fit."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.plain import fill


@dataclass(frozen=True)
class Box:
    width: int
    colour: str = "red"


@dataclass(frozen=True)
class Everything:
    switch: bool = False
    count: int = 0
    share: float = 0.0
    word: str = ""
    place: Path | None = None
    maybe: int | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    sides: tuple[int, ...] = ()
    names: list[str] = field(default_factory=list)
    mode: Literal["slide", "whole"] = "whole"
    box: Box | None = None
    boxes: list[Box] = field(default_factory=list)
    labels: Mapping[str, str] = field(default_factory=dict)
    arch: str | Mapping[str, Any] = "base"
    anything: Any = None


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        *[("switch", text, True) for text in (True, "true", "YES", "1")],
        *[("switch", text, False) for text in (False, "False", "no", "0")],
        *[("count", value, 10) for value in (10, 10.0, "10", "1e1", " 10 ")],
        ("count", str(2**63 + 1), 2**63 + 1),
        *[("share", value, 0.5) for value in (0.5, "0.5", "5e-1")],
        ("share", 1, 1.0),
        ("word", "1", "1"),
        ("place", "a/b", Path("a/b")),
        ("place", None, None),
        ("maybe", None, None),
        ("maybe", "3", 3),
        ("pair", "0.9, 0.98", (0.9, 0.98)),
        ("pair", [0, 1], (0.0, 1.0)),
        ("sides", "8,16,32", (8, 16, 32)),
        ("sides", [], ()),
        ("names", "a,b", ["a", "b"]),
        ("names", ("a",), ["a"]),
        ("mode", "slide", "slide"),
        ("box", {"width": 3}, Box(3)),
        ("boxes", [{"width": 3}, {"width": 4, "colour": "blue"}], [Box(3), Box(4, "blue")]),
        ("labels", {"a": "b"}, {"a": "b"}),
        ("arch", "large", "large"),
        ("arch", {"depth": 2}, {"depth": 2}),
        ("anything", [1, None], [1, None]),
    ],
)
def test_values_are_read_by_the_type_of_their_field(key: str, value: Any, read: Any) -> None:
    got = getattr(fill(Everything, {key: value}, "x"), key)
    assert got == read
    assert type(got) is type(read)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"switch": "perhaps"}, "x: switch: 'perhaps' is not a true or false"),
        ({"switch": 1}, "x: switch: 1 is not a true or false"),
        ({"count": "1.5"}, "x: count: '1.5' is not a whole number"),
        ({"count": 1.5}, "x: count: 1.5 is not a whole number"),
        ({"count": True}, "x: count: True is not a whole number"),
        ({"count": None}, "x: count: None is not a whole number"),
        ({"count": "inf"}, "x: count: 'inf' is not a whole number"),
        ({"count": "9" * 5000}, r"x: count: '9{76}\.\.\. is not a whole number"),
        ({"share": "nan"}, "x: share: 'nan' is not a number"),
        ({"share": 10**400}, r"x: share: 10+\.\.\. is not a number"),
        ({"share": 10**5000}, "x: share: a number of thousands of digits is not a number"),
        ({"share": False}, "x: share: False is not a number"),
        ({"word": 3}, "x: word: 3 is not a text"),
        ({"place": 3}, "x: place: 3 is not a path"),
        ({"maybe": "three"}, "x: maybe: 'three' is not a whole number"),
        ({"pair": "0.9"}, "x: pair: '0.9' is not a pair of numbers such as 0.9,0.98"),
        ({"pair": "0.9,x"}, "x: pair: 'x' is not a number"),
        ({"pair": {"a": 1}}, "x: pair: {'a': 1} is not a pair"),
        ({"sides": 3}, "x: sides: 3 is not a list of numbers"),
        ({"names": 3}, "x: names: 3 is not a list of values with commas between"),
        ({"mode": "crop"}, "x: mode: 'crop'; choose one of: slide, whole"),
        ({"box": 3}, "x: box: 3 is not a table"),
        ({"box": {}}, "x: box: width is missing"),
        ({"box": {"widht": 3}}, "x: box has no option 'widht'; did you mean 'width'"),
        ({"boxes": [{"width": "a"}]}, "x: boxes 1: width: 'a' is not a whole number"),
        ({"labels": {"a": 1}}, "x: labels: a: 1 is not a text"),
        ({"labels": "a"}, "x: labels: 'a' is not a table"),
        ({"arch": 3}, "x: arch: 3 is not a text"),
        ({"cuont": 3}, r"^x has no option 'cuont'; did you mean 'count'\?$"),
        ({"zzz": 3}, "^x has no option 'zzz'; known: switch, count, .*, anything$"),
        (3, "x: 3 is not a table of names and values"),
    ],
)
def test_what_does_not_fit_is_named_in_a_line(values: Any, message: str) -> None:
    with pytest.raises(BenchError, match=message) as caught:
        fill(Everything, values, "x")
    assert "\n" not in str(caught.value)


def test_a_key_may_be_written_with_dashes_and_is_named_as_given() -> None:
    @dataclass
    class Dashed:
        beam_size: int = 1

    assert fill(Dashed, {"beam-size": "3"}, "x").beam_size == 3
    with pytest.raises(BenchError, match=r"no option 'beam-siz'; did you mean 'beam_size'"):
        fill(Dashed, {"beam-siz": "3"}, "x")


def test_a_caller_has_words_of_its_own_for_an_unknown_key() -> None:
    with pytest.raises(BenchError, match=r"^a box has no side 'depth'; known: width, colour$"):
        fill(Box, {"depth": 1}, "a box", "{owner} has no side {key!r}; {known}")


def test_they_hold_for_the_tables_within_too() -> None:
    with pytest.raises(BenchError, match=r"^a box: box: no side 'depth'; known: width, colour$"):
        fill(Everything, {"box": {"depth": 1}}, "a box", "{owner}: no side {key!r}; {known}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"switch": "true"}, "x: switch: 'true' is not a true or false; write it without quotes"),
        ({"count": "10"}, "x: count: '10' is not a whole number; write it without quotes"),
        ({"share": "0.5"}, "x: share: '0.5' is not a number; write it without quotes"),
        ({"names": "a,b"}, "x: names: 'a,b' is not a list of values in brackets"),
        ({"pair": "0.9,0.98"}, "x: pair: '0.9,0.98' is not a pair of values in brackets"),
        ({"boxes": [{"width": 1}, {"width": "3"}]}, "x: boxes 2: width: '3' is not a whole number"),
    ],
)
def test_texts_stand_for_nothing_else_where_a_caller_says_so(values: Any, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        fill(Everything, values, "x", texts=False)
    assert fill(Everything, {"word": "a,b", "place": "a", "mode": "slide"}, "x", texts=False).word == "a,b"


def test_what_a_class_refuses_is_said_with_its_owner() -> None:
    @dataclass
    class Odd:
        number: int

        def __post_init__(self) -> None:
            if self.number % 2 == 0:
                raise ValueError(f"{self.number} is even; give an odd one")

    with pytest.raises(BenchError, match=r"^x: 2 is even; give an odd one$"):
        fill(Odd, {"number": 2}, "x")


def test_braces_in_a_key_stay_braces() -> None:
    with pytest.raises(BenchError, match=r"no option '\{owner\.__class__\}'"):
        fill(Box, {"{owner.__class__}": 1}, "x")


def test_a_whole_table_has_every_field() -> None:
    assert fill(Box, {"width": 1, "colour": "red"}, "x", whole=True) == Box(1)
    with pytest.raises(BenchError, match="x: colour is missing"):
        fill(Box, {"width": 1}, "x", whole=True)


def test_a_default_that_is_left_out_stays() -> None:
    assert fill(Everything, {}, "x") == Everything()


plain = st.builds(
    Everything,
    switch=st.booleans(),
    count=st.integers(),
    share=st.floats(allow_nan=False, allow_infinity=False),
    word=st.text(),
    place=st.none() | st.sampled_from([Path("a"), Path("/b/c.json")]),
    maybe=st.none() | st.integers(),
    pair=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2),
    sides=st.lists(st.integers()).map(tuple),
    names=st.lists(st.text()),
    mode=st.sampled_from(["slide", "whole"]),
    box=st.none() | st.builds(Box, width=st.integers(), colour=st.text()),
    boxes=st.lists(st.builds(Box, width=st.integers(), colour=st.text()), max_size=2),
    labels=st.dictionaries(st.text(), st.text(), max_size=2),
    arch=st.text() | st.dictionaries(st.text(), st.integers(), max_size=2),
    anything=st.none() | st.integers(),
)


@given(plain)
def test_whatever_is_written_as_json_comes_back(value: Everything) -> None:
    text = json.dumps(asdict(value), default=str)
    assert fill(Everything, json.loads(text), "x", whole=True) == value


def test_toml_is_read_as_json_is() -> None:
    table = tomllib.loads('switch = true\nsides = [1, 2]\n[box]\nwidth = 3\n[labels]\na = "b"\n')
    assert fill(Everything, table, "x") == Everything(True, sides=(1, 2), box=Box(3), labels={"a": "b"})
