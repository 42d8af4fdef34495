"""The run folder: nothing written is lost by a kill, a full disk or a second process.

config.json             what was asked for, and the fingerprints that a resumed run must share
rows/rank-00000.jsonl   one shard per process (see `rows`)
samples.npz             cluster table and per-sample values (see `samples`)
submission/             files for an official server, where the task writes any
result.json             written last, atomically: a folder that has it is finished
lock                    held with flock while a run writes
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.files import storage_error, write_atomic
from beit3_bench.harness.rows import Shard, committed, decode_row, encode_value, row_id
from beit3_bench.harness.samples import pack_samples, unpack_samples
from beit3_bench.tasks.base import ClusterTable, Row, Scores
from beit3_bench.tasks.files import read_json

CONFIG, RESULT, SAMPLES = "config.json", "result.json", "samples.npz"
ROWS, LOCK, SUBMISSION = "rows", "lock", "submission"


class RunStore:
    """One run folder.

    `open` it to write (process 0: locks, compares fingerprints, mends shards), `join` it from the other processes after
    that, or `read` it.
    """

    def __init__(self, folder: Path, config: dict[str, Any], rank: int = 0):
        self.folder, self.config, self.rank = folder, config, rank
        self._shard: Shard | None = None
        self._lock: int | None = None

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
        try:
            (folder / ROWS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(folder, error) from error
        store = cls(folder, json.loads(json.dumps(config)))
        store._take_lock()
        try:
            if overwrite:
                store._clear()
            if (folder / CONFIG).exists():
                store._compare(read_object(folder / CONFIG))
                store._mend()
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
        return cls(Path(folder), read_object(Path(folder) / CONFIG), rank)

    @classmethod
    def read(cls, folder: str | Path) -> RunStore:
        """An existing run folder, to look at."""
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise BenchError(
                f"{folder}: not a run folder (it has no {CONFIG}); give the folder that beit3-bench run printed"
            )
        return cls(folder, read_object(folder / CONFIG))

    # ---- rows ------------------------------------------------------------------------------------------------

    def append(self, rows: Iterable[Row]) -> None:
        """Store one batch of rows: all of it, or nothing."""
        if self._shard is None:
            self._shard = Shard(self.folder / ROWS / f"rank-{self.rank:05d}.jsonl")
        self._shard.append(rows)

    def _lines(self) -> Iterator[tuple[Path, bytes]]:
        for path in sorted((self.folder / ROWS).glob("rank-*.jsonl")):
            for line in committed(path)[0]:
                yield path, line

    def done(self) -> set[str]:
        """Ids of the rows that are stored, without decoding the rest of them."""
        return {row_id(line) for _, line in self._lines()}

    def rows(self, only: Collection[str] | None = None) -> dict[str, Row]:
        """All rows by id, or those of some ids.

        Raises:
            BenchError: a row that is stored twice.
        """
        rows: dict[str, Row] = {}
        for path, line in self._lines():
            if only is not None and row_id(line) not in only:
                continue
            row = decode_row(line)
            if row["id"] in rows:
                raise BenchError(f"{path}: row {row['id']} is stored twice; run again with --overwrite")
            rows[row["id"]] = row
        return rows

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

    def samples(self) -> tuple[ClusterTable | None, dict[str, dict[str, float]]]:
        """The cluster table (None if the task has none) and the per-sample values of a finished run."""
        return unpack_samples(self.folder / SAMPLES)

    # ---- opening ------------------------------------------------------------------------------------------------

    def _take_lock(self) -> None:
        path = self.folder / LOCK
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = path.read_text(errors="replace").strip() or "another process"
            self.close()
            raise BenchError(
                f"{self.folder}: {holder} is writing to this run folder; wait for it, or choose another --output"
            ) from error
        except OSError as error:
            self.close()
            raise storage_error(path, error) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _clear(self) -> None:
        """Remove an earlier run; the result goes first, so that a kill in between leaves no result without its rows."""
        for name in (RESULT, SAMPLES, CONFIG):
            (self.folder / name).unlink(missing_ok=True)
        for part in self.folder.glob(".*.part"):
            part.unlink()
        shutil.rmtree(self.folder / SUBMISSION, ignore_errors=True)
        shutil.rmtree(self.folder / ROWS)
        (self.folder / ROWS).mkdir()

    def _compare(self, stored: dict[str, Any]) -> None:
        mine, theirs = self.config.get("fingerprints", {}), stored.get("fingerprints", {})
        names = [name for name in dict.fromkeys([*mine, *theirs]) if mine.get(name) != theirs.get(name)]
        if names:
            told = "; ".join(f"{name} is {_short(mine.get(name))}, there {_short(theirs.get(name))}" for name in names)
            raise BenchError(
                f"{self.folder}: holds a run that differs from this one: {told}; use another --output, or --overwrite"
            )

    def _mend(self) -> None:
        """Cut every shard behind its last whole batch."""
        for path in sorted((self.folder / ROWS).glob("rank-*.jsonl")):
            end = committed(path)[1]
            if end < path.stat().st_size:
                os.truncate(path, end)

    def close(self) -> None:
        """Close the shard and give the lock back."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def check_folder(folder: Path) -> None:
    """Raise if a folder cannot become, or is not, a run folder."""
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    write_atomic(folder / RESULT, _json(result))


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "..."


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False, default=encode_value) + "\n").encode("ascii")


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object that the store wrote."""
    value = read_json(path, "run folder's " + path.name)
    if not isinstance(value, dict):
        raise BenchError(f"{path}: expected an object; it was edited or damaged, run again with --overwrite")
    return value
