"""Whether a checkpoint has seen what it is evaluated on, by the facts of the tasks (`tasks.facts.Leak`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beit3_bench.tasks.facts import Seen, read_facts

SEEN: dict[Seen, str] = {
    "samples": "has seen these very samples",
    "images": "has seen these images with other labels",
    "some images": "has seen some of these images with other labels",
}
"""The gravest first."""


def trained_on(checkpoint: Path, metadata: Mapping[str, Any], family: str | None = None) -> tuple[str, ...]:
    """Data sets whose images a checkpoint has seen with labels or captions, as far as is known.

    A released file is known by its name, among those of its family; one that `beit3-bench finetune` wrote says its task and what it
    began with.
    """
    from beit3_bench.backbones.released import find_released

    source = metadata.get("source")
    begun = source.get("checkpoint") if isinstance(source, Mapping) else None
    seen: list[str] = []
    for file in (checkpoint, begun):
        weight = find_released(file, family) if file else None
        seen += weight.trained_on if weight else ()
    task = metadata.get("task")
    seen += read_facts(task).trained_on if isinstance(task, str) else ()
    return tuple(dict.fromkeys(seen))


def find_leaks(
    task: str,
    split: str,
    checkpoint: Path,
    metadata: Mapping[str, Any],
    known: Sequence[str] = (),
    family: str | None = None,
) -> list[str]:
    """One line per data set that shows the evaluated samples or images to the checkpoint, the gravest first.

    known: data sets that the model's card says it has seen.  family: of the model.
    """
    data = {*trained_on(checkpoint, metadata, family), *known}
    leaks = [leak for leak in read_facts(task).leaks if split in leak.splits and leak.data in data]
    order = list(SEEN)
    return [
        f"the checkpoint {SEEN[leak.seen]}: it was trained on {leak.data} ({leak.why})"
        for leak in sorted(leaks, key=lambda leak: order.index(leak.seen))
    ]
