"""Annotations of VQA v2 as the official files have them, parsed a record at a time: half a gigabyte in seconds and little memory.

Whatever is otherwise than in those (other keys, an id as text, a question that comes twice) is left to `vqa_files`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from beit3_bench.tasks.quick_json import NotQuickError, parse, records


class _Answer(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    answer: str
    answer_confidence: str
    answer_id: int


class _Annotation(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    question_type: str
    multiple_choice_answer: str
    answers: list[_Answer]
    image_id: int
    answer_type: str
    question_id: int


class _WithRawAnswers(msgspec.Struct, forbid_unknown_fields=True):
    question_type: str
    multiple_choice_answer: str
    answers: list[msgspec.Raw]
    image_id: int
    answer_type: str
    question_id: int


class _Question(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    image_id: int
    question: str
    question_id: int


def questions(content: bytes) -> list[tuple[int, int, str]]:
    """Question id, image id and text of each, in the file's order.

    Raises:
        NotQuickError: see above.
    """
    given = [(r.question_id, r.image_id, r.question) for r in records(content, "questions", _Question)]
    if len({question for question, _, _ in given}) != len(given):
        raise NotQuickError
    return given


def usual_answers(content: bytes) -> list[str]:
    """``multiple_choice_answer`` of each question; all of the file is checked.

    Raises:
        NotQuickError: see above.
    """
    seen, given = _Seen(), []
    for record in records(content, "annotations", _Annotation):
        seen.add(record)
        given.append(record.multiple_choice_answer)
    seen.check()
    return given


def annotations_by_question(content: bytes) -> dict[int, dict[str, Any]]:
    """Records by question id, in the file's order. Equal answers (text, confidence, place among the ten) are one object: of two million,
    few differ.

    Raises:
        NotQuickError: see above.
    """
    seen = _Seen()
    known: dict[bytes, dict[str, Any]] = {}
    by_question: dict[int, dict[str, Any]] = {}
    for record in records(content, "annotations", _WithRawAnswers):
        seen.add(record)
        answers = []
        for raw in record.answers:
            text = bytes(raw)
            answer = known.get(text)
            if answer is None:
                answer = known[text] = _parsed(text)
            answers.append(answer)
        by_question[record.question_id] = {
            "question_type": record.question_type,
            "multiple_choice_answer": record.multiple_choice_answer,
            "answers": answers,
            "image_id": record.image_id,
            "answer_type": record.answer_type,
            "question_id": record.question_id,
        }
    seen.check()
    return by_question


def _parsed(text: bytes) -> dict[str, Any]:
    answer = parse(text)
    if type(answer) is not dict or type(answer.get("answer")) is not str:
        raise NotQuickError
    return answer


class _Seen:
    """Refuses what `vqa_files.annotations_of` would of the records of a file as a whole."""

    def __init__(self) -> None:
        self.questions: set[int] = set()
        self.records = 0
        self.first_version = True

    def add(self, record: _Annotation | _WithRawAnswers) -> None:
        if not record.answers:
            raise NotQuickError
        self.records += 1
        self.questions.add(record.question_id)
        if self.first_version:
            question, image = record.question_id, record.image_id
            self.first_version = question // 10 == image and question // 1000 != image

    def check(self) -> None:
        if self.first_version or len(self.questions) != self.records:
            raise NotQuickError
