"""SNLI-VE: reading, scoring, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native import invoke

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.metrics.entailment import confusion_of, entailment_accuracy, entailment_table
from beit3_bench.tasks.snli_ve import LABELS, SnliVE, read_annotations, score_labels

LABEL = st.sampled_from(LABELS)


def record(pair="1.jpg#0r1e", image="1", label="entailment", **changes):
    return {"pairID": pair, "Flickr30K_ID": image, "gold_label": label, "sentence2": "A dog.", **changes}


def write(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def annotations(tmp_path):
    records = [record(f"{image}.jpg#0r{i}", str(image), label) for image in (1, 2) for i, label in enumerate(LABELS)]
    return write(tmp_path / "snli_ve_test.jsonl", records)


def test_a_split_holds_pairs_of_picture_and_sentence_clustered_by_picture(native):
    split = SnliVE(native.root("snli-ve")).read("test")
    assert split.labels == LABELS == ("contradiction", "neutral", "entailment")
    assert {e.target for e in split.examples} == set(LABELS)
    assert all(e.images == (f"{native.root('snli-ve')}/flickr30k-images/{e.cluster}.jpg",) for e in split.examples)
    assert all(e.text.startswith(("There is a", "The ")) for e in split.examples)


def test_the_tiny_world_gives_every_label_a_third_and_no_sentence_gives_its_label_away(tmp_path):
    from beit3_bench.tasks.tinyworld import write_tiny_world

    write_tiny_world(tmp_path / "world", size="mini", flickr30k_train=300)
    records = read_annotations(tmp_path / "world" / "flickr30k" / "snli_ve_train.jsonl")
    counts = Counter(r["label"] for r in records)
    assert all(0.27 < counts[label] / len(records) < 0.40 for label in LABELS), counts
    by_text: dict[str, Counter] = {}
    for r in records:
        by_text.setdefault(r["sentence"], Counter())[r["label"]] += 1
    guessed = sum(max(c.values()) for c in by_text.values()) / len(records)
    assert guessed < 0.75  # the best that can be done with eyes shut; with so few pictures some sentences come once


@given(st.lists(st.tuples(LABEL, LABEL, st.integers(0, 4)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_accuracies_are_plain_shares(cases):
    predicted, gold, images = zip(*cases, strict=True)
    scores = score_labels(predicted, gold, [str(i) for i in range(len(cases))], [str(i) for i in images])
    right = [p == g for p, g in zip(predicted, gold, strict=True)]
    assert scores.metrics["accuracy"] == pytest.approx(np.mean(right))
    for label in LABELS:
        of_label = [r for r, g in zip(right, gold, strict=True) if g == label]
        expected = np.mean(of_label) if of_label else np.nan
        assert scores.metrics[f"accuracy/{label}"] == pytest.approx(expected, nan_ok=True)
    assert scores.chance == pytest.approx(Counter(gold).most_common(1)[0][1] / len(gold))
    assert scores.counts == {"examples": len(cases), "images": len(set(images))}


def test_the_confusion_matrix_has_gold_labels_as_rows():
    table = entailment_table([0, 1, 1], [0, 0, 2], ["a", "a", "b"], 3)
    assert confusion_of(table.sums()).tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]
    resampled = table.sums(np.array([[1.0, 0.0], [2.0, 3.0]]))
    assert entailment_accuracy(resampled, LABELS)["accuracy"].tolist() == [0.5, 2 / 7]


def test_score_takes_json_lines_and_says_what_was_confused(annotations, tmp_path):
    predicted = [{"pairID": r["id"], "label": "entailment"} for r in read_annotations(annotations)]
    predictions = write(tmp_path / "results.jsonl", predicted)
    run = invoke("score", "--task", "snli-ve", "--predictions", predictions, "--annotations", annotations, "--json")
    assert run.exit_code == 0, run.output
    result = json.loads(run.stdout)
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["accuracy/entailment"] == 1
    assert "neutral -> 0 contradiction, 0 neutral, 2 entailment" in run.stderr


def test_a_part_of_the_predictions_is_scored_where_it_is_allowed(annotations, tmp_path):
    predictions = write(tmp_path / "results.jsonl", [{"pairID": "1.jpg#0r0", "label": "contradiction"}])
    with pytest.raises(BenchError, match="5 of 6 pairs without prediction"):
        SnliVE.score_file(ScoreInputs(predictions, annotations))
    scores = SnliVE.score_file(ScoreInputs(predictions, annotations, allow_partial=True))
    assert scores.metrics["accuracy"] == 1
    assert "partial: 1 of 6 pairs (16.7%)" in scores.notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold_label": "-"}, r"snli_ve_test.jsonl:1: 'gold_label' is '-' .*leaves such pairs out: remove this line"),
        ({"gold_label": "entailed"}, "did you mean 'entailment'"),
        ({"gold_label": 2}, "'gold_label' is 2, which is no label of SNLI-VE; write one of contradiction, neutral, entailment"),
        ({"sentence2": 7}, "'sentence2' should be str"),
        ({"pairID": None}, "'pairID' should be str"),
    ],
)  # fmt: skip
def test_lines_that_are_no_pairs_are_named(tmp_path, change, message):
    with pytest.raises(BenchError, match=message):
        read_annotations(write(tmp_path / "snli_ve_test.jsonl", [record(**change)]))


def test_empty_files_and_pairs_that_come_twice_are_refused(tmp_path):
    with pytest.raises(BenchError, match="holds no pairs"):
        read_annotations(write(tmp_path / "a.jsonl", []))
    with pytest.raises(BenchError, match=r"pairID 1\.jpg#0r1e is listed twice"):
        read_annotations(write(tmp_path / "b.jsonl", [record(), record()]))
    annotations = write(tmp_path / "c.jsonl", [record()])
    twice = write(tmp_path / "d.jsonl", [{"pairID": "1.jpg#0r1e", "label": "neutral"}] * 2)
    with pytest.raises(BenchError, match=r"d.jsonl:2: pairID 1.jpg#0r1e comes twice"):
        SnliVE.score_file(ScoreInputs(twice, annotations))
    with pytest.raises(BenchError, match="needs --annotations"):
        SnliVE.score_file(ScoreInputs(twice))


def test_missing_pictures_are_counted_before_anything_runs(native, tmp_path):
    root = native.copy("snli-ve", tmp_path)
    victim = SnliVE(root).read("test").examples[0].images[0]
    (root / victim).unlink()
    run = invoke("run", "--task", "snli-ve", "--checkpoint", native.checkpoint("snli-ve"), "--data-root", root)
    assert run.exit_code == 2
    assert "1 of 10 image files are missing" in run.stderr
