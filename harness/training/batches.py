"""Training batches: decoded, augmented and padded by worker processes, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from beit3_bench.backbones.errors import BenchError
from beit3_bench.harness.training.order import Division, GlobalBatches
from beit3_bench.tasks.augment import seed_of
from beit3_bench.tasks.base import Example, Task


@dataclass(frozen=True)
class _Failure:
    """A `BenchError` on its way out of a worker process."""

    message: str


class _MicroBatches(Dataset):
    """Item ``step * accumulate + micro`` is this process's part of that micro-batch."""

    def __init__(
        self,
        task: Task,
        examples: Sequence[Example],
        batches: GlobalBatches,
        division: Division,
        rank: int,
        image_ops: Callable,
    ):
        self.task, self.examples, self.image_ops = task, examples, image_ops
        self.batches, self.division, self.rank = batches, division, rank

    def __getitem__(self, item: int) -> dict[str, Any] | _Failure:
        step, micro = divmod(item, self.division.accumulate)
        own = [self.examples[i] for i in self.batches.indices(step)[self.division.own(micro, self.rank)]]
        # The same seed on every process and micro-batch: transforms derive a stream per image or id from it.
        generator = torch.Generator().manual_seed(seed_of(self.batches.seed, "augmentation", step))
        try:
            return self.task.training_collate(own, generator, self.image_ops)
        except BenchError as error:
            return _Failure(str(error))


def _as_is(item: Any) -> Any:
    return item


def load_micro_batches(
    task: Task,
    examples: Sequence[Example],
    batches: GlobalBatches,
    division: Division,
    rank: int,
    image_ops: Callable,
    steps: range,
    workers: int,
    pin: bool,
) -> Iterator[dict[str, Any]]:
    """Collated micro-batches of ``steps``, ``division.accumulate`` per step, decoded ahead.

    Raises:
        BenchError: as raised by the task's `training_collate`, also in a worker; or a worker that was killed.
    """
    items = range(steps.start * division.accumulate, steps.stop * division.accumulate)
    loader = DataLoader(
        _MicroBatches(task, examples, batches, division, rank, image_ops),
        sampler=items,
        batch_size=None,
        collate_fn=_as_is,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
    )
    try:
        for batch in loader:
            if isinstance(batch, _Failure):
                raise BenchError(batch.message)
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" in str(error) and ("exited unexpectedly" in str(error) or "killed" in str(error)):
            raise BenchError(
                f"a decoding process died ({str(error).splitlines()[0]}); memory is short: use fewer --workers (now {workers})"
            ) from error
        raise
