"""SIGTERM: work ends where it can be gone on with, with exit code 143 and one line."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import toy_task
from click.testing import CliRunner
from ranks import environment, run_ranks
from run_requests import run_request
from toy_task import ToyTask, write_toy_data

from beit3_bench.harness.cli import main
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.session import run_task
from beit3_bench.harness.termination import Terminated, asked, deferred, end_if_asked, heeding_sigterm

GO_ON = "give the same command again to go on from there\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    toy_task.register(monkeypatch.setattr)


def strike():
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_signal_interrupts_at_once_or_waits():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), heeding_sigterm():  # noqa: PT012  (the signal may come a little later)
        strike()
        time.sleep(5)
    with heeding_sigterm():
        with deferred():
            end_if_asked()
            strike()
            strike()
            assert asked()
            with pytest.raises(Terminated):
                end_if_asked()
        strike()  # the second changes nothing
    assert not asked()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_caller_that_ignores_the_signal_has_its_way():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with heeding_sigterm():
            strike()
            assert not asked()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_forked_process_ends_as_it_would_have():
    with heeding_sigterm():
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def words(data, *more):
    start = ["run", "--task", "toy", "--checkpoint", data / "toy.pth", "--data-root", data, "--device", "cpu"]
    return [str(word) for word in (*start, *more)]


def same_rows(folder, data):
    expected = run_task(
        run_request("toy", data / "toy.pth", data, device="cpu", workers=0, output=folder / "straight"), ToyTask
    )
    rows, straight = RunStore.read(folder / "run").rows(), RunStore.read(expected.folder).rows()
    assert rows.keys() == straight.keys()
    assert all((rows[i]["embedding"] == straight[i]["embedding"]).all() for i in rows)
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["metrics"] == expected.result["metrics"]


@pytest.mark.parametrize("strikes", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_is_gone_on_with_to_the_same_rows(strikes, data, tmp_path, monkeypatch):
    """In one process: the signal comes in the middle of a random batch, whose rows are stored all the same."""
    draw, kept = random.Random(strikes), 0
    real = toy_task.ToyAbility.predict
    for left in range(strikes, 0, -1):
        at = draw.randint(1, (38 - kept) // left)
        batches = itertools.count(0)  # the first of all counts the operations of a sample

        def predict(self, batch, batches=batches, at=at):
            if next(batches) == at:
                strike()
            return real(self, batch)

        monkeypatch.setattr(toy_task.ToyAbility, "predict", predict)
        told = CliRunner().invoke(main, words(data, "--workers", 0, "--batch-size", 1, "--output", tmp_path / "run"))
        assert told.exit_code == 143
        assert told.stderr == f"terminated; the rows so far are kept in {tmp_path / 'run'}; {GO_ON}"
        assert not (tmp_path / "run" / "result.json").exists()
        assert len(RunStore.read(tmp_path / "run").done()) == kept + at
        kept += at
    monkeypatch.setattr(toy_task.ToyAbility, "predict", real)
    told = CliRunner().invoke(main, words(data, "--workers", 0, "--output", tmp_path / "run"))
    assert told.exit_code == 0, told.stderr
    same_rows(tmp_path, data)


def test_a_signal_to_the_whole_job_does_not_take_the_decoding_processes_first(data, tmp_path):
    run = [
        sys.executable,
        toy_task.__file__,
        *words(data, "--output", tmp_path / "run", "--workers", 2, "-o", "slow=0.1"),
    ]
    job = subprocess.Popen(
        [*run, "--batch-size", "1"], stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    shard = tmp_path / "run" / "rows" / "rank-00000.jsonl"
    while not (shard.exists() and shard.stat().st_size):
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    os.killpg(job.pid, signal.SIGTERM)
    err = job.communicate()[1]
    assert (job.returncode, err) == (143, f"terminated; the rows so far are kept in {tmp_path / 'run'}; {GO_ON}")
    done = subprocess.run(run, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    same_rows(tmp_path, data)


def test_of_several_processes_all_stop_and_the_first_speaks(data, tmp_path):
    shard = tmp_path / "run" / "rows" / "rank-00000.jsonl"

    def terminate(running):
        while not (shard.exists() and shard.stat().st_size):
            assert all(process.poll() is None for process in running)
            time.sleep(0.01)
        for process in running:
            process.send_signal(signal.SIGTERM)

    more = ("--output", tmp_path / "run", "--workers", 0, "--batch-size", 1)
    command = [sys.executable, toy_task.__file__, *words(data, *more)]
    first, second = run_ranks([[*command, "-o", "slow=0.2"]] * 2, terminate)
    assert (first.code, second.code) == (143, 143), (first.err, second.err)
    assert first.err == f"[rank 0] terminated; the rows so far are kept in {tmp_path / 'run'}; {GO_ON}"
    assert second.err == ""
