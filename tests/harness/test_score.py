"""`beit3-bench score`: a prediction file, or a run folder again."""

from __future__ import annotations

import json

import pytest
import toy_task
from click.testing import CliRunner
from toy_task import ToyTask, write_toy_data

from beit3_bench.harness.cli import main
from beit3_bench.harness.run import RunRequest, run_task


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy_task.register(monkeypatch.setattr)


@pytest.fixture
def finished(tmp_path):
    data = write_toy_data(tmp_path / "data")
    return run_task(RunRequest("toy", data / "toy.pth", data, device="cpu", workers=0), ToyTask).folder


def score(*words):
    return CliRunner().invoke(main, ["score", *map(str, words)])


def test_json_is_one_flat_object_at_full_precision(tmp_path):
    (tmp_path / "p.json").write_text("[1, 2]")
    result = score("--task", "toy", "--predictions", "p.json", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"accuracy": 1 / 3, "undefined": None}
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""


def test_text_shows_units_counts_and_notes(tmp_path):
    (tmp_path / "p.json").write_text("[1, 2]")
    output = score("--task", "toy", "--predictions", "p.json").stdout
    assert "accuracy   0.3333  fraction" in output
    assert "2 numbers" in output
    assert "note: scored a file" in output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give --task NAME and --predictions PATH"),
        (["--task", "toy"], "give --task NAME and --predictions PATH"),
        (["--task", "toy", "--predictions", "nope.json"], "nope.json: not found; check --predictions"),
        (["--task", "toy", "--predictions", "p.json", "--annotations", "nope"], "nope: not found; check --annotations"),
        (["--run", "nope"], "nope: not a run folder"),
        (["--run", "nope", "--task", "toy"], "leave out --task"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, words, line):
    (tmp_path / "p.json").write_text("[1, 2]")
    result = score(*words)
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_run_folder_scores_to_the_same_values(finished):
    stored = json.loads((finished / "result.json").read_text())["metrics"]
    again = json.loads(score("--run", finished, "--json").stdout)
    assert {name: value for name, value in again.items() if value is not None} == {
        name: metric["value"] for name, metric in stored.items()
    }


def test_run_over_other_data_is_refused(finished, tmp_path):
    write_toy_data(tmp_path / "data", count=41)
    result = score("--run", finished)
    assert result.exit_code == 2
    assert "the data differs from the data that the run" in result.stderr


def test_incomplete_run_is_refused_with_the_missing_rows(finished):
    shard = finished / "rows" / "rank-00000.jsonl"
    shard.write_bytes(shard.read_bytes()[:-10])
    result = score("--run", finished)
    assert result.exit_code == 2
    assert "rows without prediction" in result.stderr
