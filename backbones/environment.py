"""Environment variables: what launchers of several processes (torchrun, accelerate, SLURM scripts) announce; PyTorch's own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from beit3_bench.errors import BenchError

_MPI = ("PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_")
_NUMBER = re.compile(r"\s*\d{1,6}\s*", re.ASCII)


def announced(variable: str, least: int = 0, most: int = 999_999) -> int | None:
    """A whole number in an environment variable; None where it is not set, or empty.

    Raises:
        BenchError: anything else stands there.
    """
    text = os.environ.get(variable, "")
    if not text.strip():
        return None
    if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise BenchError(
            f"{variable}={text[:40]!r}: expected a whole number from {least} to {most}; "
            f"unset {variable}, or start with torchrun, which sets it"
        )
    return int(text)


def announced_processes() -> int:
    """How many processes a launcher started (``WORLD_SIZE``); 1 without a launcher.

    Raises:
        BenchError: no number from 1 on.
    """
    return announced("WORLD_SIZE", least=1) or 1


def check_launch(world: int) -> None:
    """Raise unless a launcher of ``world`` processes said everything that they need to find each other.

    Raises:
        BenchError: names the variable that is missing, or out of its range.
    """
    for variable, least, most in (("RANK", 0, world - 1), ("LOCAL_RANK", 0, world - 1), ("MASTER_PORT", 1, 65_535)):
        if announced(variable, least, most) is None:
            raise _missing(variable, world)
    if not os.environ.get("MASTER_ADDR", "").strip():
        raise _missing("MASTER_ADDR", world)


def leave_half_a_launch() -> None:
    """For a process that is alone: take out of the environment what is left of somebody's launcher and no launch by itself.

    Libraries take a ``LOCAL_RANK`` alone, or what MPI sets, for a group of processes, and wait for it or die.
    """
    for variable in [name for name in os.environ if name.startswith(_MPI)]:
        del os.environ[variable]
    try:
        check_launch(1)
    except BenchError:
        for variable in ("RANK", "LOCAL_RANK"):
            os.environ.pop(variable, None)


def _missing(variable: str, world: int) -> BenchError:
    return BenchError(
        f"WORLD_SIZE announces {world} processes, but {variable} is not set; start with torchrun, or unset WORLD_SIZE"
    )


_TENSORS_ONLY, _ANYTHING = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def loading_tensors_only() -> Iterator[None]:
    """In this block `torch.load` runs nothing that is in a file, whatever a library asks of it (mmengine falls back to that)."""
    before = {name: os.environ.pop(name, None) for name in (_TENSORS_ONLY, _ANYTHING)}
    os.environ[_TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
