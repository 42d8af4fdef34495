"""`--log-to`: what stands in the trackers afterwards, read back from their own files; work that goes on goes on there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from native import invoke, run_words
from training_cases import mini_world, one_thread, request_for, train

from beit3_bench.errors import BenchError
from beit3_bench.harness import tracking
from beit3_bench.harness.termination import Terminated, heeding_sigterm
from beit3_bench.harness.tracking import IDS, MLFLOW, TENSORBOARD, WANDB, Progress, Trackers, check_trackers
from beit3_bench.harness.training import loop
from beit3_bench.harness.training.journal import read_table


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def events_of(folder: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def hyperparameters_of(folder: Path):
    import yaml

    files = list((folder / "tensorboard").glob("*/hparams.yml"))
    assert len(files) == 1  # of the beginning, not of the resumed ones
    return yaml.safe_load(files[0].read_text())


def test_a_training_that_was_interrupted_goes_on_in_the_same_events(world, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    options, update = {"steps": "6"}, loop.TrainingLoop._update

    def struck(self, step, batches):
        if step == 3:
            os.kill(os.getpid(), 15)
        return update(self, step, batches)

    monkeypatch.setattr(loop.TrainingLoop, "_update", struck)
    request = request_for(world, tmp_path / "x", options=options, log_to=(TENSORBOARD,))
    with pytest.raises(Terminated), heeding_sigterm():
        train(request)
    monkeypatch.undo()
    done = train(request_for(world, tmp_path / "x", options=options, log_to=(TENSORBOARD,), resume=True))
    scalars, log = events_of(tmp_path / "x"), read_table(tmp_path / "x" / "log.csv")
    for key in ("loss", "lr", "grad_norm"):
        assert scalars[f"log/{key}"] == [(int(r["step"]), pytest.approx(float(r[key]), rel=1e-6)) for r in log]
    assert [step for step, _ in scalars["log/loss"]] == [1, 2, 3, 4, 5, 6]
    assert scalars["validation/mean_recall"] == [(6, pytest.approx(done["best"]["value"], rel=1e-6))]
    settings = hyperparameters_of(tmp_path / "x")
    assert (settings["task"], settings["recipe/steps"], settings["recipe/batch"]) == ("flickr30k", 6, 8)


def test_a_run_leaves_its_card_its_progress_and_its_metrics(native, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(tracking, "SECONDS", 0.0)
    words = [
        *run_words(native, "coco-retrieval"),
        "--limit",
        12,
        "--batch-size",
        8,
        "--output",
        tmp_path / "run",
        "--json",
    ]
    done = invoke(*words, "--log-to", "tensorboard")
    assert done.exit_code == 0, done.output
    result, scalars = json.loads(done.stdout), events_of(tmp_path / "run")
    rows = [step for step, _ in scalars["progress/rows"]]
    assert rows == sorted(rows)
    assert rows[-1] == max(step for step, _ in scalars["metrics/TR@1"]) > 12  # images and their texts
    assert all(speed > 0 for _, speed in scalars["progress/rows_per_second"])
    for name, metric in result["metrics"].items():
        assert scalars[f"metrics/{name}"][0][1] == pytest.approx(metric["value"], rel=1e-6)
        if metric["ci95"]:
            assert scalars[f"ci95/{name}/low"][0][1] == pytest.approx(metric["ci95"][0], rel=1e-6, abs=1e-9)
    card = hyperparameters_of(tmp_path / "run")
    assert (card["task"], card["protocol"], card["dtype"]) == ("coco-retrieval", "dual encoder", "fp32")
    assert card["fingerprints/checkpoint"] == result["provenance"]["fingerprints"]["checkpoint"]
    again = invoke(*words, "--log-to", "tensorboard", "--overwrite")
    assert again.exit_code == 0
    assert len(events_of(tmp_path / "run")["metrics/TR@1"]) == 1


def test_without_being_asked_a_run_logs_nowhere(native, tmp_path):
    done = invoke(*run_words(native, "coco-retrieval"), "--limit", 4, "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert not {IDS, "tensorboard", "wandb"} & {p.name for p in (tmp_path / "run").iterdir()}


def test_mlflow_takes_the_whole_work_as_one_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    check_trackers([MLFLOW])
    with Trackers(tmp_path, [MLFLOW], {"task": "x", "recipe": {"lr": 0.1}}) as trackers:
        trackers.log({"metrics/TR@1": 0.5, "log/loss": 2.0}, 1)
    resumed = Trackers(tmp_path, [MLFLOW], {"task": "x", "recipe": {"lr": 0.2}}, 1)
    resumed.log({"log/loss": 1.0}, 2)
    resumed.close(whole=False)
    run = mlflow.MlflowClient().get_run(json.loads((tmp_path / IDS).read_text())[MLFLOW])
    assert run.info.run_name == tmp_path.name
    assert run.info.status == "FAILED"  # it did not come to its end
    assert run.data.params == {"task": "x", "recipe/lr": "0.1"}
    assert run.data.metrics == {"metrics/TR_at_1": 0.5, "log/loss": 1.0}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "log/loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.0), (2, 1.0)]
    (tmp_path / IDS).write_text(json.dumps({MLFLOW: "0" * 32}))
    with pytest.raises(BenchError, match=r"--log-to mlflow: .*remove .*trackers\.json"):
        Trackers(tmp_path, [MLFLOW], {})


def test_weights_and_biases_stay_in_the_folder_offline_and_need_a_login_otherwise(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(BenchError, match="there is no login here; give `wandb login`, or set WANDB_MODE=offline"):
        check_trackers([WANDB])
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_trackers([WANDB])
    for step in (0, 1):
        with Trackers(tmp_path, [WANDB], {"task": "x"}, step) as trackers:
            trackers.log({"log/loss": 1.0}, step + 1)
    name = json.loads((tmp_path / IDS).read_text())[WANDB]
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))) >= 1


# ---- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
@pytest.mark.parametrize("verb", ["run", "finetune"])
def test_a_tracker_that_is_not_installed_is_one_line_before_anything_starts(name, verb, native, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    words = {
        "run": [*run_words(native, "coco-retrieval"), "--output", tmp_path / "x"],
        "finetune": ["finetune", "--task", "coco-retrieval", "--data-root", native.root("coco-retrieval"), "--preset", "tiny",
                     "--output", tmp_path / "x"],
    }[verb]  # fmt: skip
    done = invoke(*words, "--log-to", name)
    assert done.exit_code == 2
    assert f"error: --log-to {name} needs {name}" in done.stderr
    assert f"install it with: pip install '{name}>=" in done.stderr
    assert not (tmp_path / "x").exists()


class Service:
    """A tracker whose service is gone after so many calls."""

    def __init__(self, calls):
        self.calls, self.logged, self.tracker = calls, [], SimpleNamespace(info=SimpleNamespace(run_id="abc"))

    def start(self):
        self.log({}, None)

    store_init_configuration = finish = lambda self, *values: None

    def log(self, values, step):
        if len(self.logged) >= self.calls:
            raise ConnectionError("no route to host\nand more")
        self.logged.append((step, values))


def test_a_service_that_goes_away_is_told_once_and_the_work_goes_on(tmp_path, monkeypatch, capsys):
    service = Service(2)
    monkeypatch.setattr("accelerate.tracking.MLflowTracker", lambda *a, **k: service)
    with Trackers(tmp_path, [MLFLOW], {}) as trackers:
        for step in range(1, 5):
            trackers.log({"log/loss": 1.0 / step, "note": "words are no numbers", "flag": True}, step)
    assert service.logged[1:] == [(1, {"log/loss": 1.0})]
    assert capsys.readouterr().err == "warning: mlflow takes no more (no route to host); this goes on without it\n"
    assert json.loads((tmp_path / IDS).read_text()) == {MLFLOW: "abc"}


def test_a_service_that_is_not_there_at_the_beginning_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.MLflowTracker", lambda *a, **k: Service(0))
    with pytest.raises(BenchError, match="--log-to mlflow: no route to host; check MLFLOW_TRACKING_URI, or leave"):
        Trackers(tmp_path, [MLFLOW], {})
    assert not (tmp_path / IDS).exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"mlflow": "../x"}', '{"else": "a"}', '{"mlflow": 3}'])
def test_a_damaged_list_of_runs_is_named(text, tmp_path):
    (tmp_path / IDS).write_text(text)
    with pytest.raises(BenchError, match=r"trackers\.json: damaged .*; remove it"):
        Trackers(tmp_path, [], {})


def test_progress_is_logged_now_and_then(tmp_path, monkeypatch):
    clock = iter([0.0, 4.0, 12.0, 12.0, 13.0])
    monkeypatch.setattr(tracking.time, "monotonic", lambda: next(clock))
    logged = []
    progress = Progress(SimpleNamespace(log=lambda values, step: logged.append((step, values))), 100)
    for rows in (10, 50, 5):
        progress.advance(rows)
    assert logged == [(160, {"progress/rows": 160, "progress/rows_per_second": 5.0})]
