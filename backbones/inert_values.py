"""Plain values out of what `inert_pickle` read: NumPy's numbers and arrays, paths, namespaces, whole modules."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from beit3_bench.backbones.inert_pickle import Inert, Reference, shown

_NUMBER = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)")
_ARRAY, _FROM_BUFFER = "numpy.core.multiarray._reconstruct", "numpy.core.numeric._frombuffer"
_SCALAR = "numpy.core.multiarray.scalar"
_DEEPEST, _MOST = 20, 100_000  # of a tree of settings; a pickle may repeat its parts without end
_DEEPEST_MODULE = 64


def _dtype(value: Any) -> np.dtype | None:
    """NumPy's number type that a stand-in describes; None for records, objects and what NumPy does not have."""
    if type(value) is not Inert or value.maker != "numpy.dtype" or not value.arguments:
        return None
    code, state = value.arguments[0], value.state
    order = state[1] if type(state) is tuple and len(state) > 1 else "="
    if type(code) is not str or not _NUMBER.fullmatch(code) or order not in ("<", ">", "|", "="):
        return None
    return np.dtype(("" if order == "|" else order) + code)


def _filled(content: Any, dtype: Any, shape: Any, order: str) -> np.ndarray | None:
    kind = _dtype(dtype)
    if type(content) is str:  # how Python 2 wrote bytes
        content = content.encode("latin1") if all(ord(c) < 256 for c in content) else None
    if kind is None or type(content) is not bytes or type(shape) is not tuple or len(shape) > 32:
        return None
    if not all(type(n) is int and 0 <= n <= len(content) for n in shape):
        return None
    if math.prod(shape) * kind.itemsize != len(content):
        return None
    array = np.frombuffer(content, kind).reshape(shape, order=order)  # type: ignore[call-overload]
    return array.astype(kind.newbyteorder("="))


def array_of(value: Any) -> np.ndarray | None:
    """The array of numbers that a stand-in describes, a copy in this machine's byte order; None for anything else."""
    if type(value) is not Inert:
        return None
    if value.maker == _ARRAY and type(value.state) is tuple and len(value.state) == 5:
        _, shape, dtype, fortran, content = value.state
        return _filled(content, dtype, shape, "F" if fortran is True else "C")
    if value.maker == _FROM_BUFFER and len(value.arguments) == 4:
        content, dtype, shape, order = value.arguments
        return _filled(content, dtype, shape, "F" if order == "F" else "C")
    return None


def mapping_of(value: Any) -> Mapping[Any, Any] | None:
    """The mapping that a value is, a subclass of dict stands for, or (as a state dict) a whole pickled module holds."""
    if isinstance(value, Mapping):
        return value
    if type(value) is not Inert:
        return None
    if type(value.state) is dict and type(value.state.get("_parameters")) is dict:
        names: dict[Any, Any] = {}
        _collect_module(value, "", names, _DEEPEST_MODULE)
        return names
    if value.items and all(type(item) is tuple and len(item) == 2 for item in value.items):
        return {k: v for k, v in value.items if type(k) in (str, int)}
    return None


def _collect_module(module: Any, prefix: str, names: dict[Any, Any], depth: int) -> None:
    """The state dict of a pickled module: parameters, buffers that are saved, and those of the modules in it."""
    state = module.state if type(module) is Inert else None
    if type(state) is not dict or depth == 0 or len(names) > _MOST:
        return
    hidden = state.get("_non_persistent_buffers_set")
    for kind in ("_parameters", "_buffers"):
        for name, value in state[kind].items() if type(state.get(kind)) is dict else ():
            if type(name) is str and value is not None and not (kind == "_buffers" and name in (hidden or ())):
                names[prefix + name] = value
    for name, inner in state["_modules"].items() if type(state.get("_modules")) is dict else ():
        if type(name) is str:
            _collect_module(inner, f"{prefix}{name}.", names, depth - 1)


def plain(value: Any) -> Any:
    """A tree of plain values: a namespace as a dict, NumPy's numbers as numbers, paths as text, the name of anything else.

    Raises:
        ValueError: the tree is deeper or larger than settings are.
    """
    left = _MOST

    def walk(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > _DEEPEST:
            raise ValueError("deeper or larger than settings are")
        if isinstance(value, Mapping):
            return {k if isinstance(k, (str, int, float)) else str(k): walk(v, depth + 1) for k, v in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(walk(v, depth + 1) for v in value)
        if type(value) is Reference:
            return shown(value.path)
        if type(value) is not Inert:
            return value
        if value.maker == _SCALAR and len(value.arguments) == 2:
            array = _filled(value.arguments[1], value.arguments[0], (), "C")
            return f"<{shown(value.maker)}>" if array is None else array.item()
        if value.maker == "argparse.Namespace" and type(value.state) is dict:
            return walk(value.state, depth + 1)
        if value.maker.startswith("pathlib.") and all(type(part) is str for part in value.arguments):
            return "/".join(value.arguments).replace("//", "/")
        array = array_of(value)
        if array is not None:
            return walk(array.tolist(), depth + 1) if array.size <= 1000 else f"<{shown(value.maker)}>"
        inner = mapping_of(value)
        return f"<{shown(value.maker)}>" if inner is None else walk(inner, depth + 1)

    return walk(value, 0)
