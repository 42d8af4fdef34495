"""A model asked by hand, in one batch, as `harness.engine` asks it."""

from __future__ import annotations

from pathlib import Path

import torch

from beit3_bench.backbones.family import LoadOptions, Model
from beit3_bench.backbones.registry import get_family
from beit3_bench.backbones.sources import Source
from beit3_bench.tasks.contract import Row, Split, Task


def load(task: Task, split: Split, checkpoint: Path, family: str = "beit3", **options: object) -> Model:
    """The model of a file for a task; options: of `LoadOptions`."""
    source = Source(str(checkpoint), checkpoint)
    return get_family(family).load(source, task.asked(split), LoadOptions(**options))


def ask(task: Task, split: Split, model: Model) -> dict[str, Row]:
    """Rows of all examples of a split, by id."""
    examples, ability = split.examples, model.ability
    with torch.inference_mode():
        values = ability.predict(ability.reader.collate([task.item(e) for e in examples]))
    return {row["id"]: row for row in task.rows(examples, values, split, [task.read_ahead(e) for e in examples])}
