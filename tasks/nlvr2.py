"""NLVR2: is the sentence true of the two images?

Protocol (BEiT-3 paper, section 3.1.1; official `NLVR2Handler`): two labels, 1 = True. dev.json is the dev split, test1.json is test-P.
Accuracy and consistency as nlvr2/eval/metrics.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Classifies, Item
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, ScoreInputs, Split, Task
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.files import field, find, look_for, read_csv, read_json_lines, unique
from beit3_bench.tasks.layouts.nlvr2 import PairImages, exported_records
from beit3_bench.tasks.layouts.places import names_of
from beit3_bench.tasks.metrics.nlvr2 import estimate_nlvr2, nlvr2_table, parse_label, sentence_key
from beit3_bench.tasks.scores import Metric, Scores, ratio_of

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

FILES = {"train": "train.json", "dev": "dev.json", "test-P": "test1.json"}
FOLDERS = ("data", "nlvr2/data", ".", "nlvr2")
FORM = "identifier,label lines such as dev-924-1-0,True"
LABELS = ("False", "True")
METRICS = (
    Metric(
        "accuracy", "fraction", headline=True, decimals=2, formula=estimate_nlvr2, ratio=ratio_of("correct", "examples")
    ),
    Metric("consistency", "fraction", decimals=2, formula=estimate_nlvr2, ratio=ratio_of("consistent", "sentences")),
)


def read_annotations(path: Path) -> list[dict[str, Any]]:
    """The original JSON lines; each record gets ``truth`` (bool, from the string or the boolean ``label``)."""
    return checked_records([(f"{path}:{n}", record) for n, record in read_json_lines(path, "NLVR2")], path)


def checked_records(given: Sequence[tuple[str, Any]], path: Path) -> list[dict[str, Any]]:
    """As `read_annotations`, of records; each with what it is called in messages."""
    records = []
    for source, record in given:
        identifier = field(record, "identifier", str, source)
        field(record, "sentence", str, source)
        try:
            sentence_key(identifier)
        except BenchError as error:
            raise BenchError(f"{source}: {error}") from error
        records.append({**record, "truth": parse_label(field(record, "label", (str, bool), source), source)})
    if not records:
        raise BenchError(f"{path}: holds no examples; mend the file, or get it again")
    unique((r["identifier"] for r in records), str(path), "identifier")
    return records


def read_predictions(path: Path, known: Container[str]) -> tuple[list[tuple[str, bool]], str | None]:
    """Predictions of an official csv file: (identifier, label) of each line; and the first line where it is a header.

    Args:
        known: the identifiers of the annotations; a first line of another identifier and without a label is a header.

    Raises:
        BenchError: no such file, a line of other than two cells, a label that is none.
    """
    predicted: list[tuple[str, bool]] = []
    header = None
    for number, cells in read_csv(path, "predictions", FORM):
        source = f"{path}:{number}"
        if len(cells) != 2:
            separator = next((s for s in (";", "\t") if len(cells) == 1 and s in cells[0]), None)
            mend = f"separate by a comma, not by {separator!r}" if separator else "mend this line"
            raise BenchError(f"{source}: expected identifier,label, found {len(cells)} fields; {mend}")
        identifier, label = cells[0].strip(), cells[1]
        try:
            predicted.append((identifier, parse_label(label, source)))
        except BenchError:
            if number != 1 or identifier in known or identifier.count("-") == 3:
                raise
            header = ",".join(cells)
    return predicted, header


class NLVR2(Task):
    """NLVR2, dev and test-P."""

    name = "nlvr2"
    ability = Classifies
    images = 2
    splits = ("test-P", "dev", "train")
    default_split = "test-P"
    row_shape: ClassVar[Mapping[str, Any]] = {"label": bool}
    metrics = METRICS
    score_files = ("annotations", "allow_partial")
    layout = """\
DATA_ROOT/
  data/{train,dev,test1}.json                  the original JSON lines
  images/train/<directory>/train-*-img0.png    official download; also without <directory> and without images/
  dev/dev-*-img0.png                           also below images/
  test1/test1-*-img0.png"""

    def read(self, split: str) -> Split:
        """One example per sentence-pair; the cluster is the sentence, the target the truth."""
        name = FILES[split]
        path, exported = look_for(self.data_root, name, FOLDERS), []
        if path is None:
            exported = exported_records(self.data_root, name.removesuffix(".json"))
        if exported:
            path = self.data_root
            records = checked_records(exported, path)
        else:
            path = find(self.data_root, name, FOLDERS, "NLVR2 annotations")
            records = read_annotations(path)
        images = PairImages(self.data_root, name.removesuffix(".json"), bool(exported))
        examples = []
        for record in records:
            if "directory" in record:
                field(record, "directory", (str, int), f"{path}: {record['identifier']}")
            pair = images.pair(record)
            examples.append(
                Example(
                    record["identifier"],
                    tuple(picture.path for picture in pair),
                    record["sentence"],
                    sentence_key(record["identifier"]),
                    record["truth"],
                    names=names_of(*pair),
                )
            )
        return Split(split, tuple(examples), LABELS, path)

    def labels_without_data(self) -> tuple[str, ...]:
        return LABELS

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """The predicted truth, and the difference of the two scores."""
        scores = np.stack(values)
        best, margin = scores.argmax(axis=1), (scores[:, 1] - scores[:, 0]).tolist()
        return [
            {"id": e.id, "label": bool(label), "margin": m} for e, label, m in zip(examples, best, margin, strict=True)
        ]

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Accuracy and consistency, fractions."""
        examples = split.examples
        return score_labels(
            [rows[e.id]["label"] for e in examples], [e.target for e in examples], [e.id for e in examples]
        )

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.nlvr2 import NLVR2Display

        return NLVR2Display(self, split, rows, scores)

    def submission(self, rows: Mapping[str, Row], split: Split, folder: Path) -> list[Path]:
        """The official prediction file: ``identifier,True|False`` lines."""
        path = folder / "predictions.csv"
        path.write_text("".join(f"{e.id},{rows[e.id]['label']}\n" for e in split.examples), encoding="utf-8")
        return [path]

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        """Official csv predictions (``identifier,label``) against the original annotations."""
        if inputs.annotations is None:
            raise BenchError("scoring nlvr2 needs --annotations dev.json (or test1.json)")
        truth = {r["identifier"]: r["truth"] for r in read_annotations(inputs.annotations)}
        path = inputs.predictions
        predicted, header = read_predictions(path, truth)
        coverage = match_ids([i for i, _ in predicted], list(truth), str(path), "examples", inputs.allow_partial)
        labels = dict(predicted)
        chosen = [i for i in truth if i in labels]
        if not chosen:
            raise BenchError(f"{path}: holds no predictions; give at least one")
        scores = score_labels([labels[i] for i in chosen], [truth[i] for i in chosen], chosen)
        scores.notes += [f"line 1 of {path.name} is a header ({header[:60]!r}) and is left out"] if header else []
        if coverage < 1:
            scores.notes.append(f"partial: {len(chosen)} of {len(truth)} examples ({coverage:.1%})")
        return scores

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def training_item(self, example: Example) -> Item:
        return dataclasses.replace(self.item(example), target=int(example.target))


def score_labels(labels: Sequence[bool], truths: Sequence[bool], identifiers: Sequence[str]) -> Scores:
    """Accuracy and consistency of predicted labels; chance is always giving the commoner one."""
    correct = np.asarray(labels, dtype=bool) == np.asarray(truths, dtype=bool)
    table = nlvr2_table(correct, identifiers)
    share = float(np.mean(truths))
    return Scores.of(
        METRICS,
        table,
        {"examples": len(correct), "sentences": len(table.ids)},
        samples={"accuracy": dict(zip(identifiers, correct.astype(float).tolist(), strict=True))},
        chance=max(share, 1 - share),
    )
