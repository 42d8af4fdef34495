"""What a training leaves on disk: its resumable state, and checkpoints that `run` reads without further flags."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from beit3_bench.backbones.checkpoints import METADATA_KEY
from beit3_bench.backbones.file_kinds import foreign_kind
from beit3_bench.backbones.recipe import Recipe
from beit3_bench.errors import BenchError
from beit3_bench.files import save_atomic
from beit3_bench.harness.record.shapes import check_shape

STATE, LAST, BEST = "state.pt", "last.pth", "best.pth"
VERSION = 1
_MEND = "it was damaged or edited: restore it, or start again with --overwrite"


class Best(TypedDict):
    """The validation of the checkpoint that is kept as the best."""

    metric: str
    value: float
    step: int
    metrics: dict


class State(TypedDict, total=False):
    """A state file, beside its version: everything that a training is resumed from.

    unvalidated: the step is one to validate at, and the training ended before it was; absent where it was.
    """

    step: int
    seed: int
    recipe: dict
    fingerprints: dict[str, str]
    best: Best | None
    unvalidated: bool
    model: dict
    average: dict | None
    optimizer: dict
    scaler: dict | None


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Weights under the names of the family's files, with what belongs to them; `read_checkpoint` reads it."""
    save_atomic(path, {"model": dict(tensors), METADATA_KEY: dict(metadata)})


def check_best(folder: Path, best: Mapping[str, Any] | None) -> None:
    """Raise if the checkpoint that a training has kept as its best is not there any more, or not whole."""
    path = folder / BEST
    if best is not None and not (path.is_file() and zipfile.is_zipfile(path)):
        raise BenchError(
            f"{path}: is missing or damaged, the state says that it holds step {best.get('step')}; restore it, or evaluate "
            f"{LAST}, the last step's"
        )


def read_state(path: Path) -> dict[str, Any]:
    """The content of a state file. Nothing in it is executed.

    Raises:
        BenchError: missing, damaged, or of another version.
    """
    if not path.is_file():
        raise BenchError(f"{path}: no training to resume here; leave out --resume, or give its folder with --output")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file; each means the same to the user
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        kind = f"asks to run {asked[1]}, and nothing was executed" if asked else foreign_kind(path).partition(";")[0]
        why = kind or "is damaged or cut off"
        raise BenchError(f"{path}: not a whole training state (it {why}); delete it and start again") from error
    if not isinstance(state, dict) or type(version := state.get("version")) is not int or version != VERSION:
        raise BenchError(f"{path}: written by another version of this program; start again with --overwrite")
    check_shape(state, State, str(path), _MEND)
    if state.get("step", 0) < 0:
        raise BenchError(f"{path}: step {state['step']} is none; {_MEND}")
    return state


def check_same(
    path: Path,
    stored: Mapping[str, Any],
    recipe: Recipe,
    fingerprints: Mapping[str, str],
    seed: int,
    equal: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Raise if a state was made with another recipe, seed, data or start; names what differs.

    Args:
        equal: other values of a fingerprint that mean the same.

    Raises:
        BenchError: the first differences as "key old -> new".
    """
    for key in ("recipe", "seed", "fingerprints"):
        if key not in stored:
            raise BenchError(f"{path}: key {key!r} is missing; {_MEND}")
    differing = {f"recipe {k}": v for k, v in recipe.changed(stored["recipe"]).items()}
    if stored["seed"] != seed:
        differing["seed"] = (stored["seed"], seed)
    for key, value in fingerprints.items():
        # a state of an earlier version lacks some: it is compared in what it has
        if stored["fingerprints"].get(key, value) not in (value, *(equal or {}).get(key, ())):
            differing[key] = (str(stored["fingerprints"].get(key))[:12], value[:12])
    if differing:
        told = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in list(differing.items())[:5])
        raise BenchError(
            f"{path}: was made with other settings ({told}); give the old ones, or start again with --overwrite"
        )
