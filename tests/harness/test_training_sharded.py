"""Fully sharded training (FSDP) over gloo: equal to one process, to data-parallel training, and resumable from either."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from training_cases import furthest, launched, mini_world, one_thread, request_for, train, weights

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
