"""The tensors of a TorchScript archive, read as data: its code is never compiled, let alone run.

An archive of `torch.jit.save` holds the module as a pickle of plain attributes (``data.pkl``) beside the numbers and the code.
The attributes are a tree of modules; a tensor's name is the way to it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from beit3_bench.backbones.checkpoint_files import read_archive
from beit3_bench.backbones.file_kinds import again
from beit3_bench.backbones.inert_pickle import DamagedPickle, Inert, UnsafePickle, shown
from beit3_bench.errors import BenchError, exhausted

_DEEPEST, _MOST = 64, 100_000  # modules in modules; modules, those that stand in several places counted in each


def _as_it_is(value: Any, *_: Any) -> Any:
    return value


_TYPED: dict[str, Callable[..., Any]] = {
    f"torch.jit._pickle.{name}": _as_it_is
    for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
}
"""What TorchScript wraps around lists and dicts to say of which type they are."""


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, by the names of its members."""
    try:
        with zipfile.ZipFile(path) as archive:
            last = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # zipfile raises many kinds for what is none
        return False
    return {"data.pkl", "constants.pkl"} <= last


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters, buffers and other tensor attributes by name.

    Raises:
        BenchError: cut, damaged, or holding what is no description of modules.
    """
    try:
        content = read_archive(path, _TYPED)
    except UnsafePickle as error:
        raise BenchError(
            f"{path}: asks to run {shown(str(error))}; nothing was executed; give the safetensors form of the weights"
        ) from error
    except (BenchError, MemoryError):
        raise
    except Exception as error:  # damaged bytes fail in the pickle, the archive or the tensors, each in its own way
        if exhausted(error) is not None:
            raise
        line = " ".join(str(error).split())[:120] or type(error).__name__
        raise BenchError(f"{path}: not a whole TorchScript archive ({line}); {again(path)}") from error
    try:
        tensors = _tensors_of(content)
    except DamagedPickle as error:
        raise BenchError(f"{path}: not a whole TorchScript archive ({error}); {again(path)}") from error
    if not tensors:
        raise BenchError(f"{path}: is a TorchScript archive without tensors; give the weights as .safetensors")
    return tensors


def _tensors_of(root: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    modules: list[tuple[str, int, Any]] = [("", 0, root)]
    for prefix, depth, module in modules:  # grows on the way
        if depth > _DEEPEST or len(modules) > _MOST:
            raise DamagedPickle("modules in modules without end")
        state = module.state if type(module) is Inert else None
        for name, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif type(value) is Inert:
                modules.append((f"{prefix}{name}.", depth + 1, value))
    return tensors
