"""kill -9 at random points of a run, then the same command on another batch size and number of processes.

The finished run must be the one that was never killed, no batch that was acknowledged may be lost, and nothing but the
batch at hand may be made twice.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
from dataclasses import replace
from pathlib import Path

import crash_child
import numpy as np
import pytest
import toy_task
from crash_child import Attempt
from run_requests import run_request, with_settings
from toy_task import ToyTask, write_toy_data

from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.session import run_task
from beit3_bench.tasks.registry import get_task

SIZES = (1, 3, 8)
TOY_ROWS = 40


@pytest.fixture(scope="module")
def children():
    """Processes forked from one that has imported everything, so that a kill costs a tenth of a second."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crash_child"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(crash_child.__file__).parent))  # the server takes its path from here alone
        from multiprocessing.forkserver import ensure_running

        ensure_running()
    return context


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def attempt(children, tried: Attempt):
    """Run it; the exit codes of its processes."""
    tried.log.mkdir(parents=True, exist_ok=True)
    tried = replace(tried, port=free_port() if tried.world > 1 else 0)
    processes = [children.Process(target=crash_child.run, args=(tried, rank)) for rank in range(tried.world)]
    for process in processes:
        process.start()
    if tried.strike:
        processes[tried.rank].join(120)
        for process in processes:  # as torchrun does when one of them dies
            if processes[tried.rank].exitcode != 0:
                process.kill()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def told(log: Path):
    return "".join(path.read_text() for path in log.glob("stderr-*"))


class Scenario:
    """One run folder that is killed and resumed; ``request`` is the run's, without size and folder."""

    def __init__(self, children, task: str, request: RunRequest, reference: Path, folder: Path, seed: int):
        self.children, self.task, self.request, self.reference = children, task, request, reference
        self.folder, self.random = folder, random.Random(seed)
        self.kept: set[str] = set()
        self.tries = 0

    def tried(self, world: int, strike: int = 0, rank: int = 0) -> Attempt:
        self.tries += 1
        request = with_settings(self.request, batch_size=self.random.choice(SIZES), output=self.folder / "run")
        log = self.folder / f"log-{self.tries}"
        return Attempt(request, self.task, log, strike, rank, self.random.random(), world, path=os.environ["PATH"])

    def killed(self, world: int, calls: dict[tuple[int, int, int], int]) -> None:
        """A run that dies at a random call of a random process."""
        rank = self.random.randrange(world)
        tried = self.tried(world, strike=1, rank=rank)
        limit = calls[world, tried.request.compute.batch_size, rank]
        tried = replace(tried, strike=self.random.randint(1, limit))
        codes = attempt(self.children, tried)
        assert codes[rank] in ((-signal.SIGKILL,) if not self.kept else (-signal.SIGKILL, 0)), told(tried.log)
        self._check_kept(tried)

    def _check_kept(self, tried: Attempt) -> None:
        path = tried.log / "acknowledged"
        acknowledged = set(path.read_text().split()) if path.exists() else set()
        assert not acknowledged & self.kept, "a row that was kept was made again"
        folder = self.folder / "run"
        done = RunStore.read(folder).done() if (folder / "config.json").exists() else set()
        assert self.kept | acknowledged <= done, "an acknowledged batch is lost"
        assert len(done - self.kept - acknowledged) <= tried.world * tried.request.compute.batch_size
        self.kept = done

    def finished(self, world: int, exact: bool = True) -> int:
        """The last run; its rows and metrics are those of the run that was never killed. Returns how many rows are equal."""
        tried = self.tried(world)
        assert attempt(self.children, tried) == [0] * world, told(tried.log)
        ours, theirs = RunStore.read(self.folder / "run"), RunStore.read(self.reference)
        result, expected = ours.result(), theirs.result()
        assert {k: m["value"] for k, m in result["metrics"].items()} == pytest.approx(
            {k: m["value"] for k, m in expected["metrics"].items()}, abs=0 if exact else 1e-9
        )
        for key in ("counts", "notes", "status", "subset", "setting"):
            assert result[key] == expected[key]
        rows, wanted = ours.rows(), theirs.rows()
        assert rows.keys() == wanted.keys()
        for name, row in rows.items():
            assert row.keys() == wanted[name].keys()
            for key, value in row.items():
                other = wanted[name][key]
                same = close(value, other, 0 if exact else 1e-4)
                assert same, (name, key)
        return len(rows)


def close(a, b, tolerance):
    """Whether two values of a row are the same; numbers up to a tolerance."""
    if isinstance(a, (np.ndarray, float)):
        return np.allclose(a, b, rtol=0, atol=tolerance)
    return type(a) is type(b) and a == b


def calls_of(children, scenario: Scenario, worlds=(1, 2)):
    """Number of writing calls of each process of a run that nobody kills, by (world, batch size, rank)."""
    found = {}
    for world in worlds:
        for size in SIZES:
            tried = scenario.tried(world)
            output = scenario.folder / f"whole-{world}-{size}"
            tried = replace(tried, request=with_settings(tried.request, batch_size=size, output=output))
            assert attempt(children, tried) == [0] * world, told(tried.log)
            for rank in range(world):
                found[world, size, rank] = int((tried.log / f"calls-{rank}").read_text())
    return found


@pytest.fixture(scope="module")
def toy(children, tmp_path_factory):
    """Make scenarios of the toy task, and the number of calls of its runs."""
    folder = tmp_path_factory.mktemp("crash")
    data = write_toy_data(folder / "data", count=TOY_ROWS)
    request = run_request("toy", data / "toy.pth", data, device="cpu", workers=0)
    with pytest.MonkeyPatch.context() as patch:
        toy_task.register(patch.setattr)
        run_task(with_settings(request, output=folder / "reference"), ToyTask)

    def make(name):
        return Scenario(children, "toy", request, folder / "reference", folder / name, seed=hash_of(name))

    return make, calls_of(children, make("calls"))


def hash_of(name):
    return int.from_bytes(name.encode(), "little") % 2**32


@pytest.mark.parametrize("point", [pytest.param(n, marks=[pytest.mark.slow] if n >= 6 else []) for n in range(20)])
def test_killed_at_a_random_point_and_resumed_to_the_same_result(toy, point):
    make, calls = toy
    scenario = make(f"point-{point}")
    worlds = [(1, 2, 1), (2, 1), (1, 1), (2, 1, 2)][point % 4]
    for world in worlds[:-1]:
        scenario.killed(world, calls)
    assert scenario.finished(worlds[-1]) == TOY_ROWS


def test_every_call_of_the_end_of_a_run_is_a_good_point_to_die(toy):
    """The last calls write samples.npz and result.json: a result is there wholly, or not at all."""
    make, calls = toy
    for back in range(1, 7):
        for share in (0.2, 0.9):
            scenario = make(f"end-{back}-{share}")
            tried = replace(scenario.tried(1), share=share)
            tried = replace(tried, strike=calls[1, tried.request.compute.batch_size, 0] - back + 1)
            assert attempt(scenario.children, tried) == [-signal.SIGKILL], told(tried.log)
            result = scenario.folder / "run" / "result.json"
            assert not result.exists() or json.loads(result.read_text())["status"] == "scored"
            assert scenario.finished(1) == TOY_ROWS


@pytest.mark.parametrize(
    "task", ["vqav2", *(pytest.param(t, marks=pytest.mark.slow) for t in ("flickr30k", "nlvr2", "coco-caption"))]
)
def test_native_run_that_was_killed_is_the_one_that_was_not(children, native, task, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    options = {"max_length": "8"} if task == "coco-caption" else {}
    request = run_request(
        task, native.checkpoint(task), native.root(task), device="cpu", workers=0, limit=12, options=options
    )
    run_task(with_settings(request, output=tmp_path / "reference"), get_task(task))
    for seed in range(2):
        scenario = Scenario(children, task, request, tmp_path / "reference", tmp_path / str(seed), seed)
        whole = {(1, size, 0): 5 for size in SIZES}  # before the last batches of the shortest run
        scenario.killed(1, whole)
        assert scenario.finished(1, exact=False) > 0
