"""Which samples make up which step: a pure function of (seed, step), whatever the number of processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from beit3_bench.backbones.seeds import seed_of
from beit3_bench.errors import BenchError


def share(count: int, part: int, parts: int) -> slice:
    """The ``part``-th of ``parts`` contiguous slices of ``count`` items; the first ones are longer by at most one."""
    base, longer = divmod(count, parts)
    start = part * base + min(part, longer)
    return slice(start, start + base + (part < longer))


@dataclass
class GlobalBatches:
    """Batches over epochs of shuffled samples; the rest of an epoch that does not fill a batch is left out.

    samples: size of the training split.  batch: samples per step over all processes.
    """

    samples: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.samples < self.batch:
            raise BenchError(
                f"the training split has {self.samples} samples, fewer than one batch of {self.batch}; "
                f"lower it with -o batch={self.samples}"
            )
        self._epoch = -1
        self._order: list[int] = []

    @property
    def steps_per_epoch(self) -> int:
        return self.samples // self.batch

    def indices(self, step: int) -> list[int]:
        """Sample indices of the global batch of ``step`` (from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, "order", epoch))
            self._order = torch.randperm(self.samples, generator=generator).tolist()
            self._epoch = epoch
        return self._order[position * self.batch : (position + 1) * self.batch]


@dataclass(frozen=True)
class Division:
    """How a global batch is divided: first into ``accumulate`` micro-batches, each of them over ``world`` processes."""

    batch: int
    world: int
    accumulate: int

    @classmethod
    def of(cls, batch: int, world: int, micro_batch: int) -> Division:
        """``micro_batch``: the most samples that a process takes at once; 0 = no limit.

        Raises:
            BenchError: fewer samples than processes.
        """
        if batch < world:
            raise BenchError(
                f"a batch of {batch} cannot be divided over {world} processes; raise it with -o batch={world}"
            )
        per_process = -(-batch // world)
        accumulate = -(-per_process // micro_batch) if micro_batch else 1
        return cls(batch, world, min(accumulate, batch // world))

    def own(self, micro: int, rank: int) -> slice:
        """The part of the global batch that ``rank`` takes in micro-batch ``micro``."""
        piece = share(self.batch, micro, self.accumulate)
        part = share(piece.stop - piece.start, rank, self.world)
        return slice(piece.start + part.start, piece.start + part.stop)

    def weight(self, micro: int, rank: int) -> float:
        """What the mean loss of a micro-batch counts for, so that the average over processes is the mean over the batch."""
        own = self.own(micro, rank)
        return (own.stop - own.start) * self.world / self.batch
