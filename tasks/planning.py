"""How examples are cut into batches, so that a row does not depend on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from beit3_bench.garbage import collection_paused

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example


@collection_paused()
def plan_batches(
    examples: Sequence[Example], batch_size: int, length: Callable[[Example], int] = lambda _: 0
) -> list[list[Example]]:
    """Cut examples into batches of one kind and one length, examples of the same images side by side (so that an image is decoded and
    encoded once).

    Args:
        length: of an example's text in tokens, padding included (`backbones.abilities.Reader.length`). Equal lengths only
            share a batch, and the longest come first: an out-of-memory error shows at the start.
    """
    groups: dict[tuple, list[Example]] = {}
    for example in examples:
        groups.setdefault((example.kind, -length(example), example.images or (example.id,)), []).append(example)
    batches: list[list[Example]] = []
    planned: tuple = ()
    for key, group in sorted(groups.items()):
        for example in sorted(group, key=lambda e: e.id):
            if not batches or len(batches[-1]) == batch_size or planned != key[:2]:
                batches.append([])
            batches[-1].append(example)
            planned = key[:2]
    return batches
