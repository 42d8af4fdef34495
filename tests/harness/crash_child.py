"""A run in a forked process that kills itself with SIGKILL at a chosen system call, half of a write included."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401  (what runs import late is imported once, by the process that children are forked from)
import torch
import torch.distributed
import toy_task

import beit3_bench.backbones.beit3.loading
import beit3_bench.backbones.beit3.models
import beit3_bench.harness.engine.predict
import beit3_bench.tasks.metrics.bootstrap  # noqa: F401
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.session import run_task

_write, _replace, _fsync = os.write, os.replace, os.fsync


@dataclass(frozen=True)
class Attempt:
    """strike: number, from 1, of the call to os.write, os.fsync or os.replace at which ``rank`` kills itself; 0: never.

    share: of a write, how much of it reaches the file; of the others, below one half: before, else after the call.
    log: folder for what the children tell: acknowledged ids, number of calls, errors.
    path: where programs (Java) are looked for.
    """

    request: RunRequest
    task: str
    log: Path
    strike: int = 0
    rank: int = 0
    share: float = 0.0
    world: int = 1
    port: int = 0
    path: str = os.defpath


def run(attempt: Attempt, rank: int) -> None:
    """One process of an attempt."""
    torch.set_num_threads(1)
    sys.stderr = open(attempt.log / f"stderr-{rank}", "w")  # noqa: SIM115
    os.environ["PATH"] = attempt.path
    if attempt.world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(attempt.world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(attempt.port),
        }
    calls = _count_calls(attempt, rank)
    _acknowledge(attempt.log)
    task: Any = toy_task.ToyTask
    if attempt.task == "toy":
        toy_task.register()
    else:
        from beit3_bench.tasks.registry import get_task

        task = get_task(attempt.task)
    run_task(attempt.request, task, Processes.start("cpu"))
    (attempt.log / f"calls-{rank}").write_text(str(calls[0]))


def _count_calls(attempt: Attempt, rank: int) -> list[int]:
    calls = [0]
    strike = attempt.strike if rank == attempt.rank else 0

    def struck(call: Callable, *arguments: Any, **named: Any) -> Any:
        if call is _write and not stat.S_ISREG(os.fstat(arguments[0]).st_mode):
            return call(*arguments, **named)  # a pipe to another process
        calls[0] += 1
        if calls[0] != strike:
            return call(*arguments, **named)
        if call is _write:
            _write(arguments[0], bytes(arguments[1])[: int(len(arguments[1]) * attempt.share)])
        elif attempt.share >= 0.5:
            call(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("SIGKILL came back")

    os.write = lambda *a, **k: struck(_write, *a, **k)
    os.fsync = lambda *a, **k: struck(_fsync, *a, **k)
    os.replace = lambda *a, **k: struck(_replace, *a, **k)
    return calls


def _acknowledge(log: Path) -> None:
    """Write down the ids of every batch that `append` has promised to keep."""
    original = RunStore.append
    file = os.open(log / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def append(self: RunStore, rows: Any) -> None:
        rows = list(rows)
        original(self, rows)
        _write(file, "".join(f"{row['id']}\n" for row in rows).encode())

    RunStore.append = append  # type: ignore[method-assign]
