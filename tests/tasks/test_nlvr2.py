"""NLVR2: tree layouts, labels, the csv format, scoring from files."""

from __future__ import annotations

import json
import shutil

import pytest
from goldens import metrics_golden
from native import invoke

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import ScoreInputs
from beit3_bench.tasks.nlvr2 import NLVR2, read_annotations


def test_official_scores_from_the_command_line():
    folder = metrics_golden("nlvr2")
    expected = json.loads((folder / "expected.json").read_text())
    outcome = invoke(
        "score",
        "--task",
        "nlvr2",
        "--predictions",
        folder / "predictions.csv",
        "--annotations",
        folder / "dev.json",
        "--json",
    )
    assert json.loads(outcome.stdout) == pytest.approx(
        {"accuracy": expected["accuracy"], "consistency": expected["consistency"]}, abs=1e-9
    )


@pytest.mark.parametrize("split", NLVR2.splits)
def test_every_example_has_two_existing_images_and_a_truth(native, split):
    from pathlib import Path

    examples = NLVR2(native.root("nlvr2")).read(split).examples
    assert all(len(e.images) == 2 and all(Path(p).is_file() for p in e.images) for e in examples)
    assert {e.target for e in examples} == {True, False}
    # left and right: img0 and img1 of the same pair
    assert all(e.images[0].replace("-img0.", "-img1.") == e.images[1] for e in examples)


def test_a_mirror_without_the_directory_level_reads_the_same(native, tmp_path):
    root = native.copy("nlvr2", tmp_path)
    official = NLVR2(root).read("train").examples
    folder = root / "images" / "train"
    for path in list(folder.glob("*/*.png")):
        shutil.move(path, folder / path.name)
    for path in list(folder.iterdir()):
        if path.is_dir():
            path.rmdir()
    flat = NLVR2(root).read("train").examples
    names = [[p.rsplit("/", 1)[1] for p in e.images] for e in flat]
    assert names == [[p.rsplit("/", 1)[1] for p in e.images] for e in official]
    assert all((folder / n).is_file() for pair in names for n in pair)


def test_dev_and_test_are_found_below_images_too(native, tmp_path):
    root = native.copy("nlvr2", tmp_path)
    shutil.move(root / "dev", root / "images" / "dev")
    assert "/images/dev/" in NLVR2(root).read("dev").examples[0].images[0]


def test_labels_may_be_strings_or_booleans(tmp_path):
    path = tmp_path / "dev.json"
    line = {"identifier": "dev-1-0-0", "sentence": "x"}
    path.write_text(
        "\n".join(
            json.dumps({**line, "identifier": f"dev-1-{n}-0", "label": label})
            for n, label in enumerate(["True", "false", True, False])
        )
    )
    assert [r["truth"] for r in read_annotations(path)] == [True, False, True, False]


BAD = [
    ("dev-1-0-0,True\n", "1 of 2 examples without prediction"),
    ("dev-1-0-0,True\ndev-1-0-0,True\ndev-1-1-0,True\n", "predicted twice"),
    ("dev-1-0-0,True\ndev-1-1-0,perhaps\n", ":2: label 'perhaps'"),
    ("dev-1-0-0,True,1\n", ":1: expected identifier,label"),
    ("dev-9-0-0,True\ndev-1-0-0,True\ndev-1-1-0,True\n", "1 unknown examples"),
    ("", "without prediction"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_prediction_files_are_named(tmp_path, text, message):
    truth = tmp_path / "dev.json"
    truth.write_text(
        "\n".join(json.dumps({"identifier": f"dev-1-{n}-0", "sentence": "x", "label": "True"}) for n in range(2))
    )
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(BenchError, match=message):
        NLVR2.score_file(ScoreInputs(path, truth))


@pytest.fixture
def two(tmp_path):
    """Annotations of two examples."""
    truth = tmp_path / "dev.json"
    truth.write_text(
        "\n".join(json.dumps({"identifier": f"dev-1-{n}-0", "sentence": "x", "label": "True"}) for n in range(2))
    )
    return truth


@pytest.mark.parametrize(
    "text",
    [
        "identifier,label\ndev-1-0-0,True\ndev-1-1-0,False\n",
        "\ufeffid,prediction\r\n\r\ndev-1-0-0,TRUE\r\ndev-1-1-0, false\r\n",
    ],
)
def test_a_header_line_is_left_out_and_noted(tmp_path, two, text):
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    scores = NLVR2.score_file(ScoreInputs(path, two))
    assert scores.metrics == {"accuracy": 0.5, "consistency": 0.0}
    assert ["is a header" in note for note in scores.notes] == [True]


def test_a_cell_of_any_length_is_a_short_line(tmp_path, two):
    path = tmp_path / "predictions.csv"
    for text in (f"dev-1-0-0,{'x' * 100_000}\n", f"{'y' * 100_000},True\ndev-1-0-0,True\ndev-1-1-0,True\n"):
        path.write_text(text)
        with pytest.raises(BenchError) as caught:
            NLVR2.score_file(ScoreInputs(path, two))
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dev-1-0-0,label\ndev-1-1-0,True\n", ":1: label 'label'"),
        ("dev-9-9-0,yes\ndev-1-0-0,True\ndev-1-1-0,True\n", ":1: label 'yes'"),
        ("dev-1-0-0,True\nidentifier,label\ndev-1-1-0,True\n", ":2: label 'label'"),
        ("dev-1-0-0;True\ndev-1-1-0;True\n", r":1: .*separate by a comma, not by ';'"),
        ("dev-1-0-0\tTrue\n", r"separate by a comma, not by '\\t'"),
    ],
)
def test_what_is_no_header_is_named(tmp_path, two, text, message):
    path = tmp_path / "predictions.csv"
    path.write_text(text)
    with pytest.raises(BenchError, match=message):
        NLVR2.score_file(ScoreInputs(path, two))


def test_the_written_csv_scores_as_the_run(native, tmp_path):
    words = ["--checkpoint", native.checkpoint("nlvr2"), "--data-root", native.root("nlvr2"), "--workers", 0]
    outcome = invoke("run", "--task", "nlvr2", *words, "--output", tmp_path / "run", "--json")
    measured = {n: m["value"] for n, m in json.loads(outcome.stdout)["metrics"].items()}
    scored = NLVR2.score_file(
        ScoreInputs(tmp_path / "run" / "submission" / "predictions.csv", native.root("nlvr2") / "data" / "test1.json")
    )
    assert scored.metrics == pytest.approx(measured)
