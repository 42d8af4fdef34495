"""The run folders of a machine: finding them, and deleting one without losing another."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.files import storage_error
from beit3_bench.harness.leaderboard_results import read_result
from beit3_bench.harness.store import CONFIG, LOCK, RESULT, ROWS, SAMPLES, SUBMISSION, RunStore, read_object

OWN = (RESULT, SAMPLES, SUBMISSION, ROWS, CONFIG, LOCK)
"""What a run folder consists of, in the order in which it is deleted: never a result without its rows."""


@dataclass(frozen=True)
class RunFolder:
    """One run folder as `beit3-bench runs` shows it.

    status: scored, submitted, not installed, unfinished, running (a process writes to it) or damaged.
    """

    name: str
    path: str
    status: str
    task: str = ""
    split: str = ""
    checkpoint: str = ""
    setting: str = ""
    subset: dict[str, int] | None = None
    world: str = ""
    headline: dict[str, Any] | None = None
    time: str = ""
    rows: int = 0
    bytes: int = 0
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def list_runs(root: str | Path) -> list[RunFolder]:
    """Every run folder at or below a folder, by path; what is inside a run folder is not searched.

    Raises:
        BenchError: the folder is a file.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise BenchError(f"{root}: is a file; --runs takes the folder that holds the runs")
    found = []
    for folder, below, _ in os.walk(root):
        below.sort()
        path = Path(folder)
        if is_run_folder(path):
            below.clear()
            name = path.relative_to(root).as_posix()
            found.append(_described(path, path.resolve().name if name == "." else name))
    return found


def is_run_folder(path: Path) -> bool:
    """Whether `beit3-bench run` made this folder: a card with shards beside it, or a result of ours."""
    if (path / CONFIG).is_file() and (path / ROWS).is_dir():
        return all(p.name.startswith("rank-") and p.suffix == ".jsonl" for p in (path / ROWS).iterdir())
    try:
        return (path / RESULT).is_file() and {"schema", "task", "metrics", "status"} <= read_object(
            path / RESULT
        ).keys()
    except BenchError:
        return False


def _described(path: Path, name: str) -> RunFolder:
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and not p.is_symlink())
    try:
        rows = len(RunStore.read(path).done()) if (path / CONFIG).is_file() else 0
        if not (path / RESULT).is_file():
            card = read_object(path / CONFIG)
            return RunFolder(
                name,
                str(path),
                "running" if is_locked(path) else "unfinished",
                str(card.get("task", "")),
                str(card.get("split", "")),
                Path(str(card.get("checkpoint", ""))).name,
                str(card.get("setting", "")),
                card.get("subset"),
                rows=rows,
                bytes=size,
            )
        result = read_result(path / RESULT)
    except BenchError as error:
        return RunFolder(name, str(path), "damaged", bytes=size, problem=str(error))
    headline = next(({"metric": n, **m} for n, m in result["metrics"].items() if m["headline"]), None)
    return RunFolder(
        name,
        str(path),
        result["status"],
        result["task"],
        result["split"],
        result["model"]["checkpoint"],
        result["setting"],
        dict(result["subset"]) if result["subset"] else None,  # type: ignore[arg-type]
        result["world"],
        headline,
        str(result["provenance"].get("time", "")),
        rows,
        size,
    )


def is_locked(folder: Path) -> bool:
    """Whether a process is writing to a run folder now."""
    try:
        with _locked(folder):
            return False
    except BenchError:
        return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, where it has one."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise storage_error(folder / LOCK, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = (folder / LOCK).read_text(errors="replace").strip() or "a process"
            raise BenchError(f"{folder}: {holder} is writing to this run; stop it first") from error
        yield
    finally:
        os.close(lock)


def find_run(name: str | Path, root: Path) -> Path:
    """The run folder of a path, or of a name as `beit3-bench runs` lists it.

    Raises:
        BenchError: there is none, or it is not a run folder.
    """
    places = list(dict.fromkeys([Path(name), root / name]))
    for place in places:
        if place.is_symlink():
            raise BenchError(f"{place}: is a link; name the run folder itself")
        if place.is_dir() and is_run_folder(place):
            return place
    there = next((place for place in places if place.exists()), None)
    if there is not None:
        raise BenchError(
            f"{there}: is not a run folder, it has neither a {CONFIG} with rows nor our {RESULT}; nothing was deleted"
        )
    raise BenchError(f"{name}: no such run here or in {root}; see: beit3-bench runs")


def remove_run(folder: Path) -> list[str]:
    """Delete a run: its own files, then the folder.

    Returns:
        Names of other files that are in the folder; they, and the folder, stay.

    Raises:
        BenchError: a process is writing to it, or a file cannot be deleted.
    """
    with _locked(folder):
        try:
            for part in folder.glob(".*.part"):
                part.unlink()
            for name in OWN:
                path = folder / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            strangers = sorted(p.name for p in folder.iterdir())
            if not strangers:
                folder.rmdir()
        except OSError as error:
            raise BenchError(
                f"{error.filename or folder}: cannot be deleted ({error.strerror}); check the permissions"
            ) from error
    return strangers
