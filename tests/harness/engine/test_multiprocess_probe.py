"""Probes on several real processes: the features and numbers of one, and nothing is computed twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from native import Native
from ranks import Finished, run_ranks

from beit3_bench.harness.record.store import RunStore

HARNESS = [sys.executable, "-m", "beit3_bench.harness"]
CHANGING = ("provenance", "features_computed", "features_from_store")
"""Of a probe's result: what tells of the command and not of the model."""


def probed(native: Native, processes: int, *more: object) -> list[Finished]:
    words = ["probe", "--checkpoint", native.checkpoints / "retrieval.pth", "--data-root", native.root("imagenet")]
    finished = run_ranks([[*HARNESS, *words, "--device", "cpu", "--workers", 0, "--json", *more]] * processes)
    assert [f.code for f in finished] == [0] * processes, [f.err for f in finished]
    assert [f.out for f in finished[1:]] == [""] * (processes - 1)
    return finished


def numbers(finished: list[Finished]) -> dict:
    result = json.loads(finished[0].out)
    return {key: value for key, value in result.items() if key not in CHANGING}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["knn", "linear"])
def test_a_probe_gives_the_same_numbers_in_one_two_and_three_processes(native, method):
    one, two, three = (numbers(probed(native, n, "--method", method, "--batch-size", 3)) for n in (1, 2, 3))
    assert one["metrics"]["top1"]["value"] >= 0
    assert one == two == three


def test_what_two_processes_stored_is_not_computed_again(native, tmp_path: Path):
    store = ("--features", tmp_path / "features")
    first, again = probed(native, 2, *store), probed(native, 2, *store, "--method", "linear")
    computed, found = json.loads(first[0].out), json.loads(again[0].out)
    images = found["counts"]["images"] + found["counts"]["training images"]
    assert computed["features_computed"] + computed["features_from_store"] == images
    assert (found["features_computed"], found["features_from_store"]) == (0, images)


@pytest.mark.slow
def test_processes_that_read_other_data_stop_with_one_line(native, tmp_path: Path):
    other = native.copy("imagenet", tmp_path)
    next((other / "val").glob("*/*")).unlink()
    words = [*HARNESS, "probe", "--checkpoint", native.checkpoints / "retrieval.pth", "--device", "cpu", "--workers", 0]
    finished = run_ranks([[*words, "--data-root", root] for root in (native.root("imagenet"), other)])
    lines = [line for f in finished for line in f.err.splitlines() if line.strip()]
    assert [f.code for f in finished] == [2, 2]
    assert len(lines) == 1
    assert "what the probe stands on differ between processes: val (rank 1 against rank 0)" in lines[0]


@pytest.mark.slow
def test_a_dense_probe_gives_the_same_rows_in_one_two_and_three_processes(native, tmp_path: Path):
    words = [
        "probe",
        "--task",
        "ade20k-seg",
        "--checkpoint",
        native.checkpoints / "vqav2.pth",
        "--data-root",
        native.world,
    ]
    words += ["--device", "cpu", "--workers", 0, "--image-size", 64, "--iterations", 30, "--batch-size", 2]
    runs = {}
    for n in (1, 2, 3):
        place = ["--features", tmp_path / f"features{n}", "--output", tmp_path / f"run{n}"]
        finished = run_ranks([[*HARNESS, *words, *place]] * n)
        assert [f.code for f in finished] == [0] * n, [f.err for f in finished]
        assert [f.out for f in finished[1:]] == [""] * (n - 1)
        runs[n] = RunStore.read(tmp_path / f"run{n}")
    assert len(list((tmp_path / "features3").glob("*/*.pack"))) == 3
    assert runs[1].rows() == runs[2].rows() == runs[3].rows()
    assert runs[1].result()["metrics"] == runs[2].result()["metrics"] == runs[3].result()["metrics"]
    seen = [run.result()["provenance"]["fingerprints"]["model"] for run in runs.values()]
    assert seen[0] == seen[1] == seen[2]  # the fitted layer is in it
