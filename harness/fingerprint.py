"""Hashes that say whether two runs saw the same thing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.tasks.base import Example


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-like value, independent of key order."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)


def data_fingerprint(examples: Sequence[Example], data_root: Path) -> str:
    """Hash over what the examples say and the names and sizes of their image files, in order of id.

    The folder above the data does not enter: a moved data set is the same data set.
    """
    sizes: dict[str, int] = {}
    for example in examples:
        for path in example.images:
            if path not in sizes:
                sizes[path] = os.stat(path).st_size
    prefix = json.dumps(str(data_root).rstrip("/") + "/")[1:-1]
    running = hashlib.sha256()
    for example in sorted(examples, key=lambda e: e.id):
        images = [[path, sizes[path]] for path in example.images]
        record = [example.id, example.kind, images, example.text, example.cluster, example.target, example.meta]
        running.update(_canonical(record).replace(prefix, "").encode())
        running.update(b"\n")
    return running.hexdigest()


def short(fingerprints: Mapping[str, str]) -> str:
    """Eight hex digits that stand for all fingerprints of a run; part of its folder's name."""
    return digest(dict(fingerprints))[:8]
