"""Training batches: decoded, augmented and padded by worker processes, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Dataset

from beit3_bench.backbones.abilities import Batch
from beit3_bench.backbones.seeds import seed_of
from beit3_bench.backbones.training import Training
from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.batches import Failure, decode_ahead
from beit3_bench.harness.training.order import Division, GlobalBatches
from beit3_bench.tasks.contract import Example, Task


class _MicroBatches(Dataset):
    """Item ``step * accumulate + micro`` is this process's part of that micro-batch."""

    def __init__(
        self,
        task: Task,
        training: Training,
        examples: Sequence[Example],
        batches: GlobalBatches,
        division: Division,
        rank: int,
    ):
        self.task, self.training, self.examples = task, training, examples
        self.batches, self.division, self.rank = batches, division, rank

    def __getitem__(self, item: int) -> Batch | Failure:
        step, micro = divmod(item, self.division.accumulate)
        own = self.batches.indices(step)[self.division.own(micro, self.rank)]
        items = [self.task.training_item(self.examples[i]) for i in own]
        # The same seed on every process and micro-batch: transforms derive a stream per image or id from it.
        generator = torch.Generator().manual_seed(seed_of(self.batches.seed, "augmentation", step))
        try:
            return self.training.collate(items, generator)
        except BenchError as error:
            return Failure(str(error))


def load_micro_batches(
    task: Task,
    training: Training,
    examples: Sequence[Example],
    batches: GlobalBatches,
    division: Division,
    rank: int,
    steps: range,
    workers: int,
    pin: bool,
) -> Iterator[Batch]:
    """Collated micro-batches of ``steps``, ``division.accumulate`` per step, decoded ahead.

    Raises:
        BenchError: as raised by the training's `collate`, also in a worker.
    """
    items = range(steps.start * division.accumulate, steps.stop * division.accumulate)
    return decode_ahead(_MicroBatches(task, training, examples, batches, division, rank), items, workers, pin)
