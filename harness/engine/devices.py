"""Devices: which one, in which precision, how large a batch it takes, and when its memory is out."""

from __future__ import annotations

from typing import Any

import torch

from beit3_bench.backbones.abilities import Ability
from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.record.provenance import cores

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "Cannot allocate memory",
)


def resolve_device(name: str, processes: Processes | None = None) -> torch.device:
    """``"auto"`` (a card of CUDA, else the CPU), ``"cpu"``, ``"cuda"`` (the process's own card where several run), ``"cuda:1"`` or
    ``"mps"`` (the GPU of a Mac).

    Raises:
        BenchError: no such device here; says what there is.
    """
    local = processes.local_rank if processes else 0
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BenchError(f"--device {name!r} is not a device; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise BenchError(f"--device {name}: torch {torch.__version__} sees no CUDA device here; use --device cpu")
        index = device.index if device.index is not None else local % count
        if index >= count:
            raise BenchError(
                f"--device {name}: there are {count} CUDA devices here, counted from 0; use cuda:{count - 1}"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise BenchError(f"--device {name}: torch {torch.__version__} sees no GPU of a Mac here; use --device cpu")
        return torch.device("mps")
    if device.type != "cpu":
        raise BenchError(f"--device {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


USUAL_ITEM_BYTES = (576 + 64) * 1024 * 24 * 4
"""Activations of an image of 384 pixels in a network of width 1024, where a model does not say its own."""


def automatic_batch_size(device: torch.device, ability: Ability) -> int:
    """A size that fits; `predict_all` halves it where it does not.

    A quarter of the free device memory is given to the activations.
    """
    if device.type == "cpu":
        return 16
    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    else:
        free, _ = torch.cuda.mem_get_info(device)
    fitting = max(1, int(free / 4 / (ability.item_bytes() or USUAL_ITEM_BYTES)))
    return min(256, 1 << (fitting.bit_length() - 1))


def default_workers(device: torch.device, batches: int, world: int = 1) -> int:
    """Decoding processes beside this one: none for a handful of batches, else what the cores allow."""
    spare = cores() // world - (1 if device.type == "cuda" else 0)
    if batches < 8 or spare < 1:
        return 0
    return min(8, spare) if device.type == "cuda" else min(2, spare)


COMPILE_SECONDS = 30.0
"""What compiling an encoder costs, about: one kind of layer for each kind of input."""
COMPILE_GAIN = 0.05
"""The share of the time that it saves on a card in half precision; see results/perf."""


def compiling_pays(device: torch.device, dtype: str, seconds_left: float) -> bool:
    """What ``--compile auto`` decides: on a card in half precision, and only where so much is left to do that it saves
    more than it costs.

    Args:
        seconds_left: the time that the rest takes as it is.
    """
    return device.type == "cuda" and dtype != "fp32" and seconds_left * COMPILE_GAIN > COMPILE_SECONDS


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors of a nested batch on the device; everything else as it is."""
    if isinstance(value, torch.Tensor):
        if device.type == "mps" and value.dtype == torch.float64:  # a Mac's GPU has none
            value = value.float()
        return value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, dict):
        return {k: to_device(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(v, (torch.Tensor, list, tuple, dict)) for v in value):
        return type(value)(to_device(v, device) for v in value)
    return value


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
