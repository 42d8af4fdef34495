"""Whether a checkpoint has seen what it is evaluated on, from the table ``backbones/leaks.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

TABLE = "leaks.toml"
SEEN = {
    "samples": "has seen these very samples",
    "images": "has seen these images with other labels",
    "some images": "has seen some of these images with other labels",
}


@dataclass(frozen=True)
class Leak:
    """One row of the table: training on ``data`` shows (``seen``) what the task's splits evaluate."""

    data: str
    task: str
    splits: tuple[str, ...]
    seen: str
    why: str


@cache
def read_leaks() -> tuple[dict[str, tuple[str, ...]], tuple[Leak, ...]]:
    """What our own fine-tuning trains on, by task; and the leaks."""
    table = tomllib.loads(files("beit3_bench.backbones").joinpath(TABLE).read_text(encoding="utf-8"))
    own = {task: tuple(data) for task, data in table["own"].items()}
    return own, tuple(Leak(**{**row, "splits": tuple(row["splits"])}) for row in table["leak"])


def trained_on(checkpoint: Path, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Data sets whose images a checkpoint has seen with labels or captions, as far as is known.

    A released file is known by its name; one that `beit3-bench finetune` wrote says its task and what it began with.
    """
    from beit3_bench.backbones.released import find_released

    source = metadata.get("source")
    begun = source.get("checkpoint") if isinstance(source, Mapping) else None
    seen: list[str] = []
    for file in (checkpoint, begun):
        weight = find_released(file) if file else None
        seen += weight.trained_on if weight else ()
    task = metadata.get("task")
    seen += read_leaks()[0].get(task, ()) if isinstance(task, str) else ()
    return tuple(dict.fromkeys(seen))


def find_leaks(task: str, split: str, checkpoint: Path, metadata: Mapping[str, Any]) -> list[str]:
    """One line per data set that shows the evaluated samples or images to the checkpoint, the gravest first."""
    data = trained_on(checkpoint, metadata)
    found = [leak for leak in read_leaks()[1] if leak.task == task and split in leak.splits and leak.data in data]
    order = list(SEEN)
    return [
        f"the checkpoint {SEEN[leak.seen]}: it was trained on {leak.data} ({leak.why})"
        for leak in sorted(found, key=lambda leak: order.index(leak.seen))
    ]
