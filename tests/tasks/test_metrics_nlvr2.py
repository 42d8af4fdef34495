"""NLVR2 accuracy and consistency."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from goldens import metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.nlvr2 import estimate_nlvr2, nlvr2_metrics, nlvr2_table, parse_label, sentence_key


def test_accuracy_and_consistency_equal_the_official_script():
    folder = metrics_golden("nlvr2")
    expected = json.loads((folder / "expected.json").read_text())
    examples = [json.loads(line) for line in (folder / "dev.json").read_text().splitlines()]
    with (folder / "predictions.csv").open() as file:
        predicted = {name: parse_label(label, "predictions.csv") for name, label in csv.reader(file)}
    right = [predicted[e["identifier"]] == parse_label(e["label"], "dev.json") for e in examples]
    values = nlvr2_metrics(right, [e["identifier"] for e in examples])
    assert values == pytest.approx({k: expected[k] for k in ("accuracy", "consistency")}, abs=1e-9)
    assert len(nlvr2_table(right, [e["identifier"] for e in examples]).ids) == expected["n_unique_sentences"]


def test_one_wrong_pair_breaks_its_sentence_only():
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-1-1-1", "dev-2-0-0", "test1-1-0-0"]
    values = nlvr2_metrics([True, False, True, True, True, False], names)
    assert values == pytest.approx({"accuracy": 4 / 6, "consistency": 2 / 4})


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2), st.booleans()), min_size=1))
@settings(max_examples=60, deadline=None)
def test_consistency_equals_grouping_by_hand(rows):
    rows = list({row[:3]: row for row in rows}.values())
    groups: dict = {}
    for group, _, sentence, right in rows:
        groups.setdefault((group, sentence), []).append(right)
    values = nlvr2_metrics([r[3] for r in rows], [f"dev-{g}-{p}-{s}" for g, p, s, _ in rows])
    assert values["consistency"] == pytest.approx(np.mean([all(g) for g in groups.values()]))
    assert values["accuracy"] == pytest.approx(np.mean([r[3] for r in rows]))


def test_resampling_a_sentence_takes_all_its_pairs():
    table = nlvr2_table([True, False, True], ["dev-1-0-0", "dev-1-1-0", "dev-2-0-0"])
    resampled = estimate_nlvr2(table.sums(np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])))
    assert resampled["accuracy"].tolist() == pytest.approx([0.5, 1.0, 2 / 3])
    assert resampled["consistency"].tolist() == [0.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), ("True", True), ("FALSE", False), (" false ", False), (False, False)]
)
def test_labels_come_as_strings_and_booleans(value, expected):
    assert parse_label(value, "here") is expected


@pytest.mark.parametrize("value", ["yes", 1, None, "", "Truee"])
def test_other_labels_are_refused_with_their_place(value):
    with pytest.raises(BenchError, match="line 7"):
        parse_label(value, "predictions.csv: line 7")


def test_the_pair_number_is_blanked():
    assert sentence_key("test1-880-2-1") == sentence_key("test1-880-0-1") == "test1-880--1"


@pytest.mark.parametrize(
    ("right", "names", "message"),
    [
        ([True], ["dev-1-0"], "dev-1-0"),
        ([True, True], ["dev-1-0-0", "dev-1-0-0"], "twice"),
        ([True], ["dev-1-0-0", "dev-1-1-0"], "1 outcomes for 2"),
        ([], [], "0 identifiers"),
    ],
)
def test_bad_input_is_named(right, names, message):
    with pytest.raises(BenchError, match=message):
        nlvr2_table(right, names)
