"""One process or many: who I am, and how we agree. torch.distributed is touched only where several processes run."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from beit3_bench.backbones.environment import announced_processes, check_launch, leave_half_a_launch
from beit3_bench.errors import BenchError, DeviceFailed

T = TypeVar("T")
TIMEOUT_VARIABLE = "BEIT3_BENCH_TIMEOUT"
"""Environment variable: seconds that a process waits for the others before it stops."""
TIMEOUT = timedelta(minutes=30)
_LOST = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "broken pipe",
    "timed out",
    "processgroup",
    "tcpstore",
)


def group_timeout() -> timedelta:
    """How long a process waits for the others.

    Raises:
        BenchError: the environment variable is no number of seconds.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    if not text:
        return TIMEOUT
    try:
        waited = timedelta(seconds=float(text))
        if waited <= timedelta(0):
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise BenchError(f"{TIMEOUT_VARIABLE}={text!r}: give a number of seconds above 0") from error
    return waited


@dataclass(frozen=True)
class Processes:
    """rank: 0..world-1 over all machines; local_rank: on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def start(cls, device: str = "auto") -> Processes:
        """Join the group that torchrun or `accelerate launch` announces in the environment; alone, do nothing.

        Args:
            device: as `--device`; without CUDA the group talks over gloo, with it over NCCL.

        Raises:
            BenchError: the environment is no launcher's, or the group does not come together as it was announced.
        """
        announced = announced_processes()
        if announced == 1:
            leave_half_a_launch()
            return cls()
        check_launch(announced)
        import torch

        # Imported before there is a group: their functions hold the group that they find then as a default argument, for ever,
        # and the threads of a group that is never freed abort the interpreter on its way out (once in fifty times).
        import torch.distributed.nn.functional
        import torch.distributed.optim.zero_redundancy_optimizer
        from accelerate import PartialState

        with _watching(announced):
            state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=group_timeout())
        if state.num_processes != announced:
            raise BenchError(
                f"WORLD_SIZE announces {announced} processes, {state.num_processes} came; start with torchrun"
            )
        atexit.register(_leave)
        return cls(state.process_index, state.num_processes, state.local_process_index)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order of rank, on every process."""
        if self.world == 1:
            return [value]
        from accelerate.utils import gather_object

        with self.watching():
            return gather_object([value])

    def broadcast(self, value: T) -> T:
        """The value of process 0."""
        if self.world == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box = [value]
        with self.watching():
            broadcast_object_list(box)
        return box[0]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Tell in one line that another process died or does not answer, as the backends report it.

        Raises:
            BenchError: in place of the backend's own error.
        """
        with _watching(self.world):
            yield

    def together(self, step: Callable[[], T]) -> T:
        """Run ``step`` on every process; where it fails on one with a `BenchError`, all raise that error.

        Without this, the processes that did not fail would wait for the others until the timeout.
        """
        if self.world == 1:
            return step()
        value, failure = None, None
        try:
            value = step()
        except DeviceFailed:  # through which this process would have to tell the others; its launcher ends them
            raise
        except BenchError as error:
            failure = (str(error), isinstance(error.__cause__, ImportError))
        self.raise_first(self.gather(failure))
        return value  # type: ignore[return-value]

    def on_first(self, step: Callable[[], T]) -> T | None:
        """Run ``step`` on process 0 only (None elsewhere); its `BenchError` is raised everywhere."""
        return self.together(lambda: step() if self.first else None)  # type: ignore[arg-type, return-value]

    def agree(self, fingerprints: dict[str, str], what: str) -> None:
        """Raise on all processes if they see different things, naming which.

        Raises:
            BenchError: the names whose values differ and the ranks that differ from rank 0.
        """
        everyone = self.gather(fingerprints)
        names = [n for n in fingerprints if any(f.get(n) != everyone[0].get(n) for f in everyone)]
        if names:
            ranks = [str(r) for r, f in enumerate(everyone) if f != everyone[0]]
            raise _shared(
                f"{what} differ between processes: {', '.join(names)} (rank {', '.join(ranks)} against rank 0); "
                "give every machine the same files and the same command"
            )

    def raise_first(self, failures: list[tuple[str, bool] | None]) -> None:
        """Raise the first failure (message, whether an import caused it), marked as known to all processes."""
        for rank, failure in enumerate(failures):
            if failure is not None:
                message, missing_package = failure
                raise _shared(message if rank == 0 else f"rank {rank}: {message}") from (
                    ImportError() if missing_package else None
                )


@contextmanager
def _watching(world: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        lines = str(error).strip().splitlines() or [""]
        # An operator that a device lacks is a RuntimeError, too (NotImplementedError), and no lost process.
        if world == 1 or isinstance(error, NotImplementedError) or not any(w in str(error).lower() for w in _LOST):
            raise
        raise BenchError(
            f"another of the {world} processes died, or did not answer within {group_timeout().total_seconds():g} s "
            f"({lines[0][:120]}); see its own message above; what was stored is kept: give the same command again "
            "(finetune: with --resume)"
        ) from error


def _leave() -> None:
    """Close the group before the interpreter takes its threads down."""
    import torch.distributed as distributed

    if not distributed.is_initialized():
        return
    distributed.destroy_process_group()
    device_mesh = sys.modules.get("torch.distributed.device_mesh")
    if device_mesh is not None:
        # Sharded tensors leave their meshes behind in caches of PyTorch, and these hold the group, too.
        for mesh in [o for o in gc.get_objects() if type(o) is device_mesh.DeviceMesh]:
            getattr(mesh, "_pg_registry", {}).clear()


def _shared(message: str) -> BenchError:
    """An error that every process raises, so that process 0 prints it for all."""
    error = BenchError(message)
    error.shared = True  # type: ignore[attr-defined]
    return error
