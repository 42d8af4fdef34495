"""Answers to questions from a file: ranked from a list, or searched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from beit3_bench.backbones.family import Model, Outputs
from beit3_bench.backbones.fusion.heads import ADDED_TOKENS, VisualQuestionAnswering
from beit3_bench.backbones.fusion.loading import (
    Reading,
    build,
    find_texts,
    finished,
    preprocessing_of,
    reader_of,
)
from beit3_bench.backbones.fusion.native import QuestionAnswerer
from beit3_bench.backbones.fusion.texts import Wording
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from pathlib import Path

ANSWER_CANDIDATES = 128
"""``k_test`` of both families' `configs/VQA.yaml`."""


def candidates_of(reading: Reading) -> int:
    """Answers of a question that are scored.

    Raises:
        BenchError: less than one.
    """
    given = reading.options.given
    k = ANSWER_CANDIDATES if given is None or given.answer_candidates is None else given.answer_candidates
    if k < 1:
        raise BenchError(f"answer_candidates is {k}; give 1 or more")
    return k


def answering(reading: Reading, module: type[VisualQuestionAnswering], wording: Wording, added_start: bool) -> Model:
    """VQAv2 by ranking.

    added_start: whether answers begin with [DEC], a token behind those of the vocabulary, or with [CLS].
    """
    texts, file, assumptions = find_texts(reading, wording)
    candidates = candidates_of(reading)
    answers = reading.asked.labels
    if answers is not None:
        check_answers(answers, reading.asked.labels_source)
    checkpoint = reading.checkpoint
    notes = reading.asked.check_outputs(Outputs(checkpoint.path, None, None, reading.of_task, checkpoint.metadata))
    built, extra = build(reading, lambda: module(reading.config, candidates))
    start = reading.config.vocab_size - ADDED_TOKENS if added_start else texts.pieces.special["[CLS]"]
    ability = QuestionAnswerer(built, reader_of(reading, texts, wording), preprocessing_of(reading.config), start)
    if answers is not None:
        ability.rank(answers)
    return finished(
        reading,
        ability,
        texts,
        file,
        f"ranking {candidates}",
        wording,
        extra,
        assumptions=[*notes, *assumptions],
        further={"answer_candidates": candidates},
    )


def check_answers(answers: Sequence[str], source: Path) -> None:
    """Raise for answers that cannot be ranked: an empty one in a list that somebody wrote (the empty one of the annotations is
    left out, as the authors left it out of theirs), or none at all.

    Raises:
        BenchError: names the file and the place.
    """
    empty = [place for place, answer in enumerate(answers) if not answer.strip()]
    if empty and not source.is_dir():
        raise BenchError(f"{source}: answer {empty[0]} is empty, and cannot be ranked; leave it out")
    if len(empty) == len(answers):
        raise BenchError(f"{source}: holds no answers that could be ranked; give at least one")
