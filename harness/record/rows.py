"""Rows as text, and the shards that hold them: append-only files in which a batch is there wholly or not at all.

After each batch stands a marker ``{"commit": number of rows, "crc": crc32 of them}``. What follows the last valid
marker does not exist. A shard is locked by the process that appends to it.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.backbones.abilities import NOT_FINITE
from beit3_bench.errors import BenchError
from beit3_bench.files import has_other_names, open_own, storage_error
from beit3_bench.harness.record.shards import IMAGES
from beit3_bench.locks import lock_file
from beit3_bench.tasks.contract import Row
from beit3_bench.tasks.quick_json import NotQuickError, parse_line

_ARRAY = b'"shape":'  # within a row that holds an array
_ARRAYS = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "i64": np.int64, "i32": np.int32, "u8": np.uint8}
_CODES = {np.dtype(kind): code for code, kind in _ARRAYS.items()}


def encode_row(row: Row) -> bytes:
    """One JSON line, ``id`` first; arrays become ``{"f32": base64, "shape": [...]}``; exact in both directions.

    Raises:
        BenchError: NaN or infinity in a number or an array (an overflow of the model is no prediction).
    """
    if not isinstance(row["id"], str):
        raise TypeError(f"a row's id is a string, not {row['id']!r}")
    try:
        first = {key: row[key] for key in ("id", IMAGES) if key in row}
        ordered = {**first, **row}
        return json.dumps(ordered, separators=(",", ":"), allow_nan=False, default=encode_value).encode("ascii") + b"\n"
    except ValueError as error:
        raise BenchError(f"row {row['id']}: {NOT_FINITE.format(error)}") from error


def encode_value(value: Any) -> Any:
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError("an array holds NaN or infinity")
        if value.dtype not in _CODES:
            raise TypeError(f"a row cannot hold an array of {value.dtype}")
        data = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
        return {_CODES[value.dtype]: base64.b64encode(data.tobytes()).decode("ascii"), "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a row cannot hold a {type(value).__name__}")


def with_images(rows: Iterable[Row], images: Mapping[str, Sequence[str]]) -> list[Row]:
    """Rows with the hashes of the image files that they were made from.

    Args:
        images: row id -> hashes, in the order of the files.
    """
    return [{**row, IMAGES: list(images[row["id"]])} if row["id"] in images else row for row in rows]


def decode_row(line: bytes) -> Row:
    """The inverse of `encode_row`: arrays come back bit for bit; hashes of image files stay behind.

    Raises:
        ValueError: what `encode_row` does not write.
    """
    try:
        row = _parsed(line)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise ValueError("a row without id")
    row.pop(IMAGES, None)
    return row


def _parsed(line: bytes) -> Any:
    if _ARRAY in line:
        return json.loads(line, object_hook=_decoded, parse_constant=_refuse)
    try:
        return parse_line(line)
    except NotQuickError:
        return json.loads(line, parse_constant=_refuse)


def _decoded(value: dict[str, Any]) -> Any:
    if len(value) == 2 and "shape" in value:
        code = next(iter(value))
        if code in _ARRAYS and isinstance(value[code], str):
            shape = value["shape"]
            if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**40 for size in shape):
                raise ValueError("an array without shape")
            kind = np.dtype(_ARRAYS[code]).newbyteorder("<")
            data = base64.b64decode(value[code], validate=True)
            array = np.frombuffer(data, dtype=kind).reshape(shape).astype(_ARRAYS[code])
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError("an array holds NaN or infinity")
            return array
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def commit_bytes(rows: Iterable[Row]) -> bytes:
    """A batch as it stands in a shard: rows, then the marker ``{"commit": number of rows, "crc": crc32 of them}``."""
    lines = [encode_row(row) for row in rows]
    body = b"".join(lines)
    return body + b'{"commit":%d,"crc":"%08x"}\n' % (len(lines), zlib.crc32(body))


class Shard:
    """The file that one process appends to, and holds the lock of."""

    def __init__(self, path: Path):
        """Raises: BenchError: another process appends to it, it is a link, or cannot be made."""
        self.path = path
        self._file = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            lock_file(self._file)
            self._end = os.fstat(self._file).st_size
        except BlockingIOError as error:
            self.close()
            raise BenchError(f"{path}: another process is writing to it; stop it first") from error
        except OSError as error:
            self.close()
            raise storage_error(path, error) from error
        if has_other_names(self._file):
            self.close()
            raise BenchError(f"{path}: has a second name (a hard link) that would change, too; give the command again")

    def append(self, rows: Iterable[Row]) -> None:
        """Write a batch and its marker, and wait until it is on the disk.

        Raises:
            BenchError: disk full or failing; the file is cut back to the last whole batch.
        """
        data = memoryview(commit_bytes(rows))
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except BaseException as error:  # Ctrl-C and a dying worker, too, can strike here
            os.ftruncate(self._file, self._end)
            if isinstance(error, OSError):
                raise storage_error(self.path, error) from error
            raise
        self._end += len(data)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
