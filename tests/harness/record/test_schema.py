"""What a file of ours says is held against the type that describes it."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
import pytest
from leaderboard_cases import result

from beit3_bench.errors import BenchError
from beit3_bench.harness.record.schema import Card, MetricValue, Result
from beit3_bench.harness.record.shapes import check_shape


class Inner(TypedDict):
    count: int
    word: NotRequired[str | None]


class Outer(TypedDict):
    share: float
    mode: Literal["slide", "whole", "both"]
    inner: Inner | None
    by_name: dict[str, Inner]
    bounds: list[float] | None
    anything: Any


WHOLE = {
    "share": 1,
    "mode": "whole",
    "inner": {"count": 3, "word": None},
    "by_name": {"a": {"count": 1, "word": "b"}, "c": {"count": 2}},
    "bounds": [0, 1.5],
    "anything": object(),
    "of a later version": 3,
}


@pytest.mark.parametrize("change", [{}, {"inner": None}, {"bounds": None}, {"by_name": {}}, {"mode": "slide"}])
def test_what_was_written_passes(change: dict) -> None:
    check_shape({**WHOLE, **change}, Outer, "f.json", "run again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": "1"}, r"f\.json: key 'share' holds '1' of another kind than expected \(number\); run again"),
        ({"share": True}, r"key 'share' holds 'True' of another kind than expected \(number\)"),
        ({"share": float("nan")}, r"f\.json: share is not a finite number"),
        ({"share": 10**400}, r"f\.json: share is not a finite number"),
        ({"mode": "crop"}, r"f\.json: mode 'crop' is none of slide, whole, both; run again"),
        ({"mode": ["slide"]}, r"""f\.json: mode "\['slide'\]" is none of"""),
        ({"inner": 3}, r"key 'inner' holds '3' of another kind than expected \(dict or null\)"),
        ({"inner": {}}, r"f\.json: inner: key 'count' is missing"),
        ({"inner": {"count": 1.0}}, r"f\.json: inner: key 'count' holds '1\.0' of another kind than expected \(int\)"),
        ({"inner": {"count": False}}, "key 'count' holds 'False'"),
        ({"inner": {"count": 1, "word": 2}}, r"key 'word' holds '2' of another kind than expected \(str or null\)"),
        ({"by_name": {"a": {"count": "1"}}}, r"f\.json: by_name\['a'\]: key 'count' holds '1'"),
        ({"bounds": [1, None]}, r"key 'bounds\[1\]' holds 'None' of another kind"),
        ({"bounds": {"a": 1}}, r"another kind than expected \(list or null\)"),
    ],
)
def test_what_does_not_fit_is_one_line_with_place_and_mend(change: dict, message: str) -> None:
    with pytest.raises(BenchError, match=message) as caught:
        check_shape({**WHOLE, **change}, Outer, "f.json", "run again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["share", "mode", "inner", "by_name", "bounds", "anything"])
def test_a_key_that_no_type_calls_optional_has_to_be_there(key: str) -> None:
    with pytest.raises(BenchError, match=f"key '{key}' is missing"):
        check_shape({name: value for name, value in WHOLE.items() if name != key}, Outer, "f.json", "run again")


def test_some_keys_of_a_row_are_checked_by_their_kinds() -> None:
    row = {"id": "a", "embedding": np.zeros(2), "top5": [1, 2]}
    check_shape(row, {"embedding": np.ndarray, "top5": list[int]}, "row a", "run again")
    with pytest.raises(BenchError, match=r"embedding.*another kind than expected \(ndarray\)"):
        check_shape({**row, "embedding": [0.0]}, {"embedding": np.ndarray}, "row a", "run again")
    with pytest.raises(BenchError, match="row a: key 'label' is missing"):
        check_shape(row, {"label": bool}, "row a", "run again")


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (np.float64(2.0), float | None, None),
        (np.float64("nan"), float | None, "w is not a finite number"),
        ((1, 2), list[int], r"w holds '\(1, 2\)' of another kind than expected \(list\)"),
        ([[1.0, "a"]], list[list[float]], r"w\[0\]\[1\] holds 'a' of another kind than expected \(number\)"),
        ({"a": {"b": [None]}}, dict[str, dict[str, list[str]]], r"w\['a'\]\['b'\]\[0\] holds 'None'"),
    ],
)
def test_values_that_no_parser_made_and_places_far_below_are_told_alike(
    value: Any, shape: Any, message: str | None
) -> None:
    if message is None:
        check_shape(value, shape, "w", "run again")
    else:
        with pytest.raises(BenchError, match=message):
            check_shape(value, shape, "w", "run again")


def test_every_key_of_a_result_but_what_later_versions_added_is_asked_for() -> None:
    written = result()
    check_shape(written, Result, "r", "run again")
    for key in written:
        with pytest.raises(BenchError, match=f"key '{key}' is missing"):
            check_shape({name: value for name, value in written.items() if name != key}, Result, "r", "run again")
    for key in written["model"]:
        model = {name: value for name, value in written["model"].items() if name != key}
        with pytest.raises(BenchError, match=f"r: model: key '{key}' is missing"):
            check_shape({**written, "model": model}, Result, "r", "run again")


@pytest.mark.parametrize("more", [{}, {"family": "openclip"}, {"family": "blip", "protocol": "re-ranked 256"}])
def test_a_model_may_say_its_family_and_how_it_was_asked(more: dict[str, str]) -> None:
    check_shape(result(model=more), Result, "r", "run again")
    for key in more:
        with pytest.raises(BenchError, match=f"r: model: key '{key}' holds '3' of another kind"):
            check_shape(result(model={**more, key: 3}), Result, "r", "run again")


def test_a_card_may_be_empty_and_a_metric_may_not() -> None:
    check_shape({}, Card, "config.json", "run again")
    for key in ("family", "source"):
        with pytest.raises(BenchError, match=f"key '{key}' holds .* of another kind"):
            check_shape({key: []}, Card, "config.json", "run again")
    with pytest.raises(BenchError, match="key 'value' is missing"):
        check_shape({}, MetricValue, "m", "run again")
