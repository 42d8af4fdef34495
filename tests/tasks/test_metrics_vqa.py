"""The official VQA accuracy: goldens, the normalisation step by step, leave-one-out by whole records."""

from __future__ import annotations

import json

import numpy as np
import pytest
from goldens import COMMITTED, metrics_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from beit3_bench.errors import BenchError
from beit3_bench.tasks.metrics.vqa import (
    answer_vocabulary,
    clean_answer,
    estimate_vqa,
    normalize_answer,
    normalize_multiple_choice,
    soft_score,
    vqa_accuracies,
    vqa_accuracy,
    vqa_metrics,
    vqa_table,
)
from beit3_bench.tasks.vqav2 import score_answers

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
PIECES = [*MARKS, ".", "'", " ", "\t", "\n", "\u00a0", "a", "the", "An", "one", "Ten", "none", "dont", "couldntve"]
PIECES += ["somebody'd", "3", "1,0", "2.5", "٣", "x", "İ", "..."]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def golden(part):
    folder = metrics_golden("vqa")
    expected = json.loads((folder / "expected.json").read_text())[part]
    annotations = json.loads((folder / part / "annotations.json").read_text())["annotations"]
    results = {r["question_id"]: r["answer"] for r in json.loads((folder / part / "results.json").read_text())}
    return expected, annotations, [results[a["question_id"]] for a in annotations]


@pytest.mark.parametrize("part", ["real", "edge"])
def test_accuracies_equal_the_official_script(part):
    expected, annotations, predictions = golden(part)
    accuracies = vqa_accuracies(predictions, [a["answers"] for a in annotations])
    for annotation, value in zip(annotations, accuracies, strict=True):
        assert 100 * value == pytest.approx(expected["per_question"][str(annotation["question_id"])], abs=1e-9)
    values = vqa_metrics(accuracies, [a["answer_type"] for a in annotations], [a["question_type"] for a in annotations])
    official = expected["full_precision"]
    wanted = {"vqa_accuracy": official["overall"]}
    wanted |= {f"vqa_accuracy/{k}": v for k, v in official["perAnswerType"].items()}
    wanted |= {f"vqa_accuracy/question_type/{k}": v for k, v in official["perQuestionType"].items()}
    assert values == pytest.approx(wanted, abs=1e-9)


def test_vocabulary_normalisation_equals_the_official_word_normaliser():
    data = json.loads((COMMITTED / "beit3" / "data_side.json").read_text())
    assert {word: normalize_multiple_choice(word) for word in data["normalize_word"]} == data["normalize_word"]
    assert {k: soft_score(int(k)) for k in data["vqa_score_of_count"]} == data["vqa_score_of_count"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog", "dog"),
        ("the two dogs", "2 dogs"),
        ("none", "0"),
        ("t-shirt", "t shirt"),
        ("t -shirt", "t shirt"),
        ("red-white -blue", "redwhite blue"),
        ("1,000 (or-so)", "1000 orso"),
        ("a,b", "b"),
        ("10:30 a.m.", "10:30 am"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("x." * 40, "x" * 32 + "x." * 8),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),
        ("lets", "lets"),
        ("black & white", "black & white"),
        ("the", ""),
    ],
)
def test_known_answers_are_normalised_as_the_official_rules_say(text, expected):
    assert normalize_answer(text) == expected


def step_by_step(text):
    """The rules in words, one mark after the other, on strings only."""
    digits_around_comma = any(
        c == "," and 0 < i < len(text) - 1 and text[i - 1].isdecimal() and text[i + 1].isdecimal()
        for i, c in enumerate(text)
    )
    out = text
    for mark in MARKS:
        beside_space = mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if beside_space or digits_around_comma else " ")
    kept, deleted = [], 0
    for i, c in enumerate(out):
        if c == "." and deleted < 32 and not out[i + 1 : i + 2].isdecimal():
            deleted += 1
        else:
            kept.append(c)
    numbers = {"none": "0", "one": "1", "ten": "10"}
    contractions = {"dont": "don't", "somebody'd": "somebodyd"}
    words = [numbers.get(w, w) for w in "".join(kept).lower().split()]
    return " ".join(contractions.get(w, w) for w in words if w not in ("a", "an", "the"))


@given(st.lists(st.sampled_from([p for p in PIECES if p != "couldntve"]), max_size=14).map("".join))
@settings(max_examples=400, deadline=None)
def test_normalisation_equals_the_rules_step_by_step(text):
    assert normalize_answer(text) == step_by_step(text)


@pytest.mark.parametrize(("matches", "percent"), enumerate([0, 30, 60, 90, 100, 100, 100, 100, 100, 100]))
def test_one_two_three_matches_score_30_60_90(matches, percent):
    answers = ["cat"] * matches + [f"other{i}" for i in range(10 - matches)]
    assert 100 * vqa_accuracy("cat", answers) == pytest.approx(percent, abs=1e-12)


def test_unanimous_answers_are_compared_without_normalisation():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0
    assert vqa_accuracy(" yes\n", ["yes\t"] * 10) == 1
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1


def by_records(prediction, answers):
    """Leave-one-out in the plainest form: drop all records equal to the left-out one, count matches, cap at 3."""
    texts = [clean_answer(a["answer"]) for a in answers]
    plain = clean_answer(prediction)
    if len(set(texts)) > 1:
        texts, plain = [normalize_answer(t) for t in texts], normalize_answer(plain)
    records = [dict(a, answer=t) for a, t in zip(answers, texts, strict=True)]
    parts = [min(1, sum(o["answer"] == plain for o in records if o != r) / 3) for r in records]
    return sum(parts) / len(parts)


RECORDS = st.lists(
    st.fixed_dictionaries(
        {"answer": st.sampled_from(["yes", "Yes", "the yes", "no", "2", "two"]), "answer_id": st.integers(1, 6)},
        optional={"answer_confidence": st.sampled_from(["yes", "maybe"])},
    ),
    min_size=1,
    max_size=12,
)


@given(st.sampled_from(["yes", "two", "a yes.", ""]), RECORDS)
@settings(max_examples=300, deadline=None)
def test_leave_one_out_compares_whole_records_even_when_ids_repeat(prediction, answers):
    assert vqa_accuracy(prediction, answers) == pytest.approx(by_records(prediction, answers), abs=1e-12)


@given(TEXTS, st.lists(TEXTS, min_size=10, max_size=10), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_accuracy_does_not_depend_on_the_order_of_answers(prediction, answers, random):
    shuffled = list(answers)
    random.shuffle(shuffled)
    assert vqa_accuracy(prediction, shuffled) == vqa_accuracy(prediction, answers)


def test_scoring_leaves_the_annotation_records_alone():
    answers = [{"answer": f"The {i % 2}.", "answer_id": i} for i in range(10)]
    before = json.dumps(answers)
    vqa_accuracy("0", answers)
    assert json.dumps(answers) == before


def test_strange_answer_ids_tell_no_records_apart():
    strange = [{"answer": "yes", "answer_id": {"n": i}} for i in range(10)]
    assert vqa_accuracy("yes", strange) == vqa_accuracy("yes", [{"answer": "yes", "answer_id": i} for i in range(10)])
    twice = [{"answer": "yes", "answer_id": [1]}] * 2 + [{"answer": "no", "answer_id": 2}] * 8
    assert vqa_accuracy("yes", twice) == pytest.approx(
        vqa_accuracy("yes", [a | {"answer_id": 1} for a in twice[:2]] + twice[2:])
    )


def test_metrics_are_recovered_from_the_cluster_table_of_resamples():
    random = np.random.default_rng(0)
    accuracies = random.integers(0, 11, 60) / 10
    kinds = [["yes/no", "number", "other"][i] for i in random.integers(0, 3, 60)]
    questions = [["is", "how many"][i] for i in random.integers(0, 2, 60)]
    clusters = [str(i) for i in random.integers(0, 20, 60)]
    table = vqa_table(accuracies, kinds, questions, clusters)
    weights = random.multinomial(len(table.ids), np.full(len(table.ids), 1 / len(table.ids)), size=4).astype(float)
    resampled = estimate_vqa(table.sums(weights))
    share = dict(zip(table.ids, weights[3], strict=True))
    per_question = np.array([share[c] for c in clusters])
    number = np.array(kinds) == "number"
    assert resampled["vqa_accuracy"][3] == pytest.approx(100 * np.average(accuracies, weights=per_question))
    assert resampled["vqa_accuracy/number"][3] == pytest.approx(
        100 * np.average(accuracies[number], weights=per_question[number])
    )
    assert estimate_vqa(table.sums())["vqa_accuracy/question_type/is"] == pytest.approx(
        100 * accuracies[np.array(questions) == "is"].mean()
    )


def test_a_question_type_called_like_an_answer_type_keeps_its_own_name():
    values = vqa_metrics(np.array([1.0, 0.0]), ["other", "number"], ["number", "other"])
    assert values["vqa_accuracy/other"] == 100
    assert values["vqa_accuracy/question_type/other"] == 0


def test_vocabulary_keeps_the_order_of_first_appearance_and_the_threshold():
    answers = ["rare"] + ["the Dog"] * 4 + ["cat"] * 9 + ["dog."] * 5 + ["1,5"] * 8
    assert answer_vocabulary(answers) == ["dog", "cat"]
    assert answer_vocabulary(answers, at_least=8) == ["dog", "cat", "15"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vqa_accuracy("yes", []), "without human answers"),
        (lambda: vqa_accuracy(3, ["yes"]), "prediction 3"),
        (lambda: vqa_accuracy("yes", [{"answer_id": 1}]), "answer"),
        (lambda: vqa_accuracies(["yes"], [["yes"], ["no"]]), "1 predictions for 2 questions"),
        (lambda: vqa_accuracies([], []), "0 questions"),
        (lambda: score_answers([], [], []), "0 questions"),
        (lambda: vqa_accuracies(["yes"], [[]]), "without human answers"),
        (lambda: vqa_accuracies(["yes"] * 3, [[], ["yes"], []]), "without human answers"),
        (lambda: soft_score(-1), "-1 times"),
        (lambda: vqa_metrics(np.zeros(2), ["other"], ["is", "is"]), "1 answer types"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(BenchError, match=message):
        call()
