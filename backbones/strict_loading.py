"""Filling a network from a file's tensors: every one is used, or there is a reason that has a name."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from beit3_bench.errors import BenchError

_LISTED = 5  # names in a message


@dataclass
class Filled:
    """missing, unexpected: names that ``allow_missing`` let pass: the first kept what the network had, the second were left out."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def fill_strictly(
    targets: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    origin: str,
    allow_missing: Sequence[str] = (),
    ignored: Collection[str] = (),
) -> Filled:
    """Copy tensors into a network.

    Args:
        targets: the file's name of each part of the network -> what is to be filled.
        origin: what messages begin with.
        allow_missing: patterns of names that may be missing, unexpected or of another shape.
        ignored: names of the file that mean nothing for this network.

    Raises:
        BenchError: a missing, unexpected or misshapen tensor that no pattern allows; lists the names.
    """

    def allowed(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in allow_missing)

    misshapen = {
        name: f"{name} {wrong}"
        for name, target in targets.items()
        if name in tensors and (wrong := _wrong(tensors[name], target))
    }
    missing = [name for name in targets if name not in tensors]
    unexpected = [name for name in tensors if name not in targets and name not in ignored]
    misfits = {
        "of another shape": [line for name, line in misshapen.items() if not allowed(name)],
        "missing": [name for name in missing if not allowed(name)],
        "unexpected": [name for name in unexpected if not allowed(name)],
    }
    if any(misfits.values()):
        counted = ", ".join(f"{len(names)} {what} ({_first(names)})" for what, names in misfits.items() if names)
        raise BenchError(
            f"{origin}: does not fit this model: tensors {counted}; give the checkpoint of this task and size"
        )
    with torch.no_grad():
        for name, target in targets.items():
            if name in tensors and name not in misshapen:
                target.copy_(tensors[name])
    return Filled(sorted({*missing, *misshapen}), sorted(unexpected))


def _wrong(value: object, target: Tensor) -> str:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return f"{value.dtype if isinstance(value, Tensor) else type(value).__name__} instead of floating-point numbers"
    return "" if value.shape == target.shape else f"{tuple(value.shape)} instead of {tuple(target.shape)}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
