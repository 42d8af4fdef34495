"""Files of VQA v2: questions, annotations and lists of answers, checked as they are read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.garbage import collection_paused
from beit3_bench.tasks.files import field, read_json, read_json_lines, read_text, read_utf8, unique, whole_number
from beit3_bench.tasks.quick_json import NotQuickError

ANNOTATIONS, QUESTIONS = "VQA annotations", "VQA questions"
VOCABULARY_FORM = (
    'one {"answer": "yes", "label": 0} a line, as in the official answer2label.txt, or a JSON list of answers'
)


@dataclass(frozen=True)
class Question:
    """One record of a questions file."""

    id: int
    image_id: int
    text: str


def read_questions(path: Path) -> list[Question]:
    """Questions of an official ``v2_OpenEnded_*_questions.json``, in the file's order."""
    with suppress(NotQuickError, ImportError), collection_paused():
        from beit3_bench.tasks import quick_vqa

        return [Question(*record) for record in quick_vqa.questions(read_utf8(path, QUESTIONS))]
    content = read_json(path, QUESTIONS)
    records = field(content, "questions", list, str(path))
    return questions_of([(f"{path}: questions[{n}]", record) for n, record in enumerate(records)], path)


def questions_of(records: Sequence[tuple[str, Any]], path: Path) -> list[Question]:
    """Questions of records; each with what it is called in messages."""
    questions = [
        Question(
            whole_number(record, "question_id", source),
            whole_number(record, "image_id", source),
            field(record, "question", str, source),
        )
        for source, record in records
    ]
    if not questions:
        raise BenchError(f"{path}: holds no questions; mend the file, or get it again")
    unique((q.id for q in questions), str(path), "question id")
    return questions


def read_annotations(path: Path) -> dict[int, dict[str, Any]]:
    """Annotations of an official ``v2_mscoco_*_annotations.json`` by question id, in the file's order.

    Raises:
        BenchError: missing keys, a question id twice, or the annotations of VQA v1.
    """
    with suppress(NotQuickError, ImportError), collection_paused():
        from beit3_bench.tasks import quick_vqa

        return quick_vqa.annotations_by_question(read_utf8(path, ANNOTATIONS))
    return annotations_of(read_json(path, ANNOTATIONS), path)


def read_usual_answers(path: Path) -> list[str]:
    """The usual answer to each question of an annotations file, which is checked as by `read_annotations`, and not kept."""
    with suppress(NotQuickError, ImportError), collection_paused():
        from beit3_bench.tasks import quick_vqa

        return quick_vqa.usual_answers(read_utf8(path, ANNOTATIONS))
    return [record["multiple_choice_answer"] for record in annotations_of(read_json(path, ANNOTATIONS), path).values()]


def annotations_of(content: Any, path: Path) -> dict[int, dict[str, Any]]:
    """As `read_annotations`, of the content of a file."""
    annotations: dict[int, dict[str, Any]] = {}
    records = field(content, "annotations", list, str(path))
    for n, record in enumerate(records):
        source = f"{path}: annotations[{n}]"
        question = whole_number(record, "question_id", source)
        if not _is_usual(record):
            _check_annotation(record, source)
        record["question_id"], record["image_id"] = question, whole_number(record, "image_id", source)
        if question in annotations:
            raise BenchError(f"{source}: question id {question} is listed twice; remove the duplicate")
        annotations[question] = record
    if not annotations:
        raise BenchError(f"{path}: holds no annotations; mend the file, or get it again")
    if all(q // 10 == a["image_id"] and q // 1000 != a["image_id"] for q, a in annotations.items()):
        raise BenchError(f"{path}: question ids are those of VQA v1; give the v2 file (v2_mscoco_*_annotations.json)")
    return annotations


def _is_usual(record: dict[str, Any]) -> bool:
    """Whether a quick look finds nothing that `_check_annotation` could: it is asked of all, and of millions of answers."""
    try:
        answers = record["answers"]
        texts = [record["question_type"], record["answer_type"], record["multiple_choice_answer"]]
        return type(answers) is list and bool(answers) and "".join(texts + [a["answer"] for a in answers]).isascii()
    except (KeyError, TypeError):
        return False


def _check_annotation(record: dict[str, Any], source: str) -> None:
    for key, kind in (
        ("answers", list),
        ("question_type", str),
        ("answer_type", str),
        ("multiple_choice_answer", str),
    ):
        field(record, key, kind, source)
    if not record["answers"]:
        raise BenchError(f"{source}: 'answers' is empty; every question has ten human answers")
    for k, answer in enumerate(record["answers"]):
        field(answer, "answer", str, f"{source}.answers[{k}]")


def read_answer_vocabulary(path: Path) -> list[str]:
    """The official ``answer2label.txt``, one ``{"answer": ..., "label": n}`` per line, labels 0, 1, 2, ...; or ALBEF's and BLIP's
    ``answer_list.json``, a JSON list of answers.
    """
    listed = read_text(path, "answer vocabulary", VOCABULARY_FORM).lstrip().startswith("[")
    answers: list[str] = _answer_list(path) if listed else []
    for number, record in () if listed else read_json_lines(path, "answer vocabulary", VOCABULARY_FORM):
        source = f"{path}:{number}"
        if whole_number(record, "label", source) != len(answers):
            raise BenchError(
                f"{source}: label {record['label']} instead of {len(answers)}; labels count up from 0, in order"
            )
        answers.append(field(record, "answer", str, source))
    if not answers:
        raise BenchError(f"{path}: holds no answers; give the official answer2label.txt")
    unique(answers, str(path), "answer")
    return answers


def _answer_list(path: Path) -> list[str]:
    answers = read_json(path, "answer vocabulary")
    for number, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise BenchError(f"{path}: [{number}] is a {type(answer).__name__}; a list of answers holds texts alone")
    return answers
