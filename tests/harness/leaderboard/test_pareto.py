"""Score against cost: which rows share a diagram, and which no other beats."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from leaderboard_cases import result

from beit3_bench.harness.leaderboard.board import TableRow
from beit3_bench.harness.leaderboard.pareto import Cost, Point, cost_of, params_of, pareto_front, tradeoffs


def row(score: float | None, params: str = "", cost: Cost | None = None) -> TableRow:
    return TableRow(cost is not None, "a", "b", params, "", "", "", score=score, cost=cost)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12), st.booleans(), st.booleans())
def test_the_front_is_what_no_other_point_beats(pairs: list[tuple[int, int]], low: bool, high: bool) -> None:
    points = [Point(row(0.0), cost, score) for cost, score in pairs]

    def beats(a: Point, b: Point) -> bool:
        cheap = (b.cost - a.cost) * (1 if low else -1)
        good = (a.score - b.score) * (1 if high else -1)
        return cheap >= 0 and good >= 0 and (cheap, good) != (0, 0)

    front = pareto_front(points, low, high)
    expected = [point for point in points if not any(beats(other, point) for other in points)]
    assert sorted((p.cost, p.score) for p in front) == sorted((p.cost, p.score) for p in expected)
    assert [p.cost for p in front] == sorted((p.cost for p in front), reverse=not low)


def test_speeds_of_different_devices_are_never_set_against_each_other() -> None:
    fast, slow = Cost({}, 900.0, "Card A, bf16"), Cost({}, 100.0, "Card B, bf16")
    rows = [row(80.0, cost=fast), row(70.0, cost=fast), row(90.0, cost=slow)]
    (plot,) = tradeoffs(rows, True)
    assert plot.cost == "samples per second on Card A, bf16"
    assert not plot.cheap_is_low
    assert [point.score for point in plot.points] == [80.0, 70.0]


def test_rows_without_a_score_or_that_cost_are_left_out() -> None:
    rows = [row(80.0, "222M"), row(70.0, ""), row(None, "1.9B"), row(60.0, "1.9B"), row(50.0, cost=Cost())]
    (plot,) = tradeoffs(rows, True)
    assert [(point.cost, point.score) for point in plot.points] == [(222e6, 80.0), (1.9e9, 60.0)]


def test_operations_are_set_against_each_other_by_kind_of_sample() -> None:
    rows = [row(80.0, cost=Cost({"image": 50.0, "text": 7.0})), row(70.0, cost=Cost({"image": 20.0, "pair": 90.0}))]
    assert [plot.cost for plot in tradeoffs(rows, True)] == ["GFLOP per image"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("222M", 222e6),
        ("1.9B", 1.9e9),
        ("86.66M", 86.66e6),
        ("", None),
        ("1.2.3M", None),
        (".M", None),
        ("0M", None),
        ("big", None),
    ],
)
def test_parameters_are_read_where_they_are_one_number(text: str, count: float | None) -> None:
    assert params_of(text) == count


def test_the_cost_of_a_result_names_the_device_that_it_was_measured_on() -> None:
    timing = {"samples_per_second": 12.5, "gflop_per_sample": {"pair": 3.0, "text": 0.0}}
    hardware = {"cpu": "Some CPU", "gpus": ["Card", "Card"]}
    made_with = {"hardware": hardware, "device": "cuda:1", "dtype": "fp16", "compile": True}
    content = result(timing=timing, provenance=made_with)
    assert cost_of(content) == Cost({"pair": 3.0}, 12.5, "2 x Card, fp16, compiled")  # type: ignore[arg-type]
    on_cpu = result(timing={"samples_per_second": 0.0}, provenance={"hardware": hardware, "device": "cpu"})
    assert cost_of(on_cpu) == Cost({}, None, "Some CPU")  # type: ignore[arg-type]
    assert cost_of(result()) == Cost()  # type: ignore[arg-type]
