"""Rows as text, and the shards that hold them: append-only files in which a batch is there wholly or not at all.

After each batch stands a marker ``{"commit": number of rows, "crc": crc32 of them}``. What follows the last valid
marker does not exist.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.files import storage_error
from beit3_bench.tasks.base import Row

_MARKER = b'{"commit":'
_ID = '{"id":"'  # how every row begins
_DECODER = json.JSONDecoder()
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
        ordered = {"id": row["id"], **row}
        return json.dumps(ordered, separators=(",", ":"), allow_nan=False, default=encode_value).encode("ascii") + b"\n"
    except ValueError as error:
        raise BenchError(
            f"row {row['id']}: the model's output is not finite ({error}); "
            "run with --dtype fp32 or bf16, and check that the checkpoint is whole"
        ) from error


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


def row_id(line: bytes) -> str:
    """The id of a stored row, without decoding the rest of it."""
    return _DECODER.raw_decode(line.decode("ascii"), len(_ID) - 1)[0]


def decode_row(line: bytes) -> Row:
    """The inverse of `encode_row`: arrays come back bit for bit."""
    return json.loads(line, object_hook=_decoded)


def _decoded(value: dict[str, Any]) -> Any:
    if len(value) == 2 and "shape" in value:
        code = next(iter(value))
        if code in _ARRAYS and isinstance(value[code], str):
            kind = np.dtype(_ARRAYS[code]).newbyteorder("<")
            return (
                np.frombuffer(base64.b64decode(value[code]), dtype=kind).reshape(value["shape"]).astype(_ARRAYS[code])
            )
    return value


def commit_bytes(rows: Iterable[Row]) -> bytes:
    """A batch as it stands in a shard: rows, then the marker ``{"commit": number of rows, "crc": crc32 of them}``."""
    lines = [encode_row(row) for row in rows]
    body = b"".join(lines)
    return body + b'{"commit":%d,"crc":"%08x"}\n' % (len(lines), zlib.crc32(body))


def committed(path: Path) -> tuple[list[bytes], int]:
    """Row lines up to the last valid commit marker of a shard, and the byte offset behind that marker."""
    data = path.read_bytes()
    lines: list[bytes] = []
    batch: list[bytes] = []
    start = position = 0
    while (end := data.find(b"\n", position)) >= 0:
        line = data[position:end]
        position = end + 1
        if not line.startswith(_MARKER):
            batch.append(line)
            continue
        if line != b'{"commit":%d,"crc":"%08x"}' % (len(batch), zlib.crc32(data[start : end - len(line)])):
            break
        lines += batch
        batch, start = [], position
    return lines, start


class Shard:
    """The file that one process appends to."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._end = os.fstat(self._file).st_size
        except OSError as error:
            raise storage_error(path, error) from error

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
