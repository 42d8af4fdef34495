"""Filling a network from a file's tensors: every one is used, or there is a reason that has a name."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from beit3_bench.backbones.allocation import allocate
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


# ---- a network whose parts have the file's names ------------------------------------------------------------------------


def filled_module(
    blank: Callable[[], nn.Module],
    tensors: Mapping[str, Tensor],
    origin: str,
    allow_missing: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> tuple[nn.Module, Filled]:
    """A network with a file's tensors, in evaluation mode; on the meta device where they are.

    Args:
        blank: makes it; called on the meta device.
        ignored: patterns of names that the file may hold, too (buffers, momentum copies, heads of others), unless the network has them.

    Raises:
        BenchError: a tensor too few, too many, or of another shape; names it.
    """
    with torch.device("meta"):
        module = blank()
    if not any(tensor.is_meta for tensor in tensors.values()):
        allocate(module)
        if allow_missing:
            initialise(module)
    targets = module.state_dict()
    aside = {name for name in tensors if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)}
    filled = fill_strictly(targets, tensors, origin, allow_missing, aside - set(targets))
    return module.eval(), filled


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """Random values for every parameter: normal, std 0.02, LayerNorms 1 and 0 (official initialisation of ALBEF, BLIP and ViLT)."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim < 2:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
