"""Training batches: decoded, augmented and padded by worker processes, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from beit3_bench.backbones.beit3.training.augment import seed_of
from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.batches import Failure, decode_ahead
from beit3_bench.harness.training.order import Division, GlobalBatches
from beit3_bench.tasks.contract import Example, Task


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

    def __getitem__(self, item: int) -> dict[str, Any] | Failure:
        step, micro = divmod(item, self.division.accumulate)
        own = [self.examples[i] for i in self.batches.indices(step)[self.division.own(micro, self.rank)]]
        # The same seed on every process and micro-batch: transforms derive a stream per image or id from it.
        generator = torch.Generator().manual_seed(seed_of(self.batches.seed, "augmentation", step))
        try:
            return self.task.training_collate(own, generator, self.image_ops)
        except BenchError as error:
            return Failure(str(error))


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
        BenchError: as raised by the task's `training_collate`, also in a worker.
    """
    items = range(steps.start * division.accumulate, steps.stop * division.accumulate)
    return decode_ahead(_MicroBatches(task, examples, batches, division, rank, image_ops), items, workers, pin)
