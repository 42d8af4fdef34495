"""Command line, environment, beit3-bench.toml: which wins, what is told, and what the card keeps."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from native import invoke
from random_detector import save_detector
from toy_task import register, write_toy_data

from beit3_bench.harness.record.schema import Card
from beit3_bench.harness.record.shapes import check_shape

QUICK = ("--workers", 0, "--limit", 2)


def card(output: Path) -> dict:
    return json.loads((output / "config.json").read_text())


def run(*words, task="imagenet-linear"):
    done = invoke("run", "--task", task, *QUICK, "--device", "cpu", "--output", "out", *words)
    assert done.exit_code == 0, done.stderr
    return done


# ---- the acceptance: two lines --------------------------------------------------------------------------------------------


def test_a_run_needs_no_more_words_than_a_file_of_two_lines(two_lines, weights):
    done = invoke("run", "--task", "nlvr2", "--limit", 4)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.splitlines()[:2] == [
        f"checkpoint of nlvr2: {weights / 'nlvr2.pth'} (from {two_lines.file}: checkpoints)",
        f"data of nlvr2: {two_lines.world / 'nlvr2'} (from {two_lines.file}: data)",
    ]
    (folder,) = Path("results/runs").iterdir()
    kept = card(folder)
    assert kept["resolved_from"] == {
        "checkpoint": f"{two_lines.file}: checkpoints",
        "data_root": f"{two_lines.file}: data",
    }
    assert kept["data_root"] == str(two_lines.world / "nlvr2")
    check_shape(kept, Card, "config.json", "mend it")


def test_it_is_the_run_that_the_long_command_makes(two_lines, weights, here):
    invoke("run", "--task", "nlvr2", "--limit", 4)
    two_lines.file.unlink()
    words = ["--checkpoint", weights / "nlvr2.pth", "--data-root", two_lines.world / "nlvr2"]
    done = invoke("run", "--task", "nlvr2", "--limit", 4, *words)
    assert "was finished already" in done.stdout
    assert done.stderr == ""


@pytest.mark.usefixtures("two_lines")
def test_all_tasks_that_have_a_checkpoint_are_run(native, weights, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = invoke("run", "--task", "all", *QUICK, "--json")
    assert done.exit_code == 0, done.stderr
    asked = ["nlvr2", "coco-retrieval", "sugarcrepe", "winoground", "aro", "imagenet-linear"]
    assert [result["task"] for result in json.loads(done.stdout)] == asked
    assert f"vqav2: skipped, {weights}: is a folder that has no checkpoint for task vqav2" in done.stderr


@pytest.mark.slow
def test_detection_needs_no_more_words_either(two_lines, weights):
    save_detector(weights / "model_final.pth")
    done = invoke("run", "--task", "coco-det")
    assert done.exit_code == 0, done.stderr
    assert f"checkpoint of coco-det: {weights / 'model_final.pth'} (from {two_lines.file}: checkpoints)" in done.stderr
    assert f"data of coco-det: {two_lines.world / 'coco'} (from {two_lines.file}: data)" in done.stderr
    (folder,) = Path("results/runs").iterdir()
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["world"], result["subset"]) == ("scored", "tiny", None)
    assert "bbox/AP" in result["metrics"]


# ---- who wins -------------------------------------------------------------------------------------------------------------


def test_command_line_wins_over_environment_over_file(two_lines, here, monkeypatch):
    two_lines.file.write_text(
        two_lines.file.read_text() + 'workers = 0\ndtype = "fp16"\nseed = 3\n'.replace("seed = 3\n", "")
    )
    monkeypatch.setenv("BEIT3_BENCH_DTYPE", "bf16")
    done = run("--dtype", "fp32")
    assert card(here / "out")["dtype"] == "fp32"
    assert card(here / "out")["resolved_from"]["dtype"] == "command line"
    assert "dtype" not in done.stderr
    done = run("--overwrite")
    assert card(here / "out")["dtype"] == "bf16"
    assert card(here / "out")["resolved_from"]["dtype"] == "$BEIT3_BENCH_DTYPE"
    assert "dtype: bf16 (from $BEIT3_BENCH_DTYPE)\n" in done.stderr
    monkeypatch.delenv("BEIT3_BENCH_DTYPE")
    two_lines.file.write_text(two_lines.file.read_text().replace("fp16", "bf16"))
    done = run()
    assert "was finished already" in done.stdout
    assert f"dtype: bf16 (from {two_lines.file})\n" in done.stderr


def test_places_too(two_lines, native, here, monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_CHECKPOINT", str(native.checkpoints))
    monkeypatch.setenv("BEIT3_BENCH_DATA_ROOT", str(native.world / "imagenet"))
    run()
    assert card(here / "out")["checkpoint"] == str(native.checkpoint("imagenet-linear"))
    run("--data-root", native.world, "--checkpoint", "weights", "--overwrite")
    kept = card(here / "out")
    assert kept["checkpoint"] == str(here / "weights" / "imagenet-linear.pth")
    assert kept["data_root"] == str(native.world / "imagenet")
    assert {kept["resolved_from"][name] for name in ("checkpoint", "data_root")} == {"command line"}


def test_of_two_files_the_nearer_wins_key_by_key(two_lines, here, tmp_path):
    own = tmp_path / "own" / "beit3-bench" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text('data = "/nowhere"\ntokenizer = "/nowhere.spm"\ndtype = "bf16"\n')
    two_lines.file.write_text(two_lines.file.read_text() + 'dtype = "fp32"\n')
    run()
    kept = card(here / "out")
    assert kept["dtype"] == "fp32"
    assert kept["resolved_from"]["tokenizer"] == str(own)
    assert kept["resolved_from"]["dtype"] == str(two_lines.file)


def test_a_task_wins_over_its_data_set_and_that_over_the_root(native, weights, here):
    file = here / "beit3-bench.toml"
    text = f'[checkpoints]\nroot = "weights"\n[data]\nroot = "/nowhere"\nimagenet = "{native.world}/imagenet"\n'
    file.write_text(text)
    run()
    assert card(here / "out")["resolved_from"]["data_root"] == f"{file}: data.imagenet"
    (here / "mine").symlink_to(native.world / "imagenet")
    file.write_text(f'{text}imagenet-linear = "mine"\n')
    run("--overwrite")
    assert card(here / "out")["resolved_from"]["data_root"] == f"{file}: data.imagenet-linear"
    assert card(here / "out")["data_root"] == str(here / "mine")


def test_two_keys_that_disagree_are_refused(here):
    (here / "beit3-bench.toml").write_text('[data]\ncoco = "a"\nmscoco = "b"\n')
    done = invoke("run", "--task", "coco-det", "--checkpoint", "x.pth")
    assert done.exit_code == 2
    assert (
        "data.coco and data.mscoco say different places for the data of coco-det; leave one of them out" in done.stderr
    )


def test_runs_are_made_below_the_folder_for_output(two_lines, here, monkeypatch):
    two_lines.file.write_text(two_lines.file.read_text() + 'output = "kept/runs"\n')
    words = ["run", "--task", "imagenet-linear", *QUICK]
    assert invoke(*words).exit_code == 0
    (folder,) = (here / "kept" / "runs").iterdir()
    assert card(folder)["resolved_from"]["output"] == str(two_lines.file)
    assert [Path(run["path"]).name for run in json.loads(invoke("runs", "--json").stdout)] == [folder.name]
    assert "imagenet-linear.pth" in invoke("table").stdout
    assert json.loads(invoke("runs", "--runs", "results/runs", "--json").stdout) == []
    monkeypatch.setenv("BEIT3_BENCH_OUTPUT", "elsewhere")
    assert invoke(*words).exit_code == 0
    assert [path.name for path in (here / "elsewhere").iterdir()] == [folder.name]
    assert not (here / "results").exists()


def test_caches_of_the_file_are_used_and_those_of_the_environment_win(two_lines, here, monkeypatch):
    two_lines.file.write_text(two_lines.file.read_text() + 'image-cache = "kept/images"\n')
    run()
    assert any((here / "kept" / "images").iterdir())
    monkeypatch.setenv("BEIT3_BENCH_IMAGE_CACHE", str(here / "other"))
    run("--overwrite")
    assert any((here / "other").iterdir())


# ---- nothing said, and bad words --------------------------------------------------------------------------------------------


def test_nothing_configured_is_one_line_with_the_three_ways(here):
    done = invoke("run", "--task", "coco-det")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    for way in ("add --checkpoint PATH --data-root PATH", "beit3-bench.toml (beit3-bench init)", "try it out"):
        assert way in done.stderr
    assert not list(here.iterdir())
    verify = invoke("data", "verify", "--task", "nlvr2")
    assert (verify.exit_code, verify.stderr.count("\n")) == (2, 1)
    assert "no --data-root is given for it; add --data-root PATH" in verify.stderr


def test_a_folder_without_the_data_is_the_readers_where_it_was_typed_for_a_task(weights, here):
    (here / "empty").mkdir()
    words = ["run", "--checkpoint", "weights", "--data-root", "empty"]
    done = invoke(*words, "--task", "nlvr2")
    assert done.exit_code == 2
    assert "empty" in done.stderr
    assert "test1.json" in done.stderr
    done = invoke("run", "--task", "all", "--checkpoint", weights / "nlvr2.pth", "--data-root", "empty")
    assert done.exit_code == 2
    assert (
        "no task has both a --checkpoint and a --data-root; empty: has no data of vqav2: neither its files"
        in done.stderr
    )
    (here / "beit3-bench.toml").write_text('data = "empty"\n')
    done = invoke("run", "--checkpoint", "weights", "--task", "nlvr2")
    assert "empty: has no data of nlvr2: neither its files" in done.stderr


def test_all_without_anything_says_so(here):
    done = invoke("run", "--task", "all")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "no task has both a --checkpoint and a --data-root; " in done.stderr


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('devcie = "cpu"\n', ":1: no key 'devcie'; did you mean 'device'?"),
        ("workers = 1.5\n", ":1: workers: 1.5 is not"),
    ],
)
@pytest.mark.parametrize(
    "verb", [("run", "--task", "nlvr2"), ("data", "verify", "--task", "nlvr2"), ("finetune", "--task", "nlvr2")]
)
def test_a_bad_file_is_one_line_in_every_verb(here, verb, text, line):
    (here / "beit3-bench.toml").write_text(text)
    done = invoke(*verb)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {here / 'beit3-bench.toml'}{line}")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("two_lines")
def test_a_bad_value_in_the_environment_is_one_line(monkeypatch):
    monkeypatch.setenv("BEIT3_BENCH_WORKERS", "many")
    done = invoke("run", "--task", "nlvr2")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "many" in done.stderr


# ---- the other verbs --------------------------------------------------------------------------------------------------------


def test_verify_finds_the_data(two_lines):
    done = invoke("data", "verify", "--task", "nlvr2")
    assert f"data of nlvr2: {two_lines.world / 'nlvr2'} (from {two_lines.file}: data)" in done.stderr
    assert done.stdout.startswith(f"nlvr2 · {two_lines.world / 'nlvr2'}")
    assert "dtype" not in done.stderr


def test_finetune_and_probe_find_the_data(two_lines, native):
    two_lines.file.write_text(two_lines.file.read_text() + f'tokenizer = "{native.world}/beit3.spm"\ndevice = "cpu"\n')
    words = ["finetune", "--task", "nlvr2", "--preset", "tiny", "--from-scratch", "--dry-run"]
    done = invoke(*words)
    assert done.exit_code == 0, done.stderr
    assert f"data of nlvr2: {two_lines.world / 'nlvr2'} (from {two_lines.file}: data)" in done.stderr
    assert f"tokenizer: {native.world}/beit3.spm (from {two_lines.file})" in done.stderr
    done = invoke("probe", "--checkpoint", native.checkpoints / "retrieval.pth", "--k", 1, "--workers", 0)
    assert done.exit_code == 0, done.stderr
    assert f"data of imagenet: {two_lines.world / 'imagenet'} (from {two_lines.file}: data)" in done.stderr


@pytest.mark.parametrize("said", ["file", "environment"])
def test_a_tokenizer_for_all_runs_is_none_of_families_that_read_another_kind(
    two_lines, native, tmp_path, monkeypatch, said
):
    from beit3_bench.backbones.registry import get_family

    spm = native.world / "beit3.spm"
    if said == "file":
        two_lines.file.write_text(two_lines.file.read_text() + f'tokenizer = "{spm}"\n')
    else:
        monkeypatch.setenv("BEIT3_BENCH_TOKENIZER", str(spm))
    folder = tmp_path / "vlmo"
    get_family("vlmo").write_specimens(folder, ["There is a red shape in the left image."])
    words = ["run", "--task", "nlvr2", "--checkpoint", folder / "nlvr2.pt", "--limit", 2, "--workers", 0]
    done = invoke(*words, "--output", tmp_path / "a")
    assert done.exit_code == 0, done.stderr
    typed = invoke(*words, "--output", tmp_path / "b", "--tokenizer", spm)
    assert typed.exit_code == 2
    assert "give the vocab.txt of bert-base-uncased" in typed.stderr


def test_a_task_of_another_package_has_its_data_where_it_is_said(here, monkeypatch):
    register(monkeypatch.setattr)
    data = write_toy_data(here / "data")
    (here / "beit3-bench.toml").write_text(f'data = "data"\ncheckpoints = "{data}/toy.pth"\n')
    done = invoke("run", "--task", "toy", "--workers", 0)
    assert done.exit_code == 0, done.stderr
    assert os.path.isdir("results/runs")
