"""VQA v2 val: 214,354 questions about 40,504 images, and the annotations of train, which the answer vocabulary needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.files import write_json
from beit3_bench.tasks.madeup import MadeUp, batches, touch
from beit3_bench.tasks.madeup.texts import Texts
from beit3_bench.tasks.metrics.vqa import normalize_multiple_choice

QUESTIONS, IMAGES, TRAIN_QUESTIONS = 214_354, 40_504, 443_757
LEAST_OF_TRAIN = 1_000
"""So that some answers are given nine times, and there is a vocabulary."""
USUAL, RARE, TEN = 3_129, 20_000, 10
"""Answers that some question usually gets, each nine times or more as in the released files; and those that nobody agrees on."""
KINDS = 65
"""Of questions."""
AGREEING = 0.6
"""Share of people who give a question's usual answer."""
RIGHT = 0.7
"""Share of questions to which the model gives it."""
SURENESS = {"yes": 0.6, "maybe": 0.3, "no": 0.1}


def write(root: Path, samples: int) -> None:
    """Questions, annotations, and the images that the questions are about."""
    texts, random = Texts(0), np.random.default_rng(1)
    images = max(1, round(IMAGES * samples / QUESTIONS))
    of_image = np.sort(np.concatenate([np.arange(images), random.integers(0, images, samples)])[:samples])
    place = np.arange(samples) - np.searchsorted(of_image, of_image)
    image_ids = (of_image + 1) * 7
    questions = image_ids * 1000 + place
    kinds = random.integers(0, KINDS, samples)
    words = texts.sentences(kinds, 4, 8)
    folder = root / "vqa"
    folder.mkdir(parents=True)
    write_json(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json",
        {
            "questions": [
                {"image_id": image, "question": f"what {' '.join(said)}?", "question_id": question}
                for image, question, said in zip(image_ids.tolist(), questions.tolist(), words, strict=True)
            ]
        },
    )
    touch(root / "val2014", [f"COCO_val2014_{image:012d}.jpg" for image in np.unique(image_ids).tolist()])
    answers = _answers(texts)
    _write_annotations(folder / "v2_mscoco_val2014_annotations.json", questions, answers, random)
    train = np.arange(max(LEAST_OF_TRAIN, round(TRAIN_QUESTIONS * samples / QUESTIONS)))
    _write_annotations(
        folder / "v2_mscoco_train2014_annotations.json", (train // 5 + 1) * 11_000 + train % 5, answers, random
    )


def _answers(texts: Texts) -> list[str]:
    """The `USUAL` ones first; the others with articles and punctuation, which the metric takes out."""
    words = dict.fromkeys(["yes", "no", *map(str, range(20)), *texts.words.tolist()])
    usual = [word for word in words if normalize_multiple_choice(word) == word][:USUAL]  # not zero, nine, none
    said = texts.sentences(np.zeros(RARE, dtype=np.int64), 1, 3)
    rare = [" ".join(words) for words in said]
    rare[::11] = [f"the {answer}" for answer in rare[::11]]
    rare[::17] = [f"{answer}." for answer in rare[::17]]
    return [*usual, *rare]


def _write_annotations(path: Path, questions: np.ndarray, answers: list[str], random: np.random.Generator) -> None:
    with path.open("w", encoding="ascii") as file:
        file.write('{"annotations": [')
        for start in range(0, len(questions), 20_000):
            file.write(", " if start else "")
            _write_block(file, questions[start : start + 20_000], answers, random)
        file.write("]}")


def _write_block(file: TextIO, questions: np.ndarray, answers: list[str], random: np.random.Generator) -> None:
    frequency = 1.0 / np.arange(1, USUAL + 1)
    frequency = 0.8 * frequency / frequency.sum() + 0.2 / USUAL
    usual = random.choice(USUAL, len(questions), p=frequency)
    given = random.integers(0, len(answers), (len(questions), TEN))
    given = np.where(random.random(given.shape) < AGREEING, usual[:, None], given)
    sure = random.choice(np.array(list(SURENESS), dtype=object), given.shape, p=list(SURENESS.values()))
    kinds = random.integers(0, KINDS, len(questions))
    records = []
    for question, best, ten, surely, kind in zip(
        questions.tolist(), usual.tolist(), given.tolist(), sure.tolist(), kinds.tolist(), strict=True
    ):
        said = ", ".join(
            f'{{"answer": "{answers[a]}", "answer_confidence": "{s}", "answer_id": {n}}}'
            for n, (a, s) in enumerate(zip(ten, surely, strict=True), 1)
        )
        answer_type = "yes/no" if best < 2 else "number" if best < 22 else "other"
        records.append(
            f'{{"question_type": "kind {kind}", "multiple_choice_answer": "{answers[best]}", "answers": [{said}], '
            f'"image_id": {question // 1000}, "answer_type": "{answer_type}", "question_id": {question}}}'
        )
    file.write(", ".join(records))


def rows(task: Task, split: Split) -> Iterator[list[Row]]:
    """The usual answer, or one of another question."""
    random = np.random.default_rng(2)
    for examples in batches(split):
        usual = [example.target["multiple_choice_answer"] for example in examples]
        other = random.permutation(len(usual)).tolist()
        right = (random.random(len(usual)) < RIGHT).tolist()
        said = [usual[i] if right[i] else usual[other[i]] for i in range(len(usual))]
        yield task.rows(examples, said, split, [None] * len(examples))


MADE_UP = MadeUp(QUESTIONS, write, rows)
