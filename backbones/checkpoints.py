"""Reading a checkpoint file of any family: its tensors, and what is beside them. Nothing in a file is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from beit3_bench.backbones.checkpoint_files import read_file
from beit3_bench.backbones.checkpoint_layout import bare_names, of_one_network, weights_of
from beit3_bench.backbones.file_kinds import checkpoint_file
from beit3_bench.backbones.inert_pickle import Inert
from beit3_bench.backbones.inert_values import mapping_of, plain
from beit3_bench.errors import BenchError

METADATA_KEY = "beit3_bench"  # what our own fine-tuned checkpoints carry beside "model"


@dataclass
class Checkpoint:
    """A checkpoint file: tensors under official names, our metadata, the official ``args`` as a dict, the file's hash.

    notes: what was chosen where the file left a choice.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    arguments: dict[str, Any]
    sha256: str
    notes: list[str] = field(default_factory=list)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read `.pth`/`.pt`/`.bin`/`.ckpt` (official ``{"model" | "module": tensors, "args": Namespace}``, a bare state dict, or what
    training frameworks make of it), `.safetensors`, or the index of several files (or their folder). Nothing in a file is
    executed: objects beside the weights are read as names; see `inert_pickle`.

    Which of several sets of weights is read, and under which names: see `checkpoint_layout`.

    Raises:
        BenchError: missing, truncated or unsafe file, or no tensors in it; says what the file is where that is known.
    """
    path = checkpoint_file(path)
    file = read_file(path)
    mapping = mapping_of(file.content)
    if mapping is None:
        kind = type(file.content).__name__ if type(file.content) is not Inert else str(file.content)
        raise BenchError(f"{path}: holds a {kind}, not a state dict; is this a BEiT-3 checkpoint?")
    weights, notes = weights_of(mapping)
    try:
        named = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
        tensors, several = of_one_network(bare_names(named))
        metadata = plain(mapping.get(METADATA_KEY) or {})
        if METADATA_KEY in file.texts:
            metadata = json.loads(file.texts[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path}: {error}") from error
    if not tensors:
        raise BenchError(f"{path}: holds no tensors{_unread(weights)}; is this a BEiT-3 checkpoint?")
    if not isinstance(metadata, dict):
        raise BenchError(
            f"{path}: {METADATA_KEY!r} is a {type(metadata).__name__}, not a table; this file was not written by beit3-bench"
        )
    return Checkpoint(path, tensors, metadata, _arguments(mapping.get("args")), file.sha256(), notes + several)


def _unread(weights: Mapping[str, Any]) -> str:
    """Which kind of tensors a file has, where they are of a kind that is not read (quantised, sparse, sharded)."""
    kinds = sorted({str(value) for value in weights.values() if type(value) is Inert})
    return f" of numbers ({', '.join(kinds[:3])})" if kinds else ""


def _arguments(value: Any) -> dict[str, Any]:
    """The official ``args`` as a dict; empty where they are nothing of the kind."""
    try:
        values = plain(value)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
