"""The tidy frame of the board: a line per number, in percent, under our names."""

from __future__ import annotations

import pytest
from leaderboard_cases import metric, result, retrieval_metrics

from beit3_bench.harness.leaderboard.frame import COLUMNS, lines_of, measured_numbers, numbers, published_numbers
from beit3_bench.harness.record.results import Run
from beit3_bench.results.published.values import PublishedValue, load_published


@pytest.fixture(scope="module")
def published() -> list[PublishedValue]:
    return load_published()


def test_measured_and_printed_numbers_share_columns_and_no_row(published: list[PublishedValue]) -> None:
    runs = [Run("a", result("flickr30k", "test", metrics=retrieval_metrics())), Run("b", result())]
    frame = numbers(runs, published)
    assert list(frame.columns) == COLUMNS
    assert frame.groupby("row")["measured"].nunique().max() == 1
    assert frame.groupby("row")["source"].nunique().max() == 1
    assert sorted(frame.loc[frame["measured"], "row"].unique()) == [0, 1]
    assert lines_of(frame)[0].source == "run a"


def test_fractions_become_percent_and_percent_stays(published: list[PublishedValue]) -> None:
    told = {
        "a": metric(0.85372, unit="fraction", ci95=[0.851, 0.857]),
        "b": metric(77.654, decimals=2, headline=False),
    }
    first, second = lines_of(measured_numbers([Run("r", result("my-task", "test", metrics=told))]))
    assert (first.metric, first.text, first.value) == ("a", "85.4", pytest.approx(85.372))
    assert (first.low, first.high) == (pytest.approx(85.1), pytest.approx(85.7))
    assert (second.metric, second.text, second.value) == ("b", "77.65", 77.654)
    assert second.low != second.low  # NaN


def test_runs_of_one_name_keep_their_own_numbers() -> None:
    runs = [Run("same", result(metrics={"vqa_accuracy": metric(value)})) for value in (70.0, 71.0)]
    assert [(line.row, line.value) for line in lines_of(measured_numbers(runs))] == [(0, 70.0), (1, 71.0)]


def test_a_value_that_two_tables_show_has_a_line_in_each(published: list[PublishedValue]) -> None:
    frame = published_numbers(published)
    top1 = frame.query("metric == 'top1' and regime == 'fine-tuned'")
    by_task = top1.groupby("task")["published_id"].agg(set)
    assert by_task["imagenet"] == by_task["imagenet-linear"]
    assert set(top1["row"][top1["task"] == "imagenet"]).isdisjoint(top1["row"][top1["task"] == "imagenet-linear"])


def test_without_any_number_the_frame_is_empty() -> None:
    assert numbers([], []).empty
    assert list(numbers([], []).columns) == COLUMNS
    assert lines_of(numbers([], [])) == []
