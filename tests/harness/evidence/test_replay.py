"""`beit3-bench replay`: a run comes out again from its card alone, or says what does not."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import toy_task
from native import ROOTS, edit_json, invoke, run_words
from run_requests import run_request
from toy_task import ToyFamily, ToyTask, write_toy_data

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.replay import Overrides, replay, request_of
from beit3_bench.harness.record.rows import commit_bytes
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task


@pytest.fixture
def data(tmp_path):
    return write_toy_data(tmp_path / "data")


@pytest.fixture
def run(data, tmp_path, monkeypatch):
    """A finished run of the toy task with options of every kind."""
    toy_task.register(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    request = run_request(
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


def places(data, **more):
    """What the card of the toy run names, named again."""
    return Overrides(checkpoint=data / "toy.pth", data_root=data, **more)


def again(run, data, *words):
    """The command line that names it."""
    named = ["--checkpoint", data / "toy.pth", "--data-root", data]
    return invoke("replay", run, *named, *words)


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
    found = replay(run, output=tmp_path / "again", overrides=places(tmp_path / "data"))
    assert found.same
    assert (found.rows, found.differing_rows, found.largest) == (30, 0, {"embedding": 0.0})
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (run, tmp_path / "again"))
    assert first == second


def test_replay_without_output_leaves_nothing(run, data, tmp_path, monkeypatch):
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    assert replay(run, overrides=places(data)).same
    assert list((tmp_path / "tmp").iterdir()) == []


def test_changed_label_is_found_by_row_and_key(run, data):
    edit_row(run, "004", positive=False)
    found = replay(run, overrides=places(data))
    assert not found.same
    assert found.differing_rows == 1
    assert [dataclasses.astuple(d) for d in found.examples] == [("004", "positive", "False", "True")]


def test_number_within_the_tolerance_is_the_same_and_beyond_it_differs(run, data):
    value = RunStore.read(run).rows()["004"]["embedding"]
    edit_row(run, "004", embedding=value + np.float32(1e-3))
    near = replay(run, tolerance=2e-3, overrides=places(data))
    assert near.same
    assert near.largest["embedding"] == pytest.approx(1e-3, rel=1e-2)
    far = replay(run, tolerance=5e-4, overrides=places(data))
    assert (far.same, far.differing_rows) == (False, 1)


def test_lost_row_and_changed_metric_are_found(run, data):
    rows = list(RunStore.read(run).rows().values())
    (run / "rows" / "rank-00000.jsonl").write_bytes(commit_bytes(rows[1:]))
    content = json.loads((run / "result.json").read_text())
    content["metrics"]["accuracy"]["value"] += 1e-6
    (run / "result.json").write_text(json.dumps(content))
    found = replay(run, overrides=places(data))
    assert [(d.id, d.was, d.now) for d in found.examples] == [(rows[0]["id"], "missing", "there")]
    assert set(found.metrics) == {"accuracy"}


def test_exit_codes_and_first_line(run, data):
    same = again(run, data)
    assert same.exit_code == 0, same.stderr
    assert same.stdout.startswith("same: 30 rows and 2 metrics")
    edit_row(run, "004", positive=False)
    other = again(run, data)
    assert other.exit_code == 1
    assert other.stdout.startswith("differs: 1 of 30 rows and 0 of 2 metrics")
    assert "row 004: positive False then, True now" in other.stdout
    parsed = json.loads(again(run, data, "--json").stdout)
    assert (parsed["same"], parsed["differing_rows"]) == (False, 1)
    (data / "toy.pth").unlink()
    gone = again(run, data)
    assert (gone.exit_code, gone.stderr.count("\n")) == (2, 1)
    assert f"missing: {data / 'toy.pth'} (--checkpoint)" in gone.stderr


def test_every_missing_input_is_named_at_once(run, data, tmp_path):
    data.rename(tmp_path / "moved")
    with pytest.raises(BenchError, match=r"toy\.pth \(--checkpoint\), .*data \(--data-root\)"):
        replay(run, overrides=places(data))
    assert replay(run, overrides=places(tmp_path / "moved")).same


# ---- somebody else's folder -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [[], ["--checkpoint"], ["--data-root"]])
def test_nothing_that_a_card_names_is_opened_unasked(run, data, tmp_path, monkeypatch, named):
    opened = []
    monkeypatch.setattr(ToyFamily, "load", lambda self, *a: opened.append(a))
    monkeypatch.setattr(ToyTask, "read", lambda self, split: opened.append(split))
    words = [word for option in named for word in (option, data / "toy.pth" if option == "--checkpoint" else data)]
    done = invoke("replay", run, *words)
    assert (done.exit_code, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert opened == []
    rest = [o for o in ("--checkpoint", "--data-root") if o not in named]
    assert f"({', '.join(rest)})" in done.stderr


def test_refusal_prints_the_command_that_replays(run, data):
    done = invoke("replay", run)
    command = shlex.split(done.stderr.partition("give: beit3-bench ")[2])
    assert command == ["replay", str(run), "--checkpoint", str(data / "toy.pth"), "--data-root", str(data)]
    assert invoke(*command).exit_code == 0


def test_command_to_type_cannot_hide_a_second_one(run):
    edit_json(run / "config.json", lambda card: card.update(data_root="/data; rm -rf ~\x1b[2K"))
    line = invoke("replay", run).stderr
    assert "--data-root '/data; rm -rf ~\\x1b[2K'" in line


@dataclasses.dataclass
class FileOptions:
    """config, answers: files, one of them called a text.  bias: a number."""

    config: str | None = None
    answers: Path | None = None
    bias: float = 0.0


def test_options_that_may_be_files_are_named_again_and_numbers_are_not(run, data, monkeypatch):
    monkeypatch.setattr(ToyTask, "Options", FileOptions)
    edit_json(
        run / "config.json", lambda c: c.update(given_options={"config": "/x/cfg.py", "answers": "/y", "bias": "2"})
    )
    store = RunStore.read(run)
    with pytest.raises(
        BenchError, match=r"\(-o config, -o answers\).*-o config=/x/cfg.py -o answers=/y \(this executes .*/x/cfg.py\)"
    ):
        request_of(store, places(data))
    with pytest.raises(BenchError, match=r"\(-o answers\)"):
        request_of(store, places(data, options={"config": "mine.py"}))
    request = request_of(store, places(data, options={"config": "mine.py", "answers": "a.txt"}))
    assert request.options == {"config": "mine.py", "answers": "a.txt", "bias": "2"}
    edit_json(run / "config.json", lambda c: c.update(given_options={"config": "upernet", "answers": "upernet"}))
    store = RunStore.read(run)
    with pytest.raises(
        BenchError, match=r"\(-o answers\)"
    ):  # a word that is no file may be taken where no file is meant
        request_of(store, places(data))
    Path("upernet").write_text("")
    with pytest.raises(BenchError, match=r"\(-o config, -o answers\)"):
        request_of(store, places(data))
    with pytest.raises(BenchError, match="-o fail: the run had no such option"):
        request_of(store, places(data, options={"fail": "x"}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("limit", 0),
        ("batch_size", 0),
        ("batch_size", "many"),
        ("workers", 10**6),
        ("seed", 2**70),
        ("seed", -1),
        ("dtype", "int4"),
    ],
)
def test_card_cannot_ask_for_what_the_command_line_would_not_take(run, data, key, value):
    edit_json(run / "config.json", lambda card: card.update({key: value}))
    done = again(run, data)
    if key == "workers":  # of a larger machine
        assert done.exit_code == 0
    else:
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert f"config.json: {key} " in done.stderr


def test_fault_of_the_program_is_not_told_as_a_difference(run, data, monkeypatch):
    monkeypatch.setattr(ToyTask, "score", lambda *a: 1 / 0)
    done = again(run, data)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "cannot be replayed, internal error: ZeroDivisionError" in done.stderr


@pytest.mark.parametrize("file", ["config.json", "result.json", "rows/rank-00000.jsonl"])
def test_damaged_run_cannot_be_replayed(run, data, monkeypatch, file):
    (run / file).write_bytes((run / file).read_bytes()[:-20])
    monkeypatch.setattr(ToyFamily, "load", lambda *a: pytest.fail("computed before it was checked"))
    done = again(run, data)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert file.split("/")[-1] in done.stderr


# ---- what cannot be replayed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "named"), [("toy.pth", r"checkpoint \(.*toy.pth\)"), ("toy.json", r"data \(.*data\)")]
)
def test_changed_input_is_no_replay(run, data, tmp_path, file, named):
    text = (data / file).read_text()
    (data / file).write_text(text.replace("0.01", "0.02") if file.endswith("json") else "others")
    with pytest.raises(BenchError, match=rf"not what the run saw: {named}; restore it"):
        replay(run, output=tmp_path / "again", overrides=places(data))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("key", ["given", "given_options", "checkpoint", "seed", "fingerprints"])
def test_card_that_holds_too_little_is_refused(run, data, key):
    content = json.loads((run / "config.json").read_text())
    content.pop(key)
    (run / "config.json").write_text(json.dumps(content))
    with pytest.raises(BenchError, match=r"config\.json: holds too little"):
        replay(run, overrides=places(data))


def test_unfinished_run_and_its_own_folder_are_refused(run, data):
    with pytest.raises(BenchError, match="is the run itself"):
        replay(run, output=run, overrides=places(data))
    (run / "result.json").unlink()
    with pytest.raises(BenchError, match="is not finished"):
        replay(run, overrides=places(data))


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=[] if t in ("vqav2", "flickr30k") else pytest.mark.slow) for t in ROOTS]
)
def test_native_task_is_replayed_from_its_card_alone(native, task, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = invoke(*run_words(native, task), "--output", tmp_path / "run", "--limit", 4)
    assert done.exit_code == 0, done.stderr
    named = ["--checkpoint", native.checkpoint(task), "--data-root", native.root(task)]
    done = invoke("replay", tmp_path / "run", *named, "--json")
    assert done.exit_code == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
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
    named = ["--checkpoint", native.checkpoint("vqav2"), "--data-root", native.root("vqav2")]
    unnamed = invoke("replay", tmp_path / "run", *named)
    assert unnamed.exit_code == 2
    option = f"answer_vocab={tmp_path / 'answers.txt'}"
    assert f"-o {option}" in unnamed.stderr  # the place is found from any folder
    assert invoke("replay", tmp_path / "run", *named, "-o", option).exit_code == 0
    (tmp_path / "answers.txt").unlink()
    gone = invoke("replay", tmp_path / "run", *named, "-o", option)
    assert gone.exit_code == 2
    assert "answers.txt (-o answer_vocab)" in gone.stderr


def test_tokenizer_beside_the_checkpoint_is_found_and_another_is_named_again(native, tmp_path):
    import shutil

    words = [*run_words(native, "vqav2"), "--output", tmp_path / "run", "--limit", 4]
    shutil.copy(native.world / "beit3.spm", tmp_path / "other.spm")
    assert invoke(*words, "--tokenizer", tmp_path / "other.spm").exit_code == 0
    named = ["--checkpoint", native.checkpoint("vqav2"), "--data-root", native.root("vqav2")]
    unnamed = invoke("replay", tmp_path / "run", *named)
    assert unnamed.exit_code == 2
    assert "(--tokenizer); look at" in unnamed.stderr
    assert invoke("replay", tmp_path / "run", *named, "--tokenizer", tmp_path / "other.spm").exit_code == 0
