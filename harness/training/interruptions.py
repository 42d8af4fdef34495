"""What ends a training before its last step, told with what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from beit3_bench.errors import BenchError, DeviceFailed
from beit3_bench.harness.engine.devices import failing_card, is_out_of_memory, memory_facts
from beit3_bench.harness.termination import Terminated


@contextmanager
def told(folder: Path, saved: Callable[[], int], device: torch.device, samples: int) -> Iterator[None]:
    """Let an interruption, a card that fails and too little memory say which step is kept, and how to go on from it.

    Args:
        saved: the last step that was saved; 0 for none.
        samples: that a process takes at once.

    Raises:
        DeviceFailed: the card failed.
        BenchError: not enough memory.
    """

    def kept() -> str:
        step = saved()
        if step:
            return f"step {step} is kept in {folder}; go on with --resume"
        return f"no step of {folder} was saved yet; begin again with --overwrite"

    try:
        with failing_card(device):
            yield
    except (KeyboardInterrupt, Terminated, DeviceFailed) as interrupt:
        interrupt.add_note(kept())
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fewer = f"-o micro_batch={samples // 2} (the same batch in more parts), " if samples > 1 else ""
        raise BenchError(
            f"not enough memory on {device} for {samples} {'samples' if samples > 1 else 'sample'} at once "
            f"({memory_facts(device, error)}); use {fewer}--dtype bf16, or another --device; {kept()}"
        ) from error
