"""The numbers of the board: a line per number, in percent, under our names."""

from __future__ import annotations

from operator import attrgetter

import pytest
from leaderboard_cases import metric, result, retrieval_metrics

from beit3_bench.harness.leaderboard.numbers import measured_numbers, numbers, published_numbers
from beit3_bench.harness.record.results import Run
from beit3_bench.results.published.values import PublishedValue, load_published


@pytest.fixture(scope="module")
def published() -> list[PublishedValue]:
    return load_published()


def test_measured_and_printed_numbers_share_no_row(published: list[PublishedValue]) -> None:
    runs = [Run("a", result("flickr30k", "test", metrics=retrieval_metrics())), Run("b", result())]
    lines = numbers(runs, published)
    assert len({line.row for line in lines}) == len({(line.row, line.measured, line.source) for line in lines})
    assert {line.row for line in lines if line.measured} == {0, 1}
    assert {line.row for line in lines} == set(range(max(line.row for line in lines) + 1))
    assert lines[0].source == "run a"


def test_fractions_become_percent_and_percent_stays(published: list[PublishedValue]) -> None:
    told = {
        "a": metric(0.85372, unit="fraction", ci95=[0.851, 0.857]),
        "b": metric(77.654, decimals=2, headline=False),
    }
    first, second = measured_numbers([Run("r", result("my-task", "test", metrics=told))])
    assert (first.metric, first.text, first.value) == ("a", "85.4", pytest.approx(85.372))
    assert (first.low, first.high) == (pytest.approx(85.1), pytest.approx(85.7))
    assert (second.metric, second.text, second.value) == ("b", "77.65", 77.654)
    assert second.low != second.low  # NaN


def test_runs_of_one_name_keep_their_own_numbers() -> None:
    runs = [Run("same", result(metrics={"vqa_accuracy": metric(value)})) for value in (70.0, 71.0)]
    assert [(line.row, line.value) for line in measured_numbers(runs)] == [(0, 70.0), (1, 71.0)]


def test_a_value_that_two_tables_show_has_a_line_in_each(published: list[PublishedValue]) -> None:
    lines = [n for n in published_numbers(published) if (n.metric, n.regime) == ("top1", "fine-tuned")]
    by_task = {task: [n for n in lines if n.task == task] for task in ("imagenet", "imagenet-linear")}
    ids, rows = (
        [{vars_(n) for n in own} for own in by_task.values()]
        for vars_ in (attrgetter("published_id"), attrgetter("row"))
    )
    assert ids[0] == ids[1] != set()
    assert rows[0].isdisjoint(rows[1])


def test_without_any_number_there_is_no_line() -> None:
    assert numbers([], []) == []
