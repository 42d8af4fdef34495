"""Questions about images of one's own, with or without answers (`tasks.vqav2`)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.family import Asked, Outputs
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, Split
from beit3_bench.tasks.metrics.vqa import clean_answer, estimate_vqa, exact_match, normalize_answer, vqa_accuracies
from beit3_bench.tasks.own.lines import OwnData
from beit3_bench.tasks.own.predictions import WritesPredictions
from beit3_bench.tasks.scores import ClusterTable, Metric, Scores, ratio_in
from beit3_bench.tasks.vqav2 import VQAv2

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

HUMANS = 10
"""Answers per question that VQA accuracy is defined for."""


class OwnQuestions(WritesPredictions, OwnData, VQAv2):
    """Questions about images of your own; scored where the lines hold answers, else the model's answers are written.

    Where every question has ten answers the headline is the official VQA accuracy. Elsewhere it is exact_match: the share of
    questions whose answer is one of those given, all normalised as by VQA accuracy.
    """

    name = "vqa"
    asks_as = "vqav2"
    predicted = "answer"
    training_splits = ()
    metrics = (
        Metric("vqa_accuracy", headline=True, decimals=2, formula=estimate_vqa, ratio=ratio_in("vqa_accuracy")),
        Metric("exact_match", decimals=2, formula=estimate_vqa, ratio=ratio_in("exact_match")),
    )
    form = '{"image": "a.jpg", "question": "What is this?", "answers": ["cat"]}'
    required = ("question",)
    optional = ("answers",)
    once = False
    layout = """\
{"image": "a.jpg", "question": "What is on the sofa?", "answers": ["cat", "a cat"]}
{"image": "a.jpg", "question": "Is it asleep?", "answer": "yes", "id": "42"}
image: a path below the folder of the file, or an absolute one.
answers, or one answer: what people answered, in every line or in none; without them the model's answers are written to
predictions.jsonl and nothing is scored. Ten in every line: official VQA accuracy; else exact_match.
id: in every line or in none; default: the number of the line.
A model that classifies knows only the answers of its own list; where its file does not carry it: -o answer_vocab=FILE."""

    @dataclasses.dataclass
    class Options:
        """answer_vocab: the answers of the model's outputs, such as the official ``answer2label.txt``; default: the list that the
        checkpoint carries.
        """

        answer_vocab: Path | None = None

    def read(self, split: str) -> Split:
        """One example per question; the target holds its answers. Labels are the answers of ``answer_vocab`` alone."""
        lines = self.lines()
        examples = []
        for line in lines:
            answers = line.texts.get("answers")
            target = None if answers is None else list(answers)
            examples.append(Example(line.id, (line.image,), line.texts["question"][0], line.name, target))
        labels, source = self.labels_without_data(), self.options.answer_vocab
        known = {"labels": labels, "labels_source": source} if labels is not None else {}
        return self.split_with(split, lines, examples=tuple(examples), **known)

    def asked(self, split: Split) -> Asked:
        """As of every task; outputs are looked at where the data says nothing of them, too."""
        return dataclasses.replace(
            super().asked(split), check_outputs=lambda outputs: self.check_outputs(split, outputs)
        )

    def check_outputs(self, split: Split, outputs: Outputs) -> list[str]:
        """As of vqav2; the note says to how many questions the model has an answer.

        Raises:
            BenchError: nothing says what the outputs of a classifier mean.
        """
        answers = split.labels if split.labels is not None else outputs.labels
        if answers is None:
            raise BenchError(
                f"{outputs.checkpoint}: carries no answer list; give the one that it was trained for: "
                "-o answer_vocab=answer2label.txt"
            )
        return [*super().check_outputs(split, outputs), *_coverage(answers, split)]

    def headline(self, split: Split) -> Metric:
        """VQA accuracy where every question has ten answers, else exact_match."""
        ten = all(example.target is not None and len(example.target) == HUMANS for example in split.examples)
        return next(metric for metric in self.metrics if metric.name == ("vqa_accuracy" if ten else "exact_match"))

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        return [{"id": e.id, "answer": answer} for e, answer in zip(examples, values, strict=True)]

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        """As of any task: the answers are plain texts here."""
        from beit3_bench.tasks.display import Display

        return Display(self, split, rows, scores)

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """VQA accuracy where every question has ten answers, and whether an answer is one of those given; in percent."""
        examples = split.examples
        answers = [rows[e.id]["answer"] for e in examples]
        by_metric = _values(answers, [e.target for e in examples])
        columns = {name: np.stack([values, np.ones(len(values))], axis=1) for name, values in by_metric.items()}
        table = ClusterTable.collect([e.cluster for e in examples], columns)
        ids = [e.id for e in examples]
        headline = self.headline(split).name
        commonest = Counter(normalize_answer(clean_answer(a)) for e in examples for a in e.target).most_common(1)[0][0]
        guessed = _values([commonest] * len(examples), [e.target for e in examples])
        scores = Scores.of(
            self.metrics,
            table,
            {"questions": len(examples), "images": len(table.ids), "answers": sum(len(e.target) for e in examples)},
            samples={name: dict(zip(ids, (100 * v).tolist(), strict=True)) for name, v in by_metric.items()},
            chance=100 * float(guessed[headline].mean()),
        )
        scores.headline = headline
        if headline == "exact_match":
            counts = [len(e.target) for e in examples]
            number = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
            scores.notes.append(
                f"questions have {number} answers, and VQA accuracy is defined for ten: exact_match counts an answer that is one of "
                "those given, normalised as VQA accuracy does"
            )
        return scores


def _values(answers: Sequence[str], targets: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """By metric, the headline first, the value of each question as a fraction: float64 (n,)."""
    pairs = zip(answers, targets, strict=True)
    values = {"exact_match": np.array([exact_match(answer, target) for answer, target in pairs], dtype=np.float64)}
    if all(len(target) == HUMANS for target in targets):
        return {"vqa_accuracy": vqa_accuracies(answers, targets), **values}
    return values


def _coverage(answers: Sequence[str], split: Split) -> list[str]:
    """A line on how many questions the model can answer rightly at all."""
    questions = [e.target for e in split.examples if e.target is not None]
    if not questions:
        return []
    known = {normalize_answer(clean_answer(answer)) for answer in answers}
    count = sum(any(normalize_answer(clean_answer(a)) in known for a in target) for target in questions)
    return [
        f"{count:,} of {len(questions):,} questions have one of their answers among the {len(answers):,} that the model can give"
    ]
