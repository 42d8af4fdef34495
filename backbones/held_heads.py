"""Whether a file holds the head that a task needs, and what the outputs of that head are: the same for VLMo's and ViLT's files."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

from torch import Tensor

from beit3_bench.backbones.checkpoints import Checkpoint
from beit3_bench.backbones.family import Asked, LoadOptions, Outputs
from beit3_bench.backbones.released import find_released
from beit3_bench.errors import BenchError

TOKEN_TYPES = "token_type_embeddings.weight"
"""A row for texts, and one for each image."""


def check_head(
    checkpoint: Checkpoint, asked: Asked, options: LoadOptions, head: str, prefixes: Mapping[str, str], token_types: int
) -> None:
    """Raise for a file of another head.

    Args:
        head: that is needed, a key of ``prefixes``.
        prefixes: of the names of each head's tensors.
        token_types: rows that the head reads of the table `TOKEN_TYPES`.

    Raises:
        BenchError: says which heads the file holds, or how many token types.
    """
    tensors, prefix = checkpoint.tensors, prefixes[head]
    if not any(name.startswith(prefix) for name in tensors) and not options.allow_missing:
        held = [other for other, start in prefixes.items() if any(name.startswith(start) for name in tensors)]
        what = f"holds the head of {' and '.join(held)}" if held else "holds no head of a task"
        raise BenchError(
            f"{checkpoint.path}: {what}, {asked.task} needs tensors {prefix}*; give a checkpoint of {asked.task}"
        )
    types = len(tensors[TOKEN_TYPES])
    if types < token_types:
        raise BenchError(
            f"{checkpoint.path}: {TOKEN_TYPES!r} has {types} rows, {asked.task} needs {token_types}; give a checkpoint of {asked.task}"
        )


def check_outputs(
    checkpoint: Checkpoint, asked: Asked, options: LoadOptions, family: str, layer: str
) -> tuple[int, list[str]]:
    """How many outputs a classifier is built with, and notes.

    Args:
        layer: name of the weights whose rows are the outputs.

    Raises:
        BenchError: there are none, or they are not the data's.
    """
    table = checkpoint.tensors.get(layer)
    count = len(table) if isinstance(table, Tensor) and table.ndim == 2 else None
    if asked.labels is not None and any(fnmatch.fnmatchcase(layer, pattern) for pattern in options.allow_missing):
        if count != len(asked.labels):
            return len(asked.labels), []  # it keeps random values
    elif count is None:
        raise BenchError(f"{checkpoint.path}: tensor {layer!r} is missing; give a checkpoint of {asked.task}")
    released = find_released(checkpoint.path, family)
    of_task = released is not None and released.task in (asked.task, asked.asks_as)
    notes = asked.check_outputs(Outputs(checkpoint.path, None, count, of_task, checkpoint.metadata))
    return count or len(asked.labels or ()), notes
