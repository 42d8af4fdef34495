"""The run folders of a machine: finding them, and deleting one without losing another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import clear_parts
from beit3_bench.harness.record.folder import (
    CONFIG,
    LOCK,
    RESULT,
    ROWS,
    SAMPLES,
    SUBMISSION,
    has_parts,
    is_running,
    read_card,
    read_object,
    stored_ids,
)
from beit3_bench.harness.record.released import other_data
from beit3_bench.harness.record.results import read_result
from beit3_bench.locks import Held, hold

PAGE = "page.html"
"""The page that `beit3-bench show` makes of a run, where it is not told another place."""

OWN = (RESULT, SAMPLES, SUBMISSION, ROWS, PAGE, CONFIG, LOCK)
"""What a run folder consists of, in the order in which it is deleted: never a result without its rows."""


@dataclass(frozen=True)
class RunFolder:
    """One run folder as `beit3-bench runs` shows it.

    status: scored, to upload, predicted, not installed, unfinished, running (a process writes to it) or damaged.
    """

    name: str
    path: str
    status: str
    task: str = ""
    split: str = ""
    checkpoint: str = ""
    setting: str = ""
    subset: dict[str, Any] | None = None
    world: str = ""
    other_data: str = ""
    corrupt: str = ""
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
    runs = []
    for folder, below, files in os.walk(root):
        below.sort()
        path = Path(folder)
        if _looks_like_run(path, {*below, *files}):
            below.clear()
            name = path.relative_to(root).as_posix()
            runs.append(_described(path, path.resolve().name if name == "." else name))
    return runs


def _looks_like_run(path: Path, names: Set[str]) -> bool:
    """As `is_run_folder`, for a list: what else lies among the rows, or a damaged result, hides no run. names: of all that is in it."""
    return {CONFIG, ROWS} <= names or (RESULT in names and is_run_folder(path))


def is_run_folder(path: Path) -> bool:
    """Whether `beit3-bench run` made this folder: a card with shards beside it, or a result of ours."""
    try:
        if (path / CONFIG).is_file() and (path / ROWS).is_dir():
            return all(p.name.startswith("rank-") and p.suffix == ".jsonl" for p in (path / ROWS).iterdir())
        return (path / RESULT).is_file() and {"schema", "task", "metrics", "status"} <= read_object(
            path / RESULT
        ).keys()
    except (OSError, BenchError):
        return False


def _described(path: Path, name: str) -> RunFolder:
    size = _size(path)
    try:
        has_card = (path / CONFIG).is_file()
        if not has_card and not (path / RESULT).is_file():
            raise BenchError(f"{path / CONFIG}: is no file; delete the folder and run again")
        card = read_card(path / CONFIG) if has_card else None
        rows = 0 if card is None else len(stored_ids(path))
        if card is not None and not os.path.lexists(path / RESULT):
            return RunFolder(
                name,
                str(path),
                "running" if is_running(path) else "unfinished",
                str(card.get("task", "")),
                str(card.get("split", "")),
                Path(str(card.get("checkpoint", ""))).name,
                str(card.get("setting", "")),
                card.get("subset"),
                corrupt=card.get("corrupt") or "",
                rows=rows,
                bytes=size,
            )
        result = read_result(path / RESULT)
    except (BenchError, OSError) as error:
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
        dict(result["subset"]) if result["subset"] else None,
        result["world"],
        other_data(result),
        result.get("corrupt") or "",
        headline,
        str(result["provenance"].get("time", "")),
        rows,
        size,
    )


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, as far as they can be looked at."""
    size, left = 0, [str(folder)]
    while left:
        with suppress(OSError), os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    with suppress(OSError):  # deleted since, or a folder that may be listed and not entered
                        size += entry.stat(follow_symlinks=False).st_size
    return size


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, and see that no process of an earlier start writes on."""
    try:
        lock = hold(folder / LOCK)
    except Held as holder:
        raise BenchError(f"{folder}: {holder} is writing to this run; stop it first") from holder
    try:
        if has_parts(folder):
            raise BenchError(f"{folder}: a process of an earlier start is writing to this run; stop it first")
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
    with _held(folder):
        try:
            clear_parts(folder)
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
