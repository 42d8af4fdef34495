"""What the outputs of a checkpoint's head mean, as the file says itself, beside what the data takes them to mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError


def labels_of(metadata: Mapping[str, Any], checkpoint: Path) -> list[str] | None:
    """What the outputs of a fine-tuned checkpoint mean, as it says itself; None where it does not.

    Raises:
        BenchError: something else than a list of names.
    """
    labels = metadata.get("labels")
    if labels is not None and not (isinstance(labels, (list, tuple)) and all(isinstance(n, str) for n in labels)):
        raise BenchError(f"{checkpoint}: its 'labels' are no list of names; this file was not written by beit3-bench")
    return None if labels is None else list(labels)


def first_difference(trained: Sequence[str], labels: Sequence[str], what: str) -> str:
    """In words, where a checkpoint's labels and those of the data part."""
    for n, (a, b) in enumerate(zip(trained, labels, strict=False)):
        if a != b:
            return f"{what} {n} is {str(a)[:60]!r} in the checkpoint, {str(b)[:60]!r} here"
    return f"{len(trained)} {what}s in the checkpoint, {len(labels)} here"
