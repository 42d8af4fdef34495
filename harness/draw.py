"""A split in random order: what `--until-ci` draws from, and the part of it that an estimate is over."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Split, Task
from beit3_bench.tasks.metrics.sequential import look_bound, look_numbers

if TYPE_CHECKING:
    from beit3_bench.harness.record.schema import Estimate


@dataclass(frozen=True)
class Draw:
    """The clusters of a split in random order.

    always: what every part holds.  clusters: names, in their order.  sizes: samples of each.
    """

    split: Split
    always: frozenset[str]
    clusters: tuple[str, ...]
    sizes: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, task: Task, split: Split, seed: int) -> Draw:
        sizes: dict[str, int] = {}
        always = frozenset(example.id for example in split.examples if task.in_every_part(example))
        for example in split.examples:
            if example.id not in always:
                sizes[example.cluster] = sizes.get(example.cluster, 0) + 1
        # No generator of random numbers promises its order for years, and for any other order of the files.
        order = sorted(
            sizes,
            key=lambda name: hashlib.sha256(f"until-ci:{seed}:{name}".encode("utf-8", "surrogatepass")).digest(),
        )
        return cls(split, always, tuple(order), tuple(sizes[name] for name in order), seed)

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """After how many clusters to look; the last is all of them."""
        return look_numbers(np.array(self.sizes))

    def examples(self, begin: int, end: int, always: bool = True) -> list[Example]:
        """Examples of the clusters from one number to another, in the order of the split; and those of every part."""
        names = set(self.clusters[begin:end])
        return [
            example
            for example in self.split.examples
            if (always if example.id in self.always else example.cluster in names)
        ]

    def part(self, clusters: int) -> Split:
        """The split with so many clusters."""
        return self.split.of(self.examples(0, clusters))

    def estimate(self, clusters: int, width: float) -> Estimate:
        """What stands in the result."""
        return {
            "width": float(width),
            "examples": sum(self.sizes[:clusters]),
            "of_examples": sum(self.sizes),
            "clusters": clusters,
            "of_clusters": len(self.clusters),
            "seed": self.seed,
            "bound": look_bound(self.looks),
        }


def estimate_of(subset: Mapping[str, Any] | None) -> Estimate | None:
    """What `--until-ci` drew, of the subset of a result or of what is to be scored; None where it did not stop anything."""
    return (subset or {}).get("estimate")


def part_evaluated(result: Mapping[str, Any], task: Task, split: Split) -> Split:
    """The examples that a result is over, of the part of the split that `--limit` left: those of its estimate, or all.

    Raises:
        BenchError: the split has other clusters than the one that was estimated.
    """
    estimate = estimate_of(result["subset"])
    if estimate is None:
        return split
    draw = Draw.of(task, split, estimate["seed"])
    expected = draw.estimate(estimate["clusters"], estimate["width"])
    if any(estimate[name] != expected[name] for name in ("examples", "of_examples", "of_clusters")):  # type: ignore[literal-required]
        raise BenchError(
            f"{task.data_root}: split {split.name!r} has other samples than those that the run drew from; restore the data, or run again"
        )
    return draw.part(estimate["clusters"])


def note_of(estimate: Estimate) -> str:
    """What a reader of an estimate must know."""
    examples = f"{estimate['examples']:,} of {estimate['of_examples']:,} examples"
    clusters = (
        f"{estimate['clusters']:,} of {estimate['of_clusters']:,} clusters, in random order, seed {estimate['seed']}"
    )
    return (
        f"estimate: --until-ci {estimate['width']:g} stopped after {examples} ({clusters}); intervals are for the whole split and hold at "
        f"every look ({estimate['bound']:.2f} standard errors); the same command without --until-ci goes on to the whole split"
    )
