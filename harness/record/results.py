"""Find and check the result.json files that the table is made of."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from beit3_bench.backbones.corruptions import parse_corruption
from beit3_bench.errors import BenchError
from beit3_bench.files import read_limited
from beit3_bench.garbage import collection_paused
from beit3_bench.harness.record.folder import LARGEST
from beit3_bench.harness.record.schema import SCHEMA, TO_UPLOAD, ModelCard, Result
from beit3_bench.harness.record.shapes import check_shape
from beit3_bench.text import is_visible_json, visible, visible_values

FIRST_FAMILY = "beit3"
"""The family of results that name none: those of earlier versions, which knew no other."""
SYSTEMS = {FIRST_FAMILY: "BEiT-3", "openclip": "open_clip", "vlmo": "VLMo"}
"""Names of families as the published tables write them; any other family stands under its own name."""
_MEND = "run again"
_EARLIER = "submitted"
"""What earlier versions called `TO_UPLOAD`."""


@dataclass(frozen=True)
class Run:
    """A finished run: its name (path below the runs folder) and its result."""

    name: str
    result: Result


def model_name(card: ModelCard) -> str:
    """``BEiT-3 base``; a model of another family under the family's own name."""
    family = card.get("family") or FIRST_FAMILY
    return f"{SYSTEMS.get(family, family)} {card['preset']}"


def read_results(root: str | Path) -> list[Run]:
    """Every result.json at or below a folder, ordered by path; an absent folder holds none.

    Folders of a run (those that have a result.json) are not searched further.

    Raises:
        BenchError: a file that is not a whole result of this version; names file and key.
    """
    runs, damaged = find_results(root)
    for error in damaged.values():
        raise error
    return runs


def find_results(root: str | Path) -> tuple[list[Run], dict[str, BenchError]]:
    """As `read_results`, and by the name of the run, what is wrong with those that cannot be read.

    Raises:
        BenchError: the folder is a file.
    """
    root = Path(root)
    runs: list[Run] = []
    damaged: dict[str, BenchError] = {}
    if root.exists() and not root.is_dir():
        raise BenchError(f"{root}: is a file; --runs takes the folder that holds the runs")
    with collection_paused():
        for folder, below, files in os.walk(root):
            below.sort()
            if "result.json" in files:
                below.clear()
                name = Path(folder).relative_to(root).as_posix()
                name = visible(root.resolve().name if name == "." else name)
                try:
                    runs.append(Run(name, read_result(Path(folder) / "result.json")))
                except BenchError as error:
                    damaged[name] = error
    return runs, damaged


def read_result(path: Path) -> Result:
    """One result.json, checked key by key. Control characters of its texts are written out (see `visible`).

    Raises:
        BenchError: unreadable, not JSON, a missing key or a value of another kind.
    """
    try:
        content = read_limited(path, LARGEST)
        raw = json.loads(content, parse_constant=lambda name: _refuse(path, name))
    except OSError as error:
        raise BenchError(f"{path}: not a readable result file ({error.strerror}); delete it and run again") from error
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path}: not a readable result file ({str(error)[:100]}); delete it and run again") from error
    if not isinstance(raw, dict):
        raise BenchError(f"{path}: expected an object, found {type(raw).__name__}; delete it and run again")
    if raw.get("schema") != SCHEMA:
        raise BenchError(
            f"{path}: schema {raw.get('schema')!r}, this version reads {SCHEMA}; run again with this version, "
            "or use the version that wrote it"
        )
    if raw.get("status") == _EARLIER:
        raw["status"] = TO_UPLOAD
    check_shape(raw, Result, str(path), _MEND)
    if not is_visible_json(content):
        raw = visible_values(raw)
    for key in ("params", "image_size"):
        if not 0 <= raw["model"][key] < 1e15:
            raise BenchError(f"{path}: model: {key} {raw['model'][key]!r:.40} is out of range; run again")
    if raw["subset"] is not None and len(raw["subset"].keys() & {"limit", "estimate"}) != 1:
        raise BenchError(f"{path}: subset says neither limit nor estimate, or both; run again")
    if raw.get("corrupt") is not None:
        parse_corruption(raw["corrupt"], f"{path}: corrupt")
    for name, metric in raw["metrics"].items():
        where = f"{path}: metrics[{name!r}]"
        interval = metric["ci95"]
        if not 0 <= metric["decimals"] <= 15:
            raise BenchError(f"{where}: decimals {metric['decimals']!r:.40} is not a rounding; run again")
        if interval is not None and (len(interval) != 2 or interval[0] > interval[1]):
            raise BenchError(f"{where}: ci95 {interval} is not [low, high]; run again")
    if raw["status"] == "scored" and sum(m["headline"] for m in raw["metrics"].values()) != 1:
        raise BenchError(f"{path}: a scored result has exactly one headline metric; run again")
    return cast(Result, raw)


def _refuse(path: Path, name: str) -> Any:
    raise BenchError(f"{path}: holds {name}, which is no result; run again")
