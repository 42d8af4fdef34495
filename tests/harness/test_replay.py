"""`beit3-bench replay`: a run comes out again from its card alone, or says what does not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import toy_task
from click.testing import CliRunner
from native import ROOTS, invoke, run_words
from toy_task import ToyTask, write_toy_data

from beit3_bench.backbones.errors import BenchError
from beit3_bench.harness.cli import main
from beit3_bench.harness.replay import Overrides, replay
from beit3_bench.harness.rows import commit_bytes
from beit3_bench.harness.run import RunRequest, run_task
from beit3_bench.harness.store import RunStore


@pytest.fixture
def data(tmp_path):
    return write_toy_data(tmp_path / "data")


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """A finished run of the toy task with options of every kind."""
    toy_task.register(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    request = RunRequest(
        "toy",
        Path("data/toy.pth"),
        Path("data"),
        device="cpu",
        workers=0,
        limit=30,
        batch_size=7,
        seed=5,
        setting="zero-shot",
        options={"bias": "0.25"},
        output=tmp_path / "run",
    )
    return run_task(request, ToyTask).folder


def edit_row(folder, name, **values):
    """Change a stored row, with a marker that fits."""
    rows = list(RunStore.read(folder).rows().values())
    for row in rows:
        row.update(values if row["id"] == name else {})
    shard = folder / "rows" / "rank-00000.jsonl"
    shard.write_bytes(commit_bytes(rows))


def test_run_comes_out_again_from_its_card_in_another_folder(run, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the card must not depend on where the run was started
    found = replay(run, output=tmp_path / "again")
    assert found.same
    assert (found.rows, found.differing_rows, found.largest) == (30, 0, {"embedding": 0.0})
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (run, tmp_path / "again"))
    assert first == second


def test_replay_without_output_leaves_nothing(run, tmp_path, monkeypatch):
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert replay(run).same
    assert list((tmp_path / "tmp").iterdir()) == []


def test_changed_label_is_found_by_row_and_key(run):
    edit_row(run, "004", positive=False)
    found = replay(run)
    assert not found.same
    assert found.differing_rows == 1
    assert [dataclasses.astuple(d) for d in found.examples] == [("004", "positive", "False", "True")]


def test_number_within_the_tolerance_is_the_same_and_beyond_it_differs(run):
    value = RunStore.read(run).rows()["004"]["embedding"]
    edit_row(run, "004", embedding=value + np.float32(1e-3))
    near = replay(run, tolerance=2e-3)
    assert near.same
    assert near.largest["embedding"] == pytest.approx(1e-3, rel=1e-2)
    far = replay(run, tolerance=5e-4)
    assert (far.same, far.differing_rows) == (False, 1)


def test_lost_row_and_changed_metric_are_found(run):
    rows = list(RunStore.read(run).rows().values())
    (run / "rows" / "rank-00000.jsonl").write_bytes(commit_bytes(rows[1:]))
    content = json.loads((run / "result.json").read_text())
    content["metrics"]["accuracy"]["value"] += 1e-6
    (run / "result.json").write_text(json.dumps(content))
    found = replay(run)
    assert [(d.id, d.was, d.now) for d in found.examples] == [(rows[0]["id"], "missing", "there")]
    assert set(found.metrics) == {"accuracy"}


def test_exit_codes_and_first_line(run, data):
    same = CliRunner().invoke(main, ["replay", str(run)])
    assert same.exit_code == 0, same.stderr
    assert same.stdout.startswith("same: 30 rows and 2 metrics")
    edit_row(run, "004", positive=False)
    other = CliRunner().invoke(main, ["replay", str(run)])
    assert other.exit_code == 1
    assert other.stdout.startswith("differs: 1 of 30 rows and 0 of 2 metrics")
    assert "row 004: positive False then, True now" in other.stdout
    parsed = json.loads(CliRunner().invoke(main, ["replay", str(run), "--json"]).stdout)
    assert (parsed["same"], parsed["differing_rows"]) == (False, 1)
    (data / "toy.pth").unlink()
    gone = CliRunner().invoke(main, ["replay", str(run)])
    assert (gone.exit_code, gone.stderr.count("\n")) == (2, 1)
    assert f"missing: {data / 'toy.pth'} (--checkpoint)" in gone.stderr


def test_every_missing_input_is_named_at_once(run, data, tmp_path):
    data.rename(tmp_path / "moved")
    with pytest.raises(BenchError, match=r"toy\.pth \(--checkpoint\), .*data \(--data-root\)"):
        replay(run)
    places = Overrides(checkpoint=tmp_path / "moved" / "toy.pth", data_root=tmp_path / "moved")
    assert replay(run, overrides=places).same


@pytest.mark.parametrize(
    ("file", "named"), [("toy.pth", r"checkpoint \(.*toy.pth\)"), ("toy.json", r"data \(.*data\)")]
)
def test_changed_input_is_no_replay(run, data, tmp_path, file, named):
    text = (data / file).read_text()
    (data / file).write_text(text.replace("0.01", "0.02") if file.endswith("json") else "others")
    with pytest.raises(BenchError, match=rf"not what the run saw: {named}; restore it"):
        replay(run, output=tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("key", ["given", "given_options", "checkpoint", "seed", "fingerprints"])
def test_card_that_holds_too_little_is_refused(run, key):
    content = json.loads((run / "config.json").read_text())
    content.pop(key)
    (run / "config.json").write_text(json.dumps(content))
    with pytest.raises(BenchError, match=r"config\.json: holds too little"):
        replay(run)


def test_unfinished_run_and_its_own_folder_are_refused(run):
    with pytest.raises(BenchError, match="is the run itself"):
        replay(run, output=run)
    (run / "result.json").unlink()
    with pytest.raises(BenchError, match="is not finished"):
        replay(run)


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[] if t in ("vqav2", "flickr30k") else pytest.mark.slow) for t in ROOTS]
)
def test_native_task_is_replayed_from_its_card_alone(native, task, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = invoke(*run_words(native, task), "--output", tmp_path / "run", "--limit", 4)
    assert done.exit_code == 0, done.stderr
    again = invoke("replay", tmp_path / "run", "--json")
    assert again.exit_code == 0, again.stdout + again.stderr
    found = json.loads(again.stdout)
    assert found["same"]
    assert found["rows"] >= 4
    assert found["compared_metrics"] > 0


def test_option_files_are_found_again(native, tmp_path, monkeypatch):
    from beit3_bench.tasks.vqav2 import VQAv2

    vocabulary = VQAv2(native.root("vqav2")).vocabulary()
    lines = [json.dumps({"answer": answer, "label": n}) for n, answer in enumerate(vocabulary)]
    (tmp_path / "answers.txt").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    words = [*run_words(native, "vqav2"), "--output", tmp_path / "run", "--limit", 4]
    assert invoke(*words, "-o", "answer_vocab=answers.txt").exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert invoke("replay", tmp_path / "run").exit_code == 0
    (tmp_path / "answers.txt").unlink()
    gone = invoke("replay", tmp_path / "run")
    assert gone.exit_code == 2
    assert "answers.txt (-o answer_vocab)" in gone.stderr
