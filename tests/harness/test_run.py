"""`beit3-bench run`: what is refused before the model, what is recorded, what a second call does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import toy_task
from click.testing import CliRunner
from run_requests import run_request, with_settings
from toy_task import ToyAbility, ToyFamily, ToyReader, ToyTask, write_toy_data

from beit3_bench.backbones.family import ModelCard
from beit3_bench.errors import BenchError
from beit3_bench.harness.cli import main
from beit3_bench.harness.models import Located
from beit3_bench.harness.record import card
from beit3_bench.harness.record.schema import Result
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task
from beit3_bench.tasks.registry import get_task


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy_task.register(monkeypatch.setattr)


@pytest.fixture
def data(tmp_path):
    return write_toy_data(tmp_path / "data")


@pytest.fixture
def request_(data):
    return run_request("toy", data / "toy.pth", data, device="cpu", workers=0)


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def words(data, *more, task="toy"):
    return ["run", "--task", task, "--checkpoint", data / "toy.pth", "--data-root", data, "--workers", 0, *more]


# ---- a run ----------------------------------------------------------------------------------------------------------


def test_result_has_every_field_of_the_schema(request_):
    outcome = run_task(request_, ToyTask)
    result = json.loads((outcome.folder / "result.json").read_text())
    assert result == outcome.result
    assert set(result) == set(Result.__annotations__)
    assert outcome.folder.parent == Path("results/runs")
    assert outcome.folder.name.startswith("toy-test-toy-")
    assert (result["status"], result["world"], result["setting"], result["subset"]) == (
        "scored",
        "real",
        "fine-tuned",
        None,
    )
    assert result["counts"] == {"numbers": 40}
    assert result["chance"] == 0.5
    headline = result["metrics"]["accuracy"]
    assert (headline["value"], headline["unit"], headline["headline"], headline["decimals"]) == (
        1.0,
        "fraction",
        True,
        1,
    )
    assert headline["ci95"] == [1.0, 1.0]
    assert result["metrics"]["accuracy/kind/x"]["decimals"] == 2  # that of its declared prefix
    assert result["metrics"]["accuracy/kind/x"]["ci95"] is None
    assert "undefined" not in result["metrics"]
    assert result["notes"] == ["a toy", "undefined has no value on these samples"]
    assert result["model"]["checkpoint"] == "toy.pth"
    assert len(result["model"]["sha256"]) == 64
    assert {"fingerprints", "packages", "hardware", "command", "time", "seed", "dtype", "canary"} <= set(
        result["provenance"]
    )
    assert result["timing"]["seconds"]["total"] > 0


def test_same_call_on_a_finished_run_computes_nothing(request_, monkeypatch):
    first = run_task(request_, ToyTask)
    monkeypatch.setattr(ToyAbility, "predict", None)
    again = run_task(request_, ToyTask)
    assert again.was_finished
    assert again.result == first.result


def test_overwrite_runs_again(request_):
    first = run_task(request_, ToyTask)
    again = run_task(with_settings(request_, overwrite=True), ToyTask)
    assert not again.was_finished
    assert again.result["metrics"] == first.result["metrics"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dtype": "bf16"}, "dtype is bf16, there fp32;"),
        ({"options": {"bias": "0.5"}}, "-o bias is 0.5, there 0.0;"),
        ({"limit": 10}, "--limit is 10, there absent;"),
        ({"split": "hidden", "limit": 7}, "--split is hidden, there test; --limit is 7, there absent;"),
        ({"setting": "zero-shot"}, "setting is zero-shot, there default;"),
    ],
)
def test_other_configuration_in_the_same_folder_is_refused(request_, tmp_path, change, named):
    here = with_settings(request_, output=tmp_path / "run")
    run_task(here, ToyTask)
    with pytest.raises(BenchError, match=f"differs from this one: {named} use"):
        run_task(with_settings(here, **change), ToyTask)


def test_other_checkpoint_and_other_data_are_refused_by_name(request_, data, tmp_path):
    here = with_settings(request_, output=tmp_path / "run")
    run_task(here, ToyTask)
    (data / "toy.pth").write_bytes(b"others")
    with pytest.raises(BenchError, match="checkpoint is"):
        run_task(here, ToyTask)
    (data / "toy.pth").write_bytes(b"weights")
    records = json.loads((data / "toy.json").read_text())
    records[3]["value"] = 7.0
    (data / "toy.json").write_text(json.dumps(records))
    with pytest.raises(BenchError, match="data is"):
        run_task(here, ToyTask)


def test_different_configurations_get_folders_of_their_own(request_):
    folders = {run_task(with_settings(request_, options={"bias": b}), ToyTask).folder for b in ("0", "1", "2")}
    assert len(folders) == 3


def test_moved_data_is_the_same_data(request_, data, tmp_path):
    write_toy_data(data, images=True)
    write_toy_data(tmp_path / "elsewhere", images=True)
    here = with_settings(request_, output=tmp_path / "run")
    run_task(here, ToyTask)
    assert run_task(with_settings(here, data_root=tmp_path / "elsewhere"), ToyTask).was_finished


def test_bad_image_leaves_no_result_and_its_rows_are_resumed(request_, tmp_path, monkeypatch):
    here = with_settings(request_, output=tmp_path / "run", batch_size=4)
    collate = ToyReader.collate

    def fail(self, items):
        if items[0].id == "020":
            raise BenchError("020.jpg: image does not decode; download it again")
        return collate(self, items)

    with monkeypatch.context() as broken:
        broken.setattr(ToyReader, "collate", fail)
        with pytest.raises(BenchError, match="does not decode"):
            run_task(here, ToyTask)
    assert not (tmp_path / "run" / "result.json").exists()
    done = run_task(here, ToyTask).result
    assert done["timing"]["resumed_samples"] == 20
    assert done["counts"] == {"numbers": 40}


def test_limit_is_recorded_unless_it_holds_the_whole_split(request_):
    part = run_task(with_settings(request_, limit=7), ToyTask).result
    assert (part["subset"], part["counts"]) == ({"limit": 7}, {"numbers": 7})
    assert run_task(with_settings(request_, limit=40), ToyTask).result["subset"] is None


def test_task_chooses_its_own_subset(request_, monkeypatch):
    monkeypatch.setattr(ToyTask, "limited", lambda self, split, n: split.of(split.examples[-2 * n :]))
    assert run_task(with_settings(request_, limit=5), ToyTask).result["counts"] == {"numbers": 10}


def test_hidden_truth_gives_a_submission_file_and_no_metric(request_):
    outcome = run_task(with_settings(request_, split="hidden"), ToyTask)
    assert (outcome.result["status"], outcome.result["metrics"]) == ("to upload", {})
    assert "submission/answers.json" in outcome.result["notes"][0]
    assert len(json.loads((outcome.folder / "submission" / "answers.json").read_text())) == 40


def test_tiny_world_is_recognised_from_below(request_, data):
    assert run_task(request_, ToyTask).result["world"] == "real"
    (data.parent / "tiny_world.json").write_text("{}")
    assert run_task(with_settings(request_, overwrite=True), ToyTask).result["world"] == "tiny"


# ---- refusals before the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"checkpoint": Path("nope.pth")}, "nope.pth: checkpoint not found"),
        ({"split": "tset"}, "has no split 'tset'; did you mean 'test'"),
        ({"split": "empty"}, "split 'empty' of task toy is empty"),
        ({"options": {"bais": "1"}}, "did you mean 'bias'"),
        ({"options": {"bias": "x"}}, "'x' is not a number"),
        ({"device": "cuda:99"}, "--device cuda:99"),
    ],
)
def test_bad_request_is_refused_and_leaves_nothing(request_, tmp_path, monkeypatch, change, line):
    monkeypatch.setattr(ToyFamily, "load", None) if "device" not in change else None
    with pytest.raises(BenchError, match=line):
        run_task(with_settings(request_, **change), ToyTask)
    assert not (tmp_path / "results").exists()


def test_missing_images_and_double_ids_are_refused(request_, data):
    write_toy_data(data, images=True)
    (data / "004.jpg").unlink()
    with pytest.raises(BenchError, match=r"1 of 40 image files are missing below .*004.jpg"):
        run_task(request_, ToyTask)
    records = json.loads((data / "toy.json").read_text())
    (data / "toy.json").write_text(json.dumps([*records, records[0]]))
    with pytest.raises(BenchError, match="id 000 comes twice"):
        run_task(request_, ToyTask)


@pytest.mark.parametrize(
    ("task", "trained_for", "setting"),
    [
        ("coco-retrieval", "coco-retrieval", "fine-tuned"),
        ("flickr30k", "coco-retrieval", "zero-shot"),
        ("flickr30k", "", "zero-shot"),  # a released file that is of no task
        ("flickr30k", None, "fine-tuned"),
        ("retrieval", None, "zero-shot"),  # data of one's own
    ],
)
def test_setting_is_known_from_what_a_checkpoint_was_trained_for(task, trained_for, setting):
    assert card.setting_of(get_task(task), ModelCard("toy", "mine.pth", "", trained_for=trained_for)) == setting


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("beit3_base_patch16_384_coco_retrieval.pth", "zero-shot"),
        ("beit3_base_itc_patch16_224.pth", "zero-shot"),
        ("mine.pth", "fine-tuned"),
    ],
)
def test_setting_of_a_checkpoint_that_was_not_loaded_is_known_from_its_name(data, name, setting):
    (data / name).write_bytes(b"weights")
    known = card.card_of_file(run_request("toy", data / name, data), Located.of(data / name))
    assert card.setting_of(get_task("flickr30k"), known) == setting


# ---- the verb -------------------------------------------------------------------------------------------------------


def test_json_is_the_result_and_nothing_else(data):
    result = invoke(*words(data, "--json", "--output", "out"))
    assert result.exit_code == 0
    assert json.loads(result.stdout) == json.loads(Path("out/result.json").read_text())
    again = invoke(*words(data, "--json", "--output", "out"))
    assert json.loads(again.stdout) == json.loads(result.stdout)
    assert "was finished already" in again.stderr


def test_summary_shows_the_headline_with_interval_and_the_folder(data):
    output = invoke(*words(data, "--output", "out")).stdout
    assert "> accuracy" in output
    assert "100.0  [100.0, 100.0]   chance 50.0" in output
    assert "run folder: out" in output
    assert "note: a toy" in output


def test_list_goes_on_after_a_failure_and_ends_with_2(data):
    result = invoke(*words(data, "--json", task="needs-stack,toy"))
    assert result.exit_code == 2
    assert [r["status"] for r in json.loads(result.stdout)] == ["not installed", "scored"]
    assert "error: needs-stack: task needs-stack needs framework_of_nobody" in result.stderr
    assert result.stderr.endswith("error: 1 of 2 tasks failed: needs-stack\n")


def test_all_is_not_failed_by_a_stack_that_is_not_installed(data):
    result = invoke(*words(data, "--json", task="all"))
    assert result.exit_code == 0
    first, second = json.loads(result.stdout)
    assert (first["status"], second["status"]) == ("scored", "not installed")
    assert "pip install" in second["notes"][0]
    assert set(second) == set(Result.__annotations__)


def test_not_installed_is_forgotten_once_the_task_runs(data, monkeypatch):
    folder = Path("results/runs/needs-stack-test-toy-not-installed")
    assert invoke(*words(data, task="needs-stack")).exit_code == 2
    assert json.loads((folder / "result.json").read_text())["status"] == "not installed"
    monkeypatch.setattr(toy_task, "requires", lambda *what: None)
    assert invoke(*words(data, task="needs-stack")).exit_code == 0
    assert not folder.exists()


def test_checkpoints_and_data_per_task(data, tmp_path):
    command = ["run", "--task", "all", "--checkpoint", f"toy={data / 'toy.pth'}", "--data-root", data, "--workers", 0]
    result = invoke(*command)
    assert result.exit_code == 0
    assert "needs-stack: skipped" in result.stderr
    command[2] = "toy,needs-stack"
    assert "task needs-stack: no --checkpoint is given for it" in invoke(*command).stderr
    assert "given 2 times" in invoke(*words(data, "--data-root", tmp_path)).stderr


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["-o", "bias"], "-o 'bias': write KEY=VALUE"),
        (["-o", "bais=1"], "did you mean 'bias'"),
        (["-o", "answer-mod=rank"], "did you mean 'answer_mode'"),  # of a family
        (["--batch-size", "0"], "neither 'auto' nor a number"),
        (["--batch-size", "many"], "neither 'auto' nor a number"),
        (["--limit", "0"], "--limit"),
        (["--dtype", "int8"], "--dtype"),
        (["--output", "data/toy.json"], "is a file, but --output needs a folder"),
    ],
)
def test_bad_option_is_one_line_and_exit_code_2(data, more, line):
    result = invoke(*words(data, *more))
    assert result.exit_code == 2
    assert line in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("results").exists()


PORT = str(20000 + os.getpid() % 20000)
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", PORT]

# ---- processes ------------------------------------------------------------------------------------------------------


def program(*more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return {"args": [*more], "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def test_killed_runs_are_resumed_to_the_same_rows(data, tmp_path):
    reference = run_task(run_request("toy", data / "toy.pth", data, device="cpu", workers=0), ToyTask)
    out = tmp_path / "killed"
    command = [
        sys.executable,
        toy_task.__file__,
        *map(str, words(data, "--output", out, "-o", "slow=0.05", "--batch-size")),
    ]
    shard = out / "rows" / "rank-00000.jsonl"
    rng = random.Random(0)
    sizes = []
    for attempt in range(2):
        process = subprocess.Popen(**program(*command, str(1 + attempt)))
        before = shard.stat().st_size if shard.exists() else 0
        while (not shard.exists() or shard.stat().st_size == before) and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (out / "result.json").exists()
        sizes.append(len(RunStore.read(out).done()))
    assert sizes == sorted(sizes)
    assert sizes[0] >= 1
    done = subprocess.run(**program(*command, "16"), check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "result.json").read_text())
    assert result["metrics"] == reference.result["metrics"]
    assert result["timing"]["resumed_samples"] >= sizes[-1]
    rows, expected = RunStore.read(out).rows(), RunStore.read(reference.folder).rows()
    assert rows.keys() == expected.keys()
    assert all((rows[i]["embedding"] == expected[i]["embedding"]).all() for i in rows)


def test_several_processes_give_one_result(data, tmp_path):
    reference = run_task(run_request("toy", data / "toy.pth", data, device="cpu", workers=0), ToyTask)
    more = words(data, "--output", tmp_path / "run", "--batch-size", 3, "--device", "cpu")
    done = subprocess.run(**program(*LAUNCH, toy_task.__file__, *map(str, more)), check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "run" / "rows").iterdir()) == ["rank-00000.jsonl", "rank-00001.jsonl"]
    result = RunStore.read(tmp_path / "run").result()
    assert result["metrics"] == reference.result["metrics"]
    assert result["timing"]["processes"] == 2
    rows, expected = RunStore.read(tmp_path / "run").rows(), RunStore.read(reference.folder).rows()
    assert rows.keys() == expected.keys()


@pytest.mark.slow
def test_error_that_all_processes_know_is_told_once(data, tmp_path):
    run_task(run_request("toy", data / "toy.pth", data, device="cpu", workers=0, output=tmp_path / "run"), ToyTask)
    failed = subprocess.run(
        **program(*LAUNCH, toy_task.__file__, *map(str, words(data, "--output", tmp_path / "run", "--dtype", "bf16"))),
        check=False,
    )
    assert failed.returncode != 0
    assert failed.stderr.count("holds a run that differs") == 1
