"""VQAv2: a question about an image, answered by a word or a few.

Protocol (BEiT-3 paper, section 3.1.1; official `VQAv2Dataset`): 3,129 answers for models that classify. Scored with the official VQA
accuracy over *all* questions; the official code drops questions whose answers are all out of vocabulary and so flatters itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Answers
from beit3_bench.backbones.family import Outputs
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, ScoreInputs, Split, Task
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.files import (
    field,
    find,
    look_for,
    read_records,
    whole_number,
    write_json,
)
from beit3_bench.tasks.layouts.coco import find_coco_images
from beit3_bench.tasks.layouts.places import Images, names_of
from beit3_bench.tasks.layouts.vqa import exported_annotations, exported_images, exported_questions
from beit3_bench.tasks.metrics.vqa import (
    ManyHumanAnswers,
    answer_vocabulary,
    estimate_vqa,
    multiple_choice_counts,
    soft_score,
    vqa_accuracies,
    vqa_table,
)
from beit3_bench.tasks.scores import Metric, Scores, ratio_in
from beit3_bench.tasks.vqa_files import (
    ANNOTATIONS,
    QUESTIONS,
    Question,
    annotations_of,
    questions_of,
    read_annotations,
    read_answer_vocabulary,
    read_questions,
    read_usual_answers,
)

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

FOLDERS = ("vqa", ".", "vqav2", "VQAv2", "annotations")
IMAGE_FOLDERS = (".", "coco", "images")
ANNOTATION_FILE = "v2_mscoco_{}_annotations.json"
RELEASED_ANNOTATIONS = 443_757 + 214_354  # train2014 + val2014
RELEASED_ANSWERS = 3_129
FIRST_ANSWERS = ("net", "pitcher", "orange", "yes", "white", "skiing", "red")
"""How the official annotations of train2014 begin, and with them the answers of released heads."""
MINIVAL_IMAGES = 1_000
RESULTS_FORM = 'a JSON list of {"question_id": 42, "answer": "yes"}'
SUBSETS = {
    "train": "train2014",
    "val": "val2014",
    "minival": "val2014",
    "test-dev": "test-dev2015",
    "test-std": "test2015",
}
METRICS = (
    Metric("vqa_accuracy", headline=True, decimals=2, formula=estimate_vqa, ratio=ratio_in("vqa_accuracy")),
    *(
        Metric(name, decimals=2, formula=estimate_vqa, ratio=ratio_in(name))
        for name in ("vqa_accuracy/yes/no", "vqa_accuracy/number", "vqa_accuracy/other")
    ),
)


def minival_images(image_ids: Sequence[int]) -> set[int]:
    """Our held-out 1,000 images of val2014: those whose SHA-256 of ``"vqav2-minival:ID"`` is smallest
    (of a smaller world, a tenth).

    The authors' own 1,000 images were never published; numbers on the two are not comparable.
    """
    distinct = sorted(set(image_ids), key=lambda i: hashlib.sha256(f"vqav2-minival:{i}".encode()).digest())
    return set(distinct[: min(MINIVAL_IMAGES, max(len(distinct) // 10, 1))])


class VQAv2(Task):
    """VQA v2, open-ended."""

    name = "vqav2"
    ability = Answers
    splits: ClassVar[tuple[str, ...]] = ("val", "minival", "test-dev", "test-std", "train")
    default_split = "val"
    row_shape: ClassVar[Mapping[str, Any]] = {"answer": str}
    metrics = METRICS
    score_files: ClassVar[tuple[str, ...]] = ("annotations", "questions", "allow_partial")
    outputs = "answers"
    layout = """\
DATA_ROOT/
  vqa/v2_OpenEnded_mscoco_{train2014,val2014,test2015,test-dev2015}_questions.json
  vqa/v2_mscoco_{train2014,val2014}_annotations.json      (both: the answer vocabulary needs them)
  train2014/*.jpg  val2014/*.jpg  test2015/*.jpg          COCO images
The json files may also lie in DATA_ROOT itself."""

    @dataclass
    class Options:
        """answer_vocab: official ``answer2label.txt`` or ``answer_list.json``; default: built from train and val by the official rule."""

        answer_vocab: Path | None = None

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        super().__init__(data_root, options)
        self._annotations: dict[str, dict[int, dict[str, Any]]] = {}
        self._vocabulary: list[str] | None = None

    # ---- data -----------------------------------------------------------------------------------------------------

    def _questions(self, subset: str) -> tuple[list[Question], Images, Path]:
        """Questions, their images, and the file that they were read from."""
        name = f"v2_OpenEnded_mscoco_{subset}_questions.json"
        folder = "test2015" if subset.startswith("test") else subset
        if look_for(self.data_root, name, FOLDERS) is None:
            rows = exported_questions(self.data_root, subset)
            if rows:
                questions = questions_of([(row["source"], row) for row in rows], self.data_root)
                return questions, exported_images(self.data_root, folder, rows), self.data_root
        path = find(self.data_root, name, FOLDERS, QUESTIONS)
        return read_questions(path), find_coco_images(self.data_root, folder, IMAGE_FOLDERS), path

    def _look_for_questions(self, subset: str) -> None:
        """Raise where they are not there, or in an export with other columns, before anything large is read."""
        name = f"v2_OpenEnded_mscoco_{subset}_questions.json"
        if look_for(self.data_root, name, FOLDERS) is None and not exported_questions(self.data_root, subset):
            find(self.data_root, name, FOLDERS, QUESTIONS)

    def annotations(self, subset: str) -> dict[int, dict[str, Any]]:
        """Annotations of ``train2014`` or ``val2014``, read once."""
        if subset not in self._annotations:
            self._annotations[subset] = self._read_annotations(subset)
        return self._annotations[subset]

    def _read_annotations(self, subset: str) -> dict[int, dict[str, Any]]:
        if self._look_for_annotations(subset) is None:
            content, path = exported_annotations(self.data_root, subset)
            if content is not None:
                return annotations_of(content, path)
        return read_annotations(find(self.data_root, ANNOTATION_FILE.format(subset), FOLDERS, ANNOTATIONS))

    def _look_for_annotations(self, subset: str) -> Path | None:
        return look_for(self.data_root, ANNOTATION_FILE.format(subset), FOLDERS)

    def _usual_answers(self) -> list[str]:
        """To the questions of train and val. An evaluation needs nothing else of train, whose records are not kept."""
        train, file = self._annotations.get("train2014"), self._look_for_annotations("train2014")
        if train is None and file is not None:
            usual = read_usual_answers(file)
        else:
            train = self._read_annotations("train2014") if train is None else train
            usual = [record["multiple_choice_answer"] for record in train.values()]
        return usual + [record["multiple_choice_answer"] for record in self.annotations("val2014").values()]

    def vocabulary(self) -> list[str]:
        """Answers in the order of the head's outputs: this order decides what a released head means."""
        if self._vocabulary is None:
            if self.options.answer_vocab:
                self._vocabulary = read_answer_vocabulary(self.options.answer_vocab)
            else:
                given = self._usual_answers()
                self._vocabulary = answer_vocabulary(given)
                if len(given) == RELEASED_ANNOTATIONS and len(self._vocabulary) != RELEASED_ANSWERS:
                    raise BenchError(
                        f"{self.data_root}: {len(self._vocabulary)} frequent answers instead of {RELEASED_ANSWERS:,}; "
                        "download the annotations again"
                    )
            if not self._vocabulary:
                raise BenchError(
                    f"{self.data_root}: no answer occurs 9 times; give the answers with -o answer_vocab=answer2label.txt"
                )
        return self._vocabulary

    def labels_without_data(self) -> tuple[str, ...] | None:
        """The answers of ``answer_vocab``, where it is given."""
        return tuple(self.vocabulary()) if self.options.answer_vocab else None

    def check_outputs(self, split: Split, outputs: Outputs) -> list[str]:
        """As of every task; a head without an answer list of its own is taken to have the official order."""
        notes = super().check_outputs(split, outputs)
        answers, hashed = split.labels, outputs.metadata.get("vocabulary")
        if outputs.labels is not None or answers is None:
            return notes
        source = self.options.answer_vocab or "the train and val annotations"
        if hashed is not None:
            if hashed == hashlib.sha256("\n".join(answers).encode()).hexdigest():
                return notes
            raise BenchError(
                f"{outputs.checkpoint}: was fine-tuned for other answers, or another order of them, than {source} of "
                f"{self.data_root} give; give the annotations that it was trained with, or -o answer_vocab=FILE"
            )
        official = len(answers) == RELEASED_ANSWERS and answers[: len(FIRST_ANSWERS)] == FIRST_ANSWERS
        if not official and outputs.released and outputs.count == RELEASED_ANSWERS:
            raise BenchError(
                f"{outputs.checkpoint}: the answers of released heads begin with {', '.join(FIRST_ANSWERS[:3])} (their order in "
                f"the official annotations), those of {source} with {', '.join(answers[:3])}; get the official files again, or "
                "give -o answer_vocab=answer2label.txt"
            )
        if official or outputs.count is None:
            return notes
        order = "as listed there" if self.options.answer_vocab else "in order of first appearance"
        return [
            *notes,
            f"the checkpoint carries no answer list: its outputs are taken to be those of {source}, {order}",
        ]

    def read(self, split: str) -> Split:
        """One example per question; the target holds its annotation, None on the test splits. The labels are the answers."""
        self._look_for_questions(SUBSETS[split])
        answers = tuple(self.vocabulary())  # of train, the largest file, while memory is free
        return Split(split, tuple(self._examples(split)), answers, self.options.answer_vocab or self.data_root)

    def _examples(self, split: str) -> list[Example]:
        subset = SUBSETS[split]
        questions, images, path = self._questions(subset)
        if split == "minival":
            kept = minival_images([q.image_id for q in questions])
            questions = [q for q in questions if q.image_id in kept]
        folder = "test2015" if subset.startswith("test") else subset
        annotations = self.annotations(subset) if not subset.startswith("test") else None
        examples = []
        for q in questions:
            target = None
            if annotations is not None:
                if q.id not in annotations:
                    raise BenchError(
                        f"{path}: question {q.id} has no annotation; questions and annotations are of different splits"
                    )
                target = annotations[q.id]
            file = images.picture(f"COCO_{folder}_{q.image_id:012d}.jpg")
            names = names_of(file)
            examples.append(Example(str(q.id), (file.path,), q.text, str(q.image_id), target, names=names))
        return examples

    # ---- answers --------------------------------------------------------------------------------------------------

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """The official result record of each question, with its ``id``."""
        return [
            {"id": e.id, "question_id": int(e.id), "answer": answer} for e, answer in zip(examples, values, strict=True)
        ]

    # ---- scores ---------------------------------------------------------------------------------------------------

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Official VQA accuracy in percent, overall, per answer type and per question type."""
        targets = [e.target for e in split.examples]
        answers = [rows[e.id]["answer"] for e in split.examples]
        return score_answers(answers, targets, [e.id for e in split.examples])

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.vqa import VQADisplay

        return VQADisplay(self, split, rows, scores)

    def submission(self, rows: Mapping[str, Row], split: Split, folder: Path) -> list[Path]:
        """EvalAI's results file: every question once, answers are strings."""
        name = "vqa_OpenEnded_mscoco_results.json"
        write_json(
            folder / name,
            [{"question_id": rows[e.id]["question_id"], "answer": str(rows[e.id]["answer"])} for e in split.examples],
        )
        return [folder / name]

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        """Official result file against official annotations (and questions, whose ids must then be the same)."""
        if inputs.annotations is None:
            raise BenchError("scoring vqav2 needs --annotations v2_mscoco_*_annotations.json")
        annotations = read_annotations(inputs.annotations)
        if inputs.questions is not None:
            questions = {q.id for q in read_questions(inputs.questions)}
            if questions != set(annotations):
                odd = sorted(questions ^ set(annotations))
                raise BenchError(
                    f"{inputs.questions}: {len(odd)} question ids are not in both files ({odd[0]}, ...); give files of the same split"
                )
        path = inputs.predictions
        answers = {}
        ids = []
        for n, record in enumerate(read_records(path, "VQA results", RESULTS_FORM)):
            question = whole_number(record, "question_id", f"{path}: [{n}]")
            ids.append(str(question))
            answers[question] = field(record, "answer", str, f"{path}: [{n}]")
        coverage = match_ids(ids, [str(q) for q in annotations], str(path), "questions", inputs.allow_partial)
        chosen = [q for q in annotations if q in answers]
        if not chosen:
            raise BenchError(f"{path}: holds no predictions; give at least one")
        scores = score_answers([answers[q] for q in chosen], [annotations[q] for q in chosen], [str(q) for q in chosen])
        if coverage < 1:
            scores.notes.append(f"partial: {len(chosen)} of {len(annotations)} questions ({coverage:.1%})")
        return scores

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def training_split(self) -> Split:
        """train and val without minival, as published; questions without an answer in the vocabulary teach nothing."""
        self.annotations("train2014")  # kept, other than for the vocabulary alone
        position = {answer: n for n, answer in enumerate(self.vocabulary())}
        examples = []
        held_out = {e.images[0] for e in self._examples("minival")}
        for name in ("train", "val"):
            for e in self._examples(name):
                if e.images[0] in held_out:
                    continue
                counts: dict[int, int] = {}
                for answer in e.target["answers"]:
                    # The official code looks the raw answer up: only the vocabulary is normalised.
                    n = position.get(answer["answer"])
                    if n is not None:
                        counts[n] = counts.get(n, 0) + 1
                if counts:
                    weights = {n: soft_score(c) for n, c in counts.items()}
                    examples.append(Example(f"{name}:{e.id}", e.images, e.text, e.cluster, weights, names=e.names))
        return self.read("minival").of(examples)


def score_answers(answers: Sequence[str], targets: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Scores:
    """Scores of answers (strings) against annotation records of the same order."""
    humans = ManyHumanAnswers([t["answers"] for t in targets])
    accuracies = vqa_accuracies(answers, humans)
    table = vqa_table(
        accuracies,
        [t["answer_type"] for t in targets],
        [t["question_type"] for t in targets],
        [str(t["image_id"]) for t in targets],
    )
    return Scores.of(
        METRICS,
        table,
        {"questions": len(answers), "images": len(table.ids)},
        samples={"vqa_accuracy": dict(zip(ids, (100 * accuracies).tolist(), strict=True))},
        chance=commonest_answer_score(targets, humans),
    )


def commonest_answer_score(targets: Sequence[Mapping[str, Any]], humans: ManyHumanAnswers) -> float:
    """Accuracy (percent) of always giving the commonest answer of these questions."""
    counts = multiple_choice_counts(t["multiple_choice_answer"] for t in targets)
    best = max(counts, key=lambda a: counts[a])
    return 100 * float(np.mean(vqa_accuracies([best] * len(targets), humans)))
