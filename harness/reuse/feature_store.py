"""The feature store: embeddings of images and texts, kept for every later run of the same weights.

A space holds the outputs of one function: its folder is named by the hash of everything that a vector depends on beside
its input (`features.space_facts`). Inside, a vector is named by the hash of its input: the image file's bytes, or the
token ids. Every process appends to a pack of its own; nothing that is written is ever changed, so that any number of
processes may share a store.

    DIR/features-<hash of the facts>/about.json        the facts, for people
    DIR/features-<hash of the facts>/<random>.pack     header, then records: key, checksum, float32 or float16 (D,)

A record counts if it is whole and its checksum fits: what a kill or a full disk cut off is computed again. Nothing is
written through a link.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.files import open_regular, write_atomic

PREFIX, ABOUT, SUFFIX = "features-", "about.json", ".pack"
LAYOUT = 1
_HEADER = struct.Struct("<8s32sI4x")  # magic, hash of the facts, length of a vector
_MAGIC = b"B3BFEAT1"
_LONGEST = 2**22  # numbers of a vector
_AT_ONCE = 2**25  # bytes of a pack in memory; more than one record
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FeatureSpace:
    """Vectors of one function, by the SHA-256 of its input.

    trouble: one line, why something could not be stored; from then on this process stores nothing.  reason: the why of it.
    """

    def __init__(self, root: str | Path, facts: Mapping[str, Any], numbers: str = "<f4"):
        """numbers: numpy's name of what vectors are stored as; others than float32 are for the facts to tell.

        Raises:
            BenchError: ``root`` cannot be a folder here.
        """
        self.numbers = numbers
        text = json.dumps({"layout": LAYOUT, **facts}, sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).digest()
        self.folder = Path(root) / (PREFIX + self.identity.hex()[:32])
        self.trouble: str | None = None
        self.reason = ""
        self._pack, self._end = -1, 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.folder.is_symlink():
                raise OSError(errno.ELOOP, "is a link")
        except OSError as error:
            if error.errno not in _FULL:
                raise BenchError(
                    f"{self.folder if error.errno == errno.ELOOP else root}: cannot be a feature store ({error.strerror}); "
                    "choose another --features"
                ) from error
            self._stop(error)
            return
        if not (self.folder / ABOUT).is_file():
            try:
                write_atomic(self.folder / ABOUT, text.encode() + b"\n")
            except BenchError as error:
                self._stop(error.__cause__)

    def find(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        """The stored vectors, float32 (D,), of those keys that have one."""
        return {key: vector.astype(np.float32, copy=False) for key, _, vector in self._whole(keys)}

    def places(self, keys: Iterable[bytes], seen: Callable[[], None] = lambda: None) -> dict[bytes, tuple[Path, int]]:
        """Where the vectors of those keys stand that have one: the pack, and the number of the record in it.

        seen: called for each.
        """
        places = {}
        for key, place, _ in self._whole(keys):
            places[key] = place
            seen()
        return places

    def mapped(self, path: Path) -> np.ndarray:
        """The vectors of a pack, (records, D), read from the disk as they are looked at.

        Raises:
            OSError: it is not there any more.
        """
        with open_regular(path) as file:
            _, _, length = _HEADER.unpack(file.read(_HEADER.size))
            kind = _record(length, self.numbers)
            count = (os.fstat(file.fileno()).st_size - _HEADER.size) // kind.itemsize
            return np.memmap(file, kind, "r", _HEADER.size, (count,))["vector"]

    def _whole(self, keys: Iterable[bytes]) -> Iterator[tuple[bytes, tuple[Path, int], np.ndarray]]:
        """Key, place and vector of whole records, once for each of those keys that have one."""
        missing = set(keys)
        for path in sorted(self.folder.glob("*" + SUFFIX)) if missing else ():
            first = 0
            for records in self.records(path):
                names = records["key"].tobytes()
                there = [(i, names[32 * i : 32 * i + 32]) for i in range(len(records))]
                chosen = [(i, key) for i, key in there if key in missing]
                rows = [i for i, _ in chosen]
                vectors = np.ascontiguousarray(records["vector"][rows])
                for (i, key), vector, checksum in zip(chosen, vectors, records["checksum"][rows], strict=True):
                    if key in missing and _checksum(key, vector.data) == checksum:
                        missing.discard(key)
                        yield key, (path, first + i), vector
                first += len(records)

    def append(self, vectors: Mapping[bytes, np.ndarray]) -> None:
        """Store floating point (D,) vectors of one length; where that fails, `trouble` says why."""
        if self.trouble is not None or not vectors:
            return
        bodies = [(key, vector.astype(self.numbers).tobytes()) for key, vector in vectors.items()]
        try:
            if self._pack < 0:
                path = self.folder / (secrets.token_hex(8) + SUFFIX)
                self._pack = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
                self._write(_HEADER.pack(_MAGIC, self.identity, len(next(iter(vectors.values())))))
            self._write(b"".join(key + struct.pack("<I", _checksum(key, body)) + body for key, body in bodies))
        except OSError as error:
            self._stop(error)

    def close(self) -> None:
        if self._pack >= 0:
            os.close(self._pack)
            self._pack = -1

    def records(self, path: Path) -> Iterator[np.ndarray]:
        """The records of a pack, some thousand at a time, without a cut one at its end; none where the file is no pack of
        this space.
        """
        try:
            with open_regular(path) as file:
                head = file.read(_HEADER.size)
                magic, identity, length = _HEADER.unpack(head) if len(head) == _HEADER.size else (b"", b"", 0)
                if (magic, identity) != (_MAGIC, self.identity) or not 0 < length <= _LONGEST:
                    return
                kind = _record(length, self.numbers)
                while len(data := file.read(_AT_ONCE // kind.itemsize * kind.itemsize)) >= kind.itemsize:
                    records = np.frombuffer(data[: len(data) // kind.itemsize * kind.itemsize], kind)
                    yield records
                    if records["key"][-1].tobytes() == bytes(32):  # SHA-256 is never zero: a hole, perhaps of terabytes
                        return
        except OSError:
            pass  # deleted meanwhile, or not readable: computed again

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._pack, view) :]
        except BaseException:  # Ctrl-C, too, can strike here; a record behind half a one would be lost
            with suppress(OSError):
                os.ftruncate(self._pack, self._end)
            raise
        self._end += len(data)

    def _stop(self, error: BaseException | None) -> None:
        full = getattr(error, "errno", None) in _FULL
        self.reason = "the disk is full" if full else f"not writable ({getattr(error, 'strerror', None) or error})"
        self.trouble = f"{self.folder}: {self.reason}; going on without storing features"


def record_bytes(length: int, numbers: str) -> int:
    """What a vector takes on the disk."""
    return _record(length, numbers).itemsize


def _record(length: int, numbers: str) -> np.dtype:
    return np.dtype([("key", "V32"), ("checksum", "<u4"), ("vector", numbers, (length,))])


def _checksum(key: bytes, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(key))
