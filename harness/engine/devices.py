"""Devices: which one, in which precision, how large a batch it takes, and when its memory is out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from beit3_bench.backbones.abilities import Ability
from beit3_bench.errors import BenchError, DeviceFailed, card_failure, memory_wanted
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.record.provenance import cores
from beit3_bench.text import in_words

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "Cannot allocate memory",
)


def resolve_device(name: str, processes: Processes | None = None, dtype: str = "fp32") -> torch.device:
    """The device that a name stands for, which computes in ``dtype`` (`Compute.dtype`).

    ``"auto"`` (a card of CUDA, else the CPU), ``"cpu"``, ``"cuda"`` (the process's own card where several run), ``"cuda:1"`` or
    ``"mps"`` (the GPU of a Mac).

    Raises:
        BenchError: no such device here, or one that does not compute in that arithmetic; says what there is.
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
        if dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise BenchError(
                f"--dtype bf16: {torch.cuda.get_device_name(index)} (cuda:{index}) does not compute in it; use --dtype fp16 or fp32"
            )
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


MOST_WORKERS = 32
"""Decoding processes: beyond so many, the process that takes their batches is the slowest."""


def default_workers(device: torch.device, batches: int, world: int = 1) -> int:
    """Decoding processes beside this one: none for a handful of batches, else what the cores allow.

    A card takes the images of about a hundred cores (see results/perf), and so gets all.
    """
    spare = cores() // world
    if batches < 8 or spare < (2 if device.type == "cuda" else 1):
        return 0
    return min(MOST_WORKERS, spare, batches) if device.type == "cuda" else min(2, spare)


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


def mixed_devices(device: torch.device, processes: Processes) -> str | None:
    """A note on a run whose processes compute on devices of several kinds; None on one kind."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    kinds = Counter(processes.gather(name))
    if len(kinds) == 1:
        return None
    listed = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
    return f"the processes computed on different devices ({listed}): rows agree to rounding, and the speed is that of the slowest"


@contextmanager
def failing_card(device: object) -> Iterator[None]:
    """Tell in one line that a card failed.

    Raises:
        DeviceFailed: in place of what torch raises, of CUDA or of a library. Too little memory is no failure.
    """
    try:
        yield
    except RuntimeError as error:
        failure = card_failure(error)
        if failure is None:
            raise
        raise DeviceFailed(f"{device}: the card failed ({failure})") from error


def memory_facts(device: torch.device, error: BaseException | None) -> str:
    """In words, how much memory was wanted, where an error says it, and how much there is: ``2.00 GiB wanted, 1.1 GB of 84.9 GB free``."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
    elif device.type == "mps":
        total = torch.mps.recommended_max_memory()
        free = max(total - torch.mps.driver_allocated_memory(), 0)
    else:
        import psutil

        memory = psutil.virtual_memory()
        free, total = memory.available, memory.total
    wanted = memory_wanted(error) if error is not None else ""
    return f"{wanted}{', ' if wanted else ''}{in_words(free)} of {in_words(total)} free"


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
