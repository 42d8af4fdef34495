"""SNLI-VE: does the picture entail the sentence, contradict it, or neither?

Protocol (SNLI-VE, arXiv 1901.06706): three labels, accuracy over all samples of a split. The jsonl files are those of
github.com/necla-ml/SNLI-VE; the premise is the picture alone (``sentence1``, the caption it was written from, is not shown to
a model). BEiT-3's authors report nothing on it: the head and the recipe for BEiT-3 are this project's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Classifies, Item
from beit3_bench.errors import BenchError
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.contract import Example, Row, ScoreInputs, Split, Task
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.files import field, find, identifier, read_json_lines, read_records, unique
from beit3_bench.tasks.layouts.captions import ALSO, FLICKR_FOLDER
from beit3_bench.tasks.layouts.places import find_images, names_of
from beit3_bench.tasks.metrics.entailment import confusion_of, entailment_accuracy, entailment_table, right_of_samples
from beit3_bench.tasks.scores import ClusterTable, Metric, Scores

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

LABELS = ("contradiction", "neutral", "entailment")
"""In the order of the classifiers of ALBEF and LAVIS (``ve_dataset``); our own heads keep to it."""

FOLDERS = (".", "snli_ve", "snli-ve", "SNLI-VE", "annotations")
FORM = 'one {"pairID": ..., "label": "entailment"} a line'


def _estimate(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return entailment_accuracy(sums, LABELS)


METRICS = (
    Metric("accuracy", "fraction", headline=True, decimals=2, formula=_estimate, ratio=right_of_samples),
    *(
        Metric(f"accuracy/{label}", "fraction", decimals=2, formula=_estimate, ratio=partial(right_of_samples, label=n))
        for n, label in reversed(list(enumerate(LABELS)))
    ),
)


def parse_label(record: Any, key: str, source: str) -> str:
    """One of `LABELS`.

    Raises:
        BenchError: another value; a number, whose meaning depends on an order that the file does not say.
    """
    value = field(record, key, (str, int), source)
    label = str(value).strip().lower()
    if label in LABELS:
        return label
    if label == "-":
        raise BenchError(
            f"{source}: {key!r} is '-' (the annotators agreed on no label); SNLI-VE leaves such pairs out: remove this line"
        )
    hint = f"write one of {', '.join(LABELS)}" if isinstance(value, int) else did_you_mean(label, LABELS)
    raise BenchError(f"{source}: {key!r} is {value!r:.60}, which is no label of SNLI-VE; {hint}")


def read_annotations(path: Path) -> list[dict[str, Any]]:
    """The original JSON lines: ``id`` (of the pair), ``image`` (stem of the Flickr30K file), ``sentence``, ``label``.

    Raises:
        BenchError: a line without one of them, another label, a pair that comes twice, no lines at all.
    """
    records = []
    for number, record in read_json_lines(path, "SNLI-VE"):
        source = f"{path}:{number}"
        records.append(
            {
                "id": identifier(record, "pairID", source),
                "image": identifier(record, "Flickr30K_ID", source).removesuffix(".jpg"),
                "sentence": field(record, "sentence2", str, source),
                "label": parse_label(record, "gold_label", source),
            }
        )
    if not records:
        raise BenchError(f"{path}: holds no pairs; mend the file, or get it again")
    unique((r["id"] for r in records), str(path), "pairID")
    return records


def read_predictions(path: Path) -> dict[str, str]:
    """Predicted labels by pair of a result file: JSON lines (or a list, in a file not called .jsonl) with ``pairID`` and ``label``.

    Raises:
        BenchError: no such file, a record of another form, a pair that is predicted twice.
    """
    if path.suffix == ".jsonl":
        records = [(f"{path}:{number}", record) for number, record in read_json_lines(path, "predictions", FORM)]
    else:
        records = [(f"{path}: [{n}]", record) for n, record in enumerate(read_records(path, "predictions", FORM))]
    predicted: dict[str, str] = {}
    for source, record in records:
        pair = identifier(record, "pairID", source)
        if pair in predicted:
            raise BenchError(f"{source}: pairID {pair[:80]} comes twice; keep one prediction each")
        predicted[pair] = parse_label(record, "label", source)
    return predicted


class SnliVE(Task):
    """SNLI-VE, dev and test, on the pictures of Flickr30K."""

    name = "snli-ve"
    ability = Classifies
    splits = ("test", "dev", "train")
    default_split = "test"
    row_shape: ClassVar[Mapping[str, Any]] = {"label": str}
    metrics = METRICS
    score_files = ("annotations", "allow_partial")
    layout = """\
DATA_ROOT/                                     the folder of Flickr30K
  snli_ve_{train,dev,test}.jsonl               the original JSON lines; also below snli_ve/, SNLI-VE/ or annotations/
  flickr30k-images/<Flickr30K_ID>.jpg"""

    def read(self, split: str) -> Split:
        """One example per pair of picture and sentence; the cluster is the picture, the target the label."""
        path = find(self.data_root, f"snli_ve_{split}.jsonl", FOLDERS, "SNLI-VE annotations")
        images = find_images(self.data_root, FLICKR_FOLDER, "Flickr30K image folder", also=ALSO[FLICKR_FOLDER])
        examples = []
        for r in read_annotations(path):
            picture = images.picture(f"{r['image']}.jpg")
            names = names_of(picture)
            examples.append(Example(r["id"], (picture.path,), r["sentence"], r["image"], r["label"], names=names))
        return Split(split, tuple(examples), LABELS, path)

    def labels_without_data(self) -> tuple[str, ...]:
        return LABELS

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """The label of the greatest score, and the scores in the order of `LABELS`."""
        scores = np.stack(values)
        return [
            {"id": e.id, "label": LABELS[best], "scores": row}
            for e, best, row in zip(examples, scores.argmax(axis=1), scores.tolist(), strict=True)
        ]

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Accuracy over all samples and by gold label, fractions."""
        examples = split.examples
        return score_labels(
            [rows[e.id]["label"] for e in examples],
            [e.target for e in examples],
            [e.id for e in examples],
            [e.cluster for e in examples],
        )

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.entailment import EntailmentDisplay

        return EntailmentDisplay(self, split, rows, scores)

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        """JSON lines of ``pairID`` and ``label`` against the original annotations."""
        if inputs.annotations is None:
            raise BenchError("scoring snli-ve needs --annotations snli_ve_test.jsonl (or snli_ve_dev.jsonl)")
        truth = {r["id"]: r for r in read_annotations(inputs.annotations)}
        path = inputs.predictions
        predicted = read_predictions(path)
        coverage = match_ids(list(predicted), list(truth), str(path), "pairs", inputs.allow_partial)
        chosen = [pair for pair in truth if pair in predicted]
        if not chosen:
            raise BenchError(f"{path}: holds no predictions; give at least one")
        scores = score_labels(
            [predicted[pair] for pair in chosen],
            [truth[pair]["label"] for pair in chosen],
            chosen,
            [truth[pair]["image"] for pair in chosen],
        )
        if coverage < 1:
            scores.notes.append(f"partial: {len(chosen)} of {len(truth)} pairs ({coverage:.1%})")
        return scores

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def training_item(self, example: Example) -> Item:
        return dataclasses.replace(self.item(example), target=LABELS.index(example.target))


def score_labels(predicted: Sequence[str], gold: Sequence[str], ids: Sequence[str], images: Sequence[str]) -> Scores:
    """Accuracies of predicted labels, with the confusion matrix as a note; chance is always giving the commonest label."""
    guessed, truth = (np.array([LABELS.index(label) for label in labels]) for labels in (predicted, gold))
    table = entailment_table(guessed, truth, images, len(LABELS))
    return Scores.of(
        METRICS,
        table,
        {"examples": len(ids), "images": len(table.ids)},
        notes=[confusion_note(table)],
        samples={"accuracy": dict(zip(ids, (guessed == truth).astype(float).tolist(), strict=True))},
        chance=float(np.bincount(truth, minlength=len(LABELS)).max() / len(truth)),
    )


def confusion_note(table: ClusterTable) -> str:
    """The confusion matrix in one line, gold label by gold label."""
    rows = confusion_of(table.sums()).astype(int)
    parts = [
        f"{gold} -> " + ", ".join(f"{count} {label}" for label, count in zip(LABELS, row, strict=True))
        for gold, row in zip(LABELS, rows, strict=True)
    ]
    return f"gold -> predicted: {'; '.join(parts)}"
