"""Made-up data sets of the real ones' sizes in their layouts, and what a model might have said of them.

What `beit3-bench bench --overhead` stands on: reading, planning, tokenising and scoring take as long as on the real files. Nothing can
be learned from it, and nothing can be seen: images are empty files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from beit3_bench.tasks.contract import Example, Row, Split, Task

PLACES = {
    "vqav2": "vqa",
    "coco-retrieval": "retrieval",
    "nocaps": "nocaps",
    "imagenet": "imagenet",
    "ade20k-seg": "ade20k",
    "coco-det": "detection",
}
"""Task -> module with its `MADE_UP`."""
BATCH = 500
"""Rows made at a time."""


@dataclass(frozen=True)
class MadeUp:
    """The default split of a task, made up.

    samples: how many the released one has: questions, or images.
    write: data root and number of samples -> the files below it; other files that the task reads grow with them.
    rows: what a model said of a split, in batches, in the split's order.
    """

    samples: int
    write: Callable[[Path, int], None]
    rows: Callable[[Task, Split], Iterator[list[Row]]]


def made_up(task: str) -> MadeUp:
    """The made-up data of one of `PLACES`."""
    return import_module(f"{__name__}.{PLACES[task]}").MADE_UP


def batches(split: Split) -> Iterator[Sequence[Example]]:
    """The examples of a split, a batch of rows at a time."""
    for start in range(0, len(split.examples), BATCH):
        yield split.examples[start : start + BATCH]


def touch(folder: Path, names: Sequence[str]) -> None:
    """Empty files in a new folder."""
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
