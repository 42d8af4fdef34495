"""The files of a run folder as they are read without what made them: card, shards, who writes (see `store`)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import read_limited
from beit3_bench.harness.record.schema import Card
from beit3_bench.harness.record.shapes import check_shape
from beit3_bench.harness.record.shards import committed_batches, row_id
from beit3_bench.locks import is_held

CONFIG, RESULT, SAMPLES = "config.json", "result.json", "samples.npz"
ROWS, LOCK, SUBMISSION = "rows", "lock", "submission"
MEND = "it was edited or damaged, run again with --overwrite"
LARGEST = 2**26
"""Bytes of a JSON file of ours."""


def shards(folder: Path) -> list[Path]:
    """The shards of a run folder, by rank."""
    rows = folder / ROWS
    names: list[str] = []
    with suppress(PermissionError):
        names = os.listdir(rows) if rows.is_dir() else []
    return [rows / name for name in sorted(names) if name.startswith("rank-") and name.endswith(".jsonl")]


def is_running(folder: Path) -> bool:
    """Whether a process is writing to a run folder now."""
    return is_held(folder / LOCK) or has_parts(folder)


def has_parts(folder: Path) -> bool:
    """Whether another process than 0 of a run writes to its folder."""
    return is_held(folder / CONFIG, together=True) or any(map(is_held, shards(folder)))


def stored_batches(folder: Path) -> Iterator[tuple[Path, list[bytes], list[str]]]:
    """Shard, lines and their ids of every stored batch of rows.

    Raises:
        BenchError: a shard that cannot be read, was edited, or, in a finished run, does not end with a whole batch.
    """
    for path in shards(folder):
        count = end = 0
        for lines, position in committed_batches(path):
            count, end = count + len(lines), position
            try:
                names = [row_id(line) for line in lines]
            except ValueError as error:
                raise damaged(path, str(error)) from error
            yield path, lines, names
        if (folder / RESULT).exists() and end < path.stat().st_size:
            raise damaged(path, f"nothing behind its row {count} can be read")


def stored_ids(folder: Path) -> set[str]:
    """Ids of the rows that are stored, without decoding the rest of them.

    Raises:
        BenchError: as `stored_batches`.
    """
    return {name for _, _, names in stored_batches(folder) for name in names}


def damaged(path: Path, why: str) -> BenchError:
    return BenchError(f"{path}: damaged or edited ({why}); run again with --overwrite")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object that the store wrote.

    Raises:
        BenchError: missing, no JSON object, of a size that none has.
    """
    try:
        value = json.loads(read_limited(path, LARGEST), parse_constant=_refuse)
    except FileNotFoundError as error:
        raise BenchError(f"{path}: not there; give the folder that beit3-bench run printed") from error
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); {MEND}") from error
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path}: not valid JSON ({str(error)[:100]}); {MEND}") from error
    if not isinstance(value, dict):
        raise BenchError(f"{path}: expected an object; {MEND}")
    return value


def read_card(path: Path) -> dict[str, Any]:
    """The config.json of a run folder, each of its keys of the kind that it was written with.

    Raises:
        BenchError: as `read_object`; a key of another kind, or text that no command line can hold.
    """
    card = read_object(path)
    check_shape(card, Card, str(path), MEND)
    for text in _texts(card):
        try:
            if not text.isascii():
                os.fsencode(text)
            if "\0" in text:
                raise ValueError("a zero character")
        except ValueError as error:
            raise BenchError(f"{path}: holds half a character or a zero character; {MEND}") from error
    return card


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested lists and dicts, keys included."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, (list, dict)):
            left += value
            if isinstance(value, dict):
                left += value.values()


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")
