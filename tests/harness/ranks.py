"""Processes of one group without a launcher, so that each one's exit code and messages can be looked at."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


@dataclass
class Finished:
    """What became of one process."""

    code: int
    out: str
    err: str
    seconds: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def run_ranks(
    commands: Sequence[Sequence[object]],
    meanwhile: Callable[[list[subprocess.Popen]], None] | None = None,
    timeout: float = 120,
    **more: str,
) -> list[Finished]:
    """Run one command per rank and wait for all.

    Args:
        meanwhile: called with the running processes (to kill one).
        more: environment variables.

    Raises:
        AssertionError: a process that did not end in time; all are killed then.
    """
    group = {"WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    begun, running, files = time.monotonic(), [], []
    for rank, command in enumerate(commands):
        out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
        own = environment(**group, RANK=str(rank), LOCAL_RANK=str(rank), **more)
        running.append(subprocess.Popen([str(word) for word in command], stdout=out, stderr=err, env=own))
        files.append((out, err))
    ended = [0.0] * len(running)
    try:
        if meanwhile is not None:
            meanwhile(running)
        while not all(ended):
            for rank, process in enumerate(running):
                if not ended[rank] and process.poll() is not None:
                    ended[rank] = time.monotonic() - begun
            assert time.monotonic() - begun < timeout, f"still running after {timeout} s: {[not e for e in ended]}"
            time.sleep(0.05)
    finally:
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
    finished = []
    for process, seconds, pair in zip(running, ended, files, strict=True):
        texts = []
        for file in pair:
            file.seek(0)
            texts.append(file.read())
            file.close()
        finished.append(Finished(process.returncode, *texts, seconds))
    return finished


def wait_until(condition: Callable[[], bool], processes: Sequence[subprocess.Popen], timeout: float = 90) -> None:
    """Wait for a condition while all processes run.

    Raises:
        AssertionError: one of them ended, or the time is over.
    """
    end = time.monotonic() + timeout
    while not condition():
        assert all(p.poll() is None for p in processes), "a process ended before the moment that the test waits for"
        assert time.monotonic() < end, "the moment that the test waits for never came"
        time.sleep(0.01)


def strike(path: Path, rank: int, which: signal.Signals = signal.SIGKILL) -> Callable[[list[subprocess.Popen]], None]:
    """For `run_ranks`: send a signal to one process as soon as a file exists."""

    def meanwhile(running: list[subprocess.Popen]) -> None:
        wait_until(path.exists, running)
        running[rank].send_signal(which)

    return meanwhile
