"""Data sets and checkpoints in a folder that holds several: found by the names that they are released under."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from beit3_bench.backbones.file_kinds import INDEXES
from beit3_bench.backbones.registry import split_source
from beit3_bench.backbones.released import find_released, released_files
from beit3_bench.errors import BenchError
from beit3_bench.tasks.facts import read_facts

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
WEIGHTS_IN_FOLDER = ("best.pth", "model_final.pth", *INDEXES)
"""What the checkpoint of a folder that is named after a task may be called, the first before the others: `finetune`'s,
detectron2's, an index of several files."""


class NotThere(BenchError):
    """A folder that holds several has none for a task."""


# ---- data ----------------------------------------------------------------------------------------------------------------


def data_folders(task: str) -> tuple[str, ...]:
    """What the folder of a task's data may be called."""
    return read_facts(task).data.folders


def is_data_root(task: str, folder: Path) -> bool | None:
    """Whether a folder holds files that a task reads; None where its facts name none."""
    needs = read_facts(task).data.needs
    return any(need.find(folder) is not None for need in needs) if needs else None


def _inside(task: str, folder: Path) -> list[Path]:
    """Folders in a folder that are called as the data set of a task."""
    return distinct(folder / name for name in (*data_folders(task), task) if (folder / name).is_dir())


def _only_holds(task: str, folder: Path) -> bool:
    """Whether a folder in which readers find a task's files is one of several data sets.

    Some readers look one folder deeper for an archive's own folder, which may be the folder of the data set. The deeper one is
    the root then, so that the data set is the same whichever of the two was named; an archive's folder with the pictures beside it
    is not.
    """
    names = data_folders(task)
    places = (need.find(folder) for need in read_facts(task).data.needs)
    first = {place.relative_to(folder).parts[0] for place in places if place is not None}
    return first <= set(names) and folder.name not in names and not (folder / "images").is_dir()


def find_data(task: str, folder: Path) -> Path:
    """The data root of a task: a folder itself, or the one in it that is called as the data set is.

    A path that is no folder, and a folder that is called as the data set and lacks something, are the reader's to judge.

    Raises:
        NotThere: the folder is there, and neither.
        BenchError: several folders in it are called so, and hold such data.
    """
    is_root = is_data_root(task, folder) if folder.is_dir() else None
    if is_root is None or (is_root and not _only_holds(task, folder)):
        return folder
    inner = _inside(task, folder)
    filled = [place for place in inner if is_data_root(task, place)]
    if len(filled) > 1:
        raise BenchError(
            f"{folder}: holds {' and '.join(place.name for place in filled)}, and either may be the data of {task}; "
            f"say which: --data-root {task}={filled[0]}"
        )
    if is_root and not filled:
        return folder
    if inner:
        return (filled or inner)[0]
    if folder.name in data_folders(task):
        return folder
    names = ", ".join(data_folders(task)) or task
    raise NotThere(
        f"{folder}: has no data of {task}: neither its files (see: beit3-bench tasks {task}) nor a folder {names}; "
        "check --data-root"
    )


def distinct(places: Iterable[Path]) -> list[Path]:
    """Without those that are the same file or folder under another name."""
    kept: dict[tuple[int, int], Path] = {}
    for place in places:
        facts = os.stat(place)
        kept.setdefault((facts.st_dev, facts.st_ino), place)
    return list(kept.values())


# ---- checkpoints ---------------------------------------------------------------------------------------------------------


def find_checkpoint(task: str, text: str, asks_as: str = "") -> str:
    """The checkpoint of a task, as ``[FAMILY:]SOURCE``: what is named, or a file in it where that is a folder of several.

    In such a folder it is called ``<task>.pth`` (or another suffix of weights), lies in a folder ``<task>``, or has the name of a
    released file that was fine-tuned for the task; where none was, of one that is evaluated on it as it was pre-trained.

    Args:
        asks_as: the task whose checkpoints answer this one, too, where the folder has none of its own (`Task.asks_as`).

    Raises:
        NotThere: the folder has none for this task.
        BenchError: it has several; names them.
    """
    family, _ = split_source(text)
    folder = Path(text)
    if family is not None or not folder.is_dir() or any((folder / name).is_file() for name in INDEXES):
        return text
    released = {file: record for file in _weights(folder) if (record := find_released(file)) is not None}
    named: list[Path] = []
    for name in (task, asks_as) if asks_as else (task,):
        named = named or [*_named_after(name, folder), *(file for file, one in released.items() if one.task == name)]
        named = named or [file for file, record in released.items() if record.answers(name)]
    candidates = distinct(named)
    if len(candidates) > 1:
        names = " and ".join(str(file.relative_to(folder)) for file in candidates)
        raise BenchError(
            f"{folder}: has {len(candidates)} checkpoints for task {task}: {names}; say which: "
            f"--checkpoint {task}={candidates[0]}"
        )
    if not candidates:
        instance = _for_instance(asks_as or task)
        raise NotThere(
            f"{folder}: is a folder that has no checkpoint for task {task}: no {task}.pth, no {task}/best.pth{instance}; "
            f"say which: --checkpoint {task}=FILE"
        )
    return str(candidates[0])


def _weights(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())


def _named_after(task: str, folder: Path) -> Iterator[Path]:
    """Files that a folder of checkpoints has under the name of a task."""
    yield from (file for suffix in SUFFIXES if (file := folder / f"{task}{suffix}").is_file())
    yield from (file for name in read_facts(task).checkpoints if (file := folder / name).is_file())
    inner = folder / task
    if not inner.is_dir():
        return
    known = next((inner / name for name in WEIGHTS_IN_FOLDER if (inner / name).is_file()), None)
    if known is not None:
        yield inner if known.name in INDEXES else known
    else:
        yield from _weights(inner)


def _for_instance(task: str) -> str:
    """A released file that would have been one."""
    files = sorted((file for file in released_files() if file.answers(task)), key=lambda file: file.task != task)
    return f", no released file of it such as {files[0].file}" if files else ""
