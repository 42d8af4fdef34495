"""`beit3-bench score`: a prediction file, or a run folder again."""

from __future__ import annotations

import json

import pytest
import toy_task
from click.testing import CliRunner
from run_requests import run_request
from toy_task import ToyTask, write_toy_data

from beit3_bench.harness.cli import main
from beit3_bench.harness.record.rows import commit_bytes
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy_task.register(monkeypatch.setattr)


@pytest.fixture
def finished(tmp_path):
    data = write_toy_data(tmp_path / "data")
    return run_task(run_request("toy", data / "toy.pth", data, device="cpu", workers=0), ToyTask).folder


def score(*words):
    return CliRunner().invoke(main, ["score", *map(str, words)])


def test_json_is_one_flat_object_at_full_precision(tmp_path):
    (tmp_path / "p.json").write_text("[1, 2]")
    result = score("--task", "toy", "--predictions", "p.json", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"accuracy": 1 / 3, "undefined": None}
    assert result.stdout.count("\n") == 1
    assert result.stderr == "note: scored a file\n"


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
    again = json.loads(score("--run", finished, "--data-root", "data", "--json").stdout)
    assert {name: value for name, value in again.items() if value is not None} == {
        name: metric["value"] for name, metric in stored.items()
    }


def test_run_over_other_data_is_refused(finished, tmp_path):
    write_toy_data(tmp_path / "data", count=41)
    result = score("--run", finished, "--data-root", "data")
    assert result.exit_code == 2
    assert "the data differs from the data that the run" in result.stderr


def test_incomplete_run_is_refused_with_the_missing_rows(finished):
    shard = finished / "rows" / "rank-00000.jsonl"
    shard.write_bytes(shard.read_bytes()[:-10])
    result = score("--run", finished, "--data-root", "data")
    assert result.exit_code == 2
    assert "rank-00000.jsonl: damaged or edited (nothing behind its row 32 can be read)" in result.stderr
    (finished / "result.json").unlink()
    result = score("--run", finished, "--data-root", "data")
    assert result.exit_code == 2
    assert "rows without prediction" in result.stderr


def test_data_that_a_card_names_is_not_opened_unasked(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTask, "read", lambda *a: pytest.fail("opened"))
    result = score("--run", finished)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"beit3-bench score --run {finished} --data-root {tmp_path / 'data'}" in result.stderr


def test_rows_that_the_task_did_not_make_are_told_as_such(finished):
    shard = finished / "rows" / "rank-00000.jsonl"
    rows = [{k: v for k, v in row.items() if k != "positive"} for row in RunStore.read(finished).rows().values()]
    shard.write_bytes(commit_bytes(rows))
    result = score("--run", finished, "--data-root", "data")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "its rows are not such as task toy makes (KeyError: 'positive')" in result.stderr


def test_rows_that_are_lost_or_of_no_sample_are_told_with_the_mend_of_a_run(finished):
    shard = finished / "rows" / "rank-00000.jsonl"
    rows = list(RunStore.read(finished).rows().values())
    for stored, line in (
        (rows[1:], "1 of 40 rows without prediction"),
        ([*rows, {**rows[0], "id": "stranger"}], "1 unknown rows (stranger)"),
    ):
        shard.write_bytes(commit_bytes(stored))
        result = score("--run", finished, "--data-root", "data")
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert line in result.stderr
        assert result.stderr.endswith("it was edited or damaged, run again with --overwrite\n")


@pytest.mark.parametrize(
    ("task", "option", "taken"),
    [
        ("nlvr2", ["--iou-type", "bbox"], "--annotations, --allow-partial"),
        ("nlvr2", ["--zero-based"], "--annotations, --allow-partial"),
        ("nlvr2", ["--questions", "questions.json"], "--annotations, --allow-partial"),
        ("coco-retrieval", ["--annotations", "captions.json"], "nothing"),
        ("coco-det", ["--allow-partial"], "--annotations, --iou-type, --ap-backend"),
        ("vqav2", ["--ap-backend", "own"], "--annotations, --questions, --allow-partial"),
    ],
)
def test_files_and_switches_that_a_task_does_not_take_are_refused(tmp_path, monkeypatch, task, option, taken):
    monkeypatch.undo()  # the real tasks
    (tmp_path / "predictions").write_text("")
    done = CliRunner().invoke(main, ["score", "--task", task, "--predictions", str(tmp_path / "predictions"), *option])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert f"task {task} takes no {option[0]}; leave it out (beside --predictions it takes {taken})" in done.stderr
