"""Fully sharded training (FSDP) over gloo: equal to one process, to data-parallel training, and resumable from either."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import environment, run_ranks, strike
from training_cases import finetune_words, furthest, launched, mini_world, one_thread, request_for, train, weights

from beit3_bench.errors import BenchError
from beit3_bench.harness.training import loop, sharding
from beit3_bench.harness.training.journal import read_table
from beit3_bench.harness.training.state import BEST, LAST, STATE, read_state

FIVE = {"steps": "5", "batch": "9", "lr": "1e-4"}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def together(request, processes=2, *extra):
    done = launched(request, processes, "--parallel", "fsdp", *extra)
    assert done.returncode == 0, done.stderr[-3000:]


def same_training(one: Path, many: Path) -> None:
    a, b = (read_table(folder / "log.csv") for folder in (one, many))
    for key in ("loss", "grad_norm"):
        assert [float(r[key]) for r in b] == pytest.approx([float(r[key]) for r in a], rel=1e-5)
    for name in (LAST, BEST):
        assert furthest(weights(one, name), weights(many, name), noise=False) < 1e-5
    a, b = (read_table(folder / "validation.csv") for folder in (one, many))
    assert a == b


@pytest.mark.parametrize(
    ("task", "processes"),
    [("flickr30k", 2), *[pytest.param(t, n, marks=pytest.mark.slow) for t, n in (("vqav2", 2), ("flickr30k", 3))]],
)
def test_sharded_processes_equal_one_with_the_same_global_batch(task, processes, world, tmp_path):
    """Layer decay, clipping, averaged weights, accumulation and activation checkpointing all on."""
    options = {**FIVE, "clip_grad": "0.5", "ema_decay": "0.9", "layer_decay": "0.7"}
    if task != "flickr30k":  # its loss is over the whole micro-batch, so that accumulation changes it
        options |= {"micro_batch": "3"}
    train(request_for(world, tmp_path / "one", task, {**options, "checkpoint_activations": "false"}))
    many = request_for(world, tmp_path / "many", task, {**options, "checkpoint_activations": "true"})
    together(many, processes)
    same_training(tmp_path / "one", tmp_path / "many")
    a, b = (read_state(tmp_path / name / STATE) for name in ("one", "many"))
    assert {n: v.shape for n, v in a["model"].items()} == {n: v.shape for n, v in b["model"].items()}
    assert furthest(a["average"], b["average"]) < 1e-5
    assert a["optimizer"]["param_groups"] == b["optimizer"]["param_groups"]
    for index, values in a["optimizer"]["state"].items():
        for key, value in values.items():
            assert torch.allclose(value, b["optimizer"]["state"][index][key], rtol=1e-3, atol=1e-7), (index, key)


@pytest.mark.slow
def test_a_state_goes_on_sharded_or_whole(world, tmp_path, monkeypatch):
    """FSDP on two processes, killed; one process, interrupted; FSDP again to the end = straight."""
    options = {"steps": "18", "save_steps": "3", "lr": "1e-4", "ema_decay": "0.9"}
    folder = tmp_path / "moved"
    request = request_for(world, folder, options=options)
    command = [sys.executable, "-m", "beit3_bench.harness", *finetune_words(request), "--parallel", "fsdp"]
    run_ranks([command] * 2, strike(folder / STATE, 1))
    first = read_state(folder / STATE)["step"]
    assert 3 <= first < 14
    update = loop.TrainingLoop._update

    def interrupted(self, step, batches):
        if step == first + 4:
            raise KeyboardInterrupt
        return update(self, step, batches)

    monkeypatch.setattr(loop.TrainingLoop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(request, resume=True))
    monkeypatch.undo()
    assert read_state(folder / STATE)["step"] == first + 3
    for finished in run_ranks([[*command, "--resume"]] * 2):
        assert finished.code == 0, finished.err
    train(dataclasses.replace(request, output=tmp_path / "straight"))
    assert furthest(weights(folder), weights(tmp_path / "straight"), noise=False) < 1e-5
    log = [[row["step"] for row in read_table(f / "log.csv")] for f in (folder, tmp_path / "straight")]
    assert log[0] == log[1]


CHILD = Path(__file__).with_name("sharded_child.py")


def held(folder: Path) -> list[dict[str, int]]:
    return [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
def test_each_process_holds_its_share_also_as_accelerate_announces_it(world, tmp_path):
    """`accelerate launch --use_fsdp`, with the defaults of its command line, means --parallel fsdp."""
    request = request_for(world, tmp_path / "x", options={"steps": "2", "ema_decay": "0.9"}, dtype="bf16")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words = [*launcher, str(CHILD), str(tmp_path), *finetune_words(request), "--dtype", "bf16"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200, check=False, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "x" / "config.json").read_text())["parallel"] == "fsdp"
    total = sum(value.numel() for value in read_state(tmp_path / "x" / STATE)["model"].values())
    for part in ("weights", "average"):
        shares = [rank[part] for rank in held(tmp_path)]
        assert sum(shares) == total
        assert max(shares) < 0.55 * total
    # The mask token is not used, and has no moments.
    assert all(1.8 * rank["weights"] < rank["moments"] <= 2 * rank["weights"] for rank in held(tmp_path))


def test_what_is_asked_for_goes_before_what_accelerate_announces(monkeypatch):
    assert sharding.choose_parallel(None) == "ddp"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert sharding.choose_parallel(None) == "fsdp"
    assert sharding.choose_parallel("ddp") == "ddp"


def test_one_process_has_nothing_to_shard(world, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    train(request_for(world, tmp_path / "x", parallel="fsdp"))
    train(request_for(world, tmp_path / "y"))
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    train(request_for(world, tmp_path / "z"))
    assert furthest(weights(tmp_path / "x"), weights(tmp_path / "z")) == 0
    assert furthest(weights(tmp_path / "y"), weights(tmp_path / "z")) == 0


def test_a_task_with_an_engine_of_its_own_is_not_sharded(tmp_path):
    from click.testing import CliRunner

    from beit3_bench.harness.commands.finetune import command

    words = ["--task", "ade20k-seg", "--data-root", str(tmp_path), "--parallel", "fsdp", "--device", "cpu"]
    done = CliRunner().invoke(command, words)
    assert isinstance(done.exception, BenchError)
    assert "leave out --parallel fsdp" in str(done.exception)
