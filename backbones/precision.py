"""The arithmetic that `--dtype` names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from beit3_bench.errors import BenchError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def arithmetic(dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    """The arithmetic of ``--dtype`` on a device, to be entered around a network."""
    kind = DTYPES[dtype]
    if device.type == "mps" and kind is torch.bfloat16 and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise BenchError("--dtype bf16: the GPU of a Mac computes in it from macOS 14 on; use --dtype fp16 or fp32")
    return nullcontext() if kind is torch.float32 else torch.autocast(device.type, dtype=kind)


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    """A last layer in the precision of its weights, also under autocast: eight bits of a logit or an embedding make ties."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(next(layer.parameters()).dtype))


@contextmanager
def full_float32() -> Iterator[None]:
    """In this block products of float32 are made in float32, whatever the program around it allows (TF32, bfloat16); it finds its
    settings as they were.
    """
    before = [(setting, _read(setting)) for setting in _settings()]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for setting in _settings()[len(_OLDER) :]:
        if _read(setting) not in ("none", "ieee"):  # the program's own word for all libraries together
            setattr(*setting, "ieee")
    try:
        yield
    finally:
        for (owner, name), value in before:
            if value is None:
                continue
            if name == "float32_matmul_precision":
                torch.set_float32_matmul_precision(value)
            else:
                setattr(owner, name, value)


_Setting = tuple[Any, str]
_OLDER: list[_Setting] = [
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch, "float32_matmul_precision"),  # behind its coarser half
]


def _settings() -> list[_Setting]:
    """PyTorch's older settings first, which write the newer ones (by library, from 2.9 on), too."""
    backends: Any = torch.backends  # whose stubs lag behind
    if not hasattr(backends, "fp32_precision"):
        return _OLDER
    libraries = (
        backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn,
        backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn,
    )  # fmt: skip
    return [*_OLDER, *((library, "fp32_precision") for library in libraries)]


def _read(setting: _Setting) -> Any:
    """None where PyTorch refuses to say an older setting because the program has made newer ones."""
    owner, name = setting
    read: Callable[[], Any] = torch.get_float32_matmul_precision if owner is torch else lambda: getattr(owner, name)
    try:
        return read()
    except RuntimeError:
        return None
