"""Annotations of VQA v2: the same from msgspec, from an unusual file, and from the standard library."""

from __future__ import annotations

import copy
import json

import pytest

from beit3_bench.errors import BenchError
from beit3_bench.tasks import quick_json
from beit3_bench.tasks.vqa_files import read_annotations, read_usual_answers

USUAL = [
    {
        "question_type": "what time",
        "multiple_choice_answer": "10:30",
        "answers": [
            {"answer": ("10:30", "noon", "é")[n % 3], "answer_confidence": "yes", "answer_id": n + 1} for n in range(10)
        ],
        "image_id": 7 + n // 2,
        "answer_type": "other",
        "question_id": (7 + n // 2) * 1000 + n % 2,
    }
    for n in range(6)
]


def changed(change):
    records = copy.deepcopy(USUAL)
    change(records)
    return records


def rename(records):
    for record in records:
        record["question_id"] = record["image_id"] * 10 + record["question_id"] % 1000


CASES = {
    "usual": USUAL,
    "ids as text": changed(lambda r: r[1].update(question_id="7001")),
    "ids as floats": changed(lambda r: r[1].update(image_id=7.0)),
    "another key": changed(lambda r: r[1].update(split="val")),
    "an answer without confidence": changed(lambda r: r[1]["answers"][3].pop("answer_confidence")),
    "an answer id that is a float": changed(lambda r: r[1]["answers"][3].update(answer_id=4.0)),
    "an answer that is no text": changed(lambda r: r[1]["answers"][3].update(answer=["net"])),
    "an answer that is a text": changed(lambda r: r[1]["answers"].append("net")),
    "no answers": changed(lambda r: r[1]["answers"].clear()),
    "half a character": changed(lambda r: r[1]["answers"][3].update(answer="\ud800")),
    "a question twice": changed(lambda r: r.append(copy.deepcopy(r[0]))),
    "the first version": changed(rename),
    "no type": changed(lambda r: r[1].pop("answer_type")),
    "a type that is no text": changed(lambda r: r[1].update(answer_type=3)),
    "no record": changed(lambda r: r.append(None)),
    "no records": [],
}
HEAD = {"info": {"year": 2014, "url": "http://visualqa.org"}, "data_type": "mscoco", "license": {"name": "x"}}


def outcome(read, path):
    try:
        return json.dumps(read(path))
    except BenchError as error:
        return str(error)


def same_without(monkeypatch, read, path):
    """What a reader gives, or says, with msgspec and without."""
    quick = outcome(read, path)
    monkeypatch.setattr(quick_json, "msgspec", None)
    assert outcome(read, path) == quick
    return quick


@pytest.mark.parametrize("read", [read_annotations, read_usual_answers])
@pytest.mark.parametrize("case", CASES)
def test_a_file_says_the_same_with_msgspec_and_without(tmp_path, monkeypatch, case, read):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(HEAD | {"annotations": CASES[case]}))
    said = same_without(monkeypatch, read, path)
    if case == "usual":
        expected = {r["question_id"]: r for r in USUAL} if read is read_annotations else ["10:30"] * len(USUAL)
        assert said == json.dumps(expected)


@pytest.mark.parametrize("read", [read_annotations, read_usual_answers])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"answer_id": 4', '"answer_id": 4, "answer_id": 4'),
        ('"answer_type": "other"', '"answer_type": "other", "answer_type": "other"'),
        ('"answer_type": "other"', '"answer_type": "oth\\u003aer", "answer_type": "other"'),
        ('"year": 2014', '"year": 2014, "year": 2015'),
        ('"data_type"', '"license": 1, "data_type"'),
    ],
)
def test_a_key_that_comes_twice_is_named_wherever_it_stands(tmp_path, monkeypatch, old, new, read):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(HEAD | {"annotations": USUAL}).replace(old, new, 1))
    assert "comes twice in one object" in same_without(monkeypatch, read, path)


def test_equal_answers_are_one_object(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(HEAD | {"annotations": USUAL}))
    answers = [answer for record in read_annotations(path).values() for answer in record["answers"]]
    assert len(answers) == 60
    assert len({id(answer) for answer in answers}) == 10
