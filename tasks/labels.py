"""Where the meaning of a checkpoint's outputs, and what the data takes them to mean, part."""

from __future__ import annotations

from collections.abc import Sequence


def first_difference(trained: Sequence[str], labels: Sequence[str], what: str) -> str:
    """In words, where a checkpoint's labels and those of the data part."""
    for n, (a, b) in enumerate(zip(trained, labels, strict=False)):
        if a != b:
            return f"{what} {n} is {str(a)[:60]!r} in the checkpoint, {str(b)[:60]!r} here"
    return f"{len(trained)} {what}s in the checkpoint, {len(labels)} here"
