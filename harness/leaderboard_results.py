"""Find and check the result.json files that the table is made of."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from beit3_bench.backbones.errors import BenchError
from beit3_bench.harness.schema import SCHEMA, Result

STATUSES = ("scored", "submitted", "not installed")
_NUMBER = (int, float)
_RESULT = {
    "schema": int,
    "task": str,
    "split": str,
    "metrics": dict,
    "counts": dict,
    "notes": list,
    "status": str,
    "subset": (dict, type(None)),
    "world": str,
    "setting": str,
    "model": dict,
    "provenance": dict,
    "timing": dict,
    "chance": (*_NUMBER, type(None)),
}
_METRIC = {
    "value": _NUMBER,
    "unit": str,
    "ci95": (list, type(None)),
    "headline": bool,
    "higher_is_better": bool,
    "decimals": int,
}
_MODEL = {
    "preset": str,
    "checkpoint": str,
    "sha256": str,
    "weight": (str, type(None)),
    "image_size": int,
    "params": int,
    "allow_missing": list,
}
_CHOICES = {"status": STATUSES, "world": ("real", "tiny"), "setting": ("fine-tuned", "zero-shot")}


@dataclass(frozen=True)
class Run:
    """A finished run: its name (path below the runs folder) and its result."""

    name: str
    result: Result


def read_results(root: str | Path) -> list[Run]:
    """Every result.json at or below a folder, ordered by path; an absent folder holds none.

    Folders of a run (those that have a result.json) are not searched further.

    Raises:
        BenchError: a file that is not a whole result of this version; names file and key.
    """
    root = Path(root)
    runs: list[Run] = []
    if root.exists() and not root.is_dir():
        raise BenchError(f"{root}: is a file; --runs takes the folder that holds the runs")
    for folder, below, files in os.walk(root):
        below.sort()
        if "result.json" in files:
            below.clear()
            name = Path(folder).relative_to(root).as_posix()
            path = Path(folder) / "result.json"
            runs.append(Run(root.resolve().name if name == "." else name, read_result(path)))
    return runs


def read_result(path: Path) -> Result:
    """One result.json, checked key by key.

    Raises:
        BenchError: unreadable, not JSON, a missing key or a value of another kind.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: _refuse(path, name))
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path}: not a readable result file ({error}); delete it and run again") from error
    if not isinstance(raw, dict):
        raise BenchError(f"{path}: expected an object, found {type(raw).__name__}; delete it and run again")
    if raw.get("schema") != SCHEMA:
        raise BenchError(
            f"{path}: schema {raw.get('schema')!r}, this version reads {SCHEMA}; run again with this version, "
            "or use the version that wrote it"
        )
    _check(raw, _RESULT, f"{path}")
    _check(raw["model"], _MODEL, f"{path}: model")
    for key, allowed in _CHOICES.items():
        if raw[key] not in allowed:
            raise BenchError(f"{path}: {key} {raw[key]!r} is none of {', '.join(allowed)}; run again")
    if raw["chance"] is not None and not _is_finite(raw["chance"]):
        raise BenchError(f"{path}: chance is not a finite number; run again")
    for key in ("params", "image_size"):
        if not 0 <= raw["model"][key] < 1e15:
            raise BenchError(f"{path}: model: {key} {raw['model'][key]!r:.40} is out of range; run again")
    if raw["subset"] is not None:
        _check(raw["subset"], {"limit": int}, f"{path}: subset")
    for name, metric in raw["metrics"].items():
        where = f"{path}: metrics[{name!r}]"
        _check(metric, _METRIC, where)
        interval = metric["ci95"]
        if not all(map(_is_finite, [metric["value"], *(interval or [])])):
            raise BenchError(f"{where}: holds a value that is not a finite number; run again")
        if not 0 <= metric["decimals"] <= 15:
            raise BenchError(f"{where}: decimals {metric['decimals']!r:.40} is not a rounding; run again")
        if metric["unit"] not in ("percent", "fraction"):
            raise BenchError(f"{where}: unit {metric['unit']!r} is neither percent nor fraction; run again")
        if interval is not None and (len(interval) != 2 or interval[0] > interval[1]):
            raise BenchError(f"{where}: ci95 {interval} is not [low, high]; run again")
    if raw["status"] == "scored" and sum(m["headline"] for m in raw["metrics"].values()) != 1:
        raise BenchError(f"{path}: a scored result has exactly one headline metric; run again")
    return cast(Result, raw)


def _refuse(path: Path, name: str) -> Any:
    raise BenchError(f"{path}: holds {name}, which is no result; run again")


def _is_finite(value: Any) -> bool:
    """JSON may hold whole numbers beyond any float."""
    return isinstance(value, _NUMBER) and not isinstance(value, bool) and -1e300 < value < 1e300


def _check(record: Any, kinds: dict[str, Any], where: str) -> None:
    if not isinstance(record, dict):
        raise BenchError(f"{where}: expected an object, found {type(record).__name__}; run again")
    for key, kind in kinds.items():
        if key not in record:
            raise BenchError(f"{where}: key {key!r} is missing; run again")
        value = record[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise BenchError(f"{where}: key {key!r} holds {str(value)[:40]!r} of another kind than expected; run again")
