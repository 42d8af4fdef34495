"""The run folder: nothing written is lost by a kill, a full disk or a second process.

config.json             what was asked for, and the fingerprints that a resumed run must share
rows/rank-00000.jsonl   one shard per process (see `rows`)
samples.npz             cluster table and per-sample values (see `samples`)
submission/             files for an official server, where the task writes any
result.json             written last, atomically: a folder that has it is finished
lock                    held by process 0 while a run writes; the others hold config.json, all together

Somebody else may have made a run folder: nothing is written through its links, and its files are checked as they are read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import (
    clear_parts,
    make_folder,
    open_regular,
    read_limited,
    refuse_link,
    write_atomic,
)
from beit3_bench.garbage import collection_paused
from beit3_bench.harness.console import echo
from beit3_bench.harness.record.fingerprints import CODE
from beit3_bench.harness.record.folder import (
    CONFIG,
    LARGEST,
    LOCK,
    RESULT,
    ROWS,
    SAMPLES,
    SUBMISSION,
    damaged,
    has_parts,
    read_card,
    read_object,
    shards,
    stored_batches,
    stored_ids,
)
from beit3_bench.harness.record.rows import Shard, decode_row, encode_value
from beit3_bench.harness.record.samples import pack_samples, unpack_samples
from beit3_bench.harness.record.shards import committed, row_images
from beit3_bench.harness.tracking import forget
from beit3_bench.locks import Held, hold, still_there, take_part
from beit3_bench.tasks.contract import Row
from beit3_bench.tasks.scores import ClusterTable, Scores


class RunStore:
    """One run folder.

    `open` it to write (process 0: locks, compares fingerprints, mends shards), `join` it from the other processes after
    that, or `read` it.
    """

    def __init__(self, folder: Path, config: dict[str, Any], rank: int = 0):
        self.folder, self.config, self.rank = folder, config, rank
        self.resumed = False  # whether rows were there already
        self._shard: Shard | None = None
        self._lock: int | None = None
        self._part: int | None = None

    @classmethod
    def open(cls, folder: str | Path, config: Mapping[str, Any], overwrite: bool = False) -> RunStore:
        """Create a run folder, or resume the one that is there.

        Args:
            config: JSON object; ``config["fingerprints"]`` (name -> string) must equal that of the folder to resume.
            overwrite: remove an earlier run of this folder first (its files only).

        Raises:
            BenchError: another process writes to it, it is no run folder, its fingerprints differ (says which), or it
                cannot be written.
        """
        folder = Path(folder)
        check_folder(folder)
        make_folder(folder)
        make_folder(folder / ROWS)
        store = cls(folder, json.loads(json.dumps(config)))
        store._take_lock()
        try:
            if overwrite:
                store._clear()
            if (folder / CONFIG).exists():
                store._compare(read_card(folder / CONFIG))
                store._take_over()
                store.resumed = True
                clear_parts(folder)
            else:
                store._clear()  # rows without a configuration: killed before the first line was written
                write_atomic(folder / CONFIG, _json(store.config))
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def join(cls, folder: str | Path, rank: int) -> RunStore:
        """The folder as process ``rank`` > 0 writes to it, after process 0 has opened it."""
        store = cls(Path(folder), read_card(Path(folder) / CONFIG), rank)
        store._part = take_part(store.folder / CONFIG)
        return store

    @classmethod
    def read(cls, folder: str | Path) -> RunStore:
        """An existing run folder, to look at."""
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise BenchError(
                f"{folder}: not a run folder (it has no {CONFIG}); give the folder that beit3-bench run printed"
            )
        return cls(folder, read_card(folder / CONFIG))

    # ---- rows ------------------------------------------------------------------------------------------------

    def append(self, rows: Iterable[Row]) -> None:
        """Store one batch of rows: all of it, or nothing."""
        if self._shard is None:
            if self._part is not None and not still_there(self._part, self.folder / CONFIG):
                raise BenchError(f"{self.folder}: a later start has taken this run over; nothing more is written here")
            self._shard = Shard(self.folder / ROWS / f"rank-{self.rank:05d}.jsonl")
        self._shard.append(rows)

    def _lines(self) -> Iterator[tuple[Path, bytes, str]]:
        """Shard, line and id of every stored row; raises as `stored_batches`."""
        for path, lines, names in stored_batches(self.folder):
            for line, name in zip(lines, names, strict=True):
                yield path, line, name

    def done(self) -> set[str]:
        """Ids of the rows that are stored, without decoding the rest of them."""
        return stored_ids(self.folder)

    @collection_paused()
    def image_hashes(self) -> dict[str, list[str]]:
        """Example id -> hashes of its image files, of the rows that are stored with them.

        Raises:
            BenchError: damaged or edited rows.
        """
        by_example: dict[str, list[str]] = {}
        for path, line, name in self._lines():
            try:
                hashes = row_images(line)
            except (ValueError, RecursionError) as error:
                raise damaged(path, f"row {name[:40]}: {error}") from error
            if hashes is not None:
                by_example[name] = hashes
        return by_example

    def rows(self, only: Collection[str] | None = None) -> dict[str, Row]:
        """All rows by id, or those of some ids. A row that two processes have stored, the same both times, is one.

        Raises:
            BenchError: a row that is stored twice with different values, or damaged.
        """
        rows: dict[str, Row] = {}
        again: dict[str, list[tuple[Path, bytes]]] = {}
        for path, line, name in self._lines():
            if only is not None and name not in only:
                continue
            if name in rows:
                again.setdefault(name, []).append((path, line))
                continue
            try:
                rows[name] = decode_row(line)
            except (ValueError, RecursionError) as error:
                raise damaged(path, f"row {name[:40]}: {error}") from error
        if again:
            self._check_same(again)
        return rows

    def _check_same(self, again: dict[str, list[tuple[Path, bytes]]]) -> None:
        """Raise if a row differs from the first one of its name; those are read once more, since it hardly ever happens."""
        for there, first, name in self._lines():
            for path, line in again.pop(name, ()):
                if line != first:
                    raise BenchError(
                        f"{there} and {path}: row {name} is stored twice, with different values; keep one of these files, "
                        "move the other away and give the run's command again"
                    )

    # ---- result ------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return (self.folder / RESULT).exists()

    def result(self) -> dict[str, Any]:
        """The finished run's result.json."""
        return read_object(self.folder / RESULT)

    def write_result(self, result: Mapping[str, Any], scores: Scores | None = None) -> None:
        """Write samples.npz and then result.json, each atomically; a result that is there is never replaced."""
        if self.finished:
            raise BenchError(
                f"{self.folder / RESULT}: this run is finished; use another --output, or --overwrite to run it again"
            )
        if scores is not None:
            write_atomic(self.folder / SAMPLES, pack_samples(scores))
        write_atomic(self.folder / RESULT, _json(result))

    def reopen(self) -> None:
        """Take the result of a finished run out of the folder, for more rows; those that are there stay."""
        for name in (RESULT, SAMPLES):  # a result never stands without its samples
            (self.folder / name).unlink(missing_ok=True)

    def samples(self) -> tuple[ClusterTable | None, dict[str, dict[str, float]]]:
        """The cluster table (None if the task has none) and the per-sample values of a finished run."""
        return unpack_samples(self.folder / SAMPLES)

    # ---- opening ------------------------------------------------------------------------------------------------

    def _take_lock(self) -> None:
        try:
            self._lock = hold(self.folder / LOCK)
        except Held as holder:
            raise BenchError(
                f"{self.folder}: {holder} is writing to this run folder; wait for it, or choose another --output"
            ) from holder

    def _clear(self) -> None:
        """Remove an earlier run; the result goes first, so that a kill in between leaves no result without its rows."""
        for name in (RESULT, SAMPLES, CONFIG):
            (self.folder / name).unlink(missing_ok=True)
        clear_parts(self.folder)
        shutil.rmtree(self.folder / SUBMISSION, ignore_errors=True)
        forget(self.folder)
        shutil.rmtree(self.folder / ROWS)
        (self.folder / ROWS).mkdir()

    def _compare(self, stored: dict[str, Any]) -> None:
        mine, theirs = self.config.get("fingerprints", {}), stored.get("fingerprints", {})
        if CODE in mine and CODE not in theirs:
            raise BenchError(
                f"{self.folder}: holds a run of an earlier version, which did not record the code and the images behind its "
                "rows, so that it cannot be gone on with (it stays readable); use another --output, or --overwrite"
            )
        names = [name for name in dict.fromkeys([*mine, *theirs]) if mine.get(name) != theirs.get(name)]
        if names:
            differences = "; ".join(
                f"{name} is {_short(here)}, there {_short(there)}"
                for name, here, there in _differences(names, self.config, stored)
            )
            raise BenchError(
                f"{self.folder}: holds a run that differs from this one: {differences}; use another --output, or --overwrite"
            )

    def _take_over(self) -> None:
        """Cut every shard behind its last whole batch, and keep processes of an earlier start from the rows.

        Where one of those lives on although its process 0 is gone, config.json and the shards are written anew: it appends to
        files that have lost their names, or sees that config.json is not the one that it holds. Its rows are made here.
        """
        config, alive = self.folder / CONFIG, has_parts(self.folder)
        if alive:
            echo(
                f"warning: {self.folder}: a process of an earlier start still runs; what it writes from now on does not count",
                err=True,
            )
        if alive or config.stat().st_nlink > 1:
            write_atomic(config, read_limited(config, LARGEST))
        for path in shards(self.folder):
            end = committed(path)[1]
            facts = path.stat()
            if end < facts.st_size or alive or facts.st_nlink > 1:
                with open_regular(path) as file:
                    write_atomic(path, file.read(end))

    def close(self) -> None:
        """Close the shard and give the lock back."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        for held in (self._lock, self._part):
            if held is not None:
                os.close(held)
        self._lock = self._part = None

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_folder(folder: Path) -> None:
    """Raise if a folder cannot become, or is not, a run folder, or has links where a run writes."""
    for path in (*(folder / name for name in (LOCK, CONFIG, RESULT, SAMPLES, SUBMISSION, ROWS)), *shards(folder)):
        refuse_link(path)
    if folder.is_dir():
        strangers = [
            p.name for p in folder.iterdir() if p.name not in (LOCK, ROWS, RESULT) and not p.name.startswith(".")
        ]
        if strangers and not (folder / CONFIG).exists():
            raise BenchError(
                f"{folder}: is not empty and not a run folder (it holds {sorted(strangers)[0]}); "
                "choose another --output"
            )
    elif folder.exists():
        raise BenchError(f"{folder}: is a file, but --output needs a folder; choose another --output")


def write_bare_result(folder: Path, result: Mapping[str, Any]) -> None:
    """A result without rows (the task could not run here); a run that stands in the folder is never replaced."""
    check_folder(folder)
    if (folder / CONFIG).exists():
        raise BenchError(f"{folder}: holds a run; choose another --output")
    make_folder(folder)
    write_atomic(folder / RESULT, _json(result))


_BEHIND = {"data": ("split", "limit"), "corruption": ("corrupt",)}
"""Fingerprint -> the options of the command line that change it, under their names in config.json."""


def _differences(
    names: Iterable[str], config: Mapping[str, Any], stored: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """What differs, here and there: in the words of the command line where they tell it, else by its fingerprint."""
    for name in names:
        if name == "options":
            here, there = config.get("options", {}), stored.get("options", {})
            pairs = [(f"-o {key}", here.get(key), there.get(key)) for key in dict.fromkeys([*here, *there])]
        else:
            pairs = [(f"--{key}", config.get(key), stored.get(key)) for key in _BEHIND.get(name, ())]
        told = [pair for pair in pairs if pair[1] != pair[2]]
        yield from told or [(name, *(card.get("fingerprints", {}).get(name) for card in (config, stored)))]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "..."


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False, default=encode_value) + "\n").encode("ascii")
