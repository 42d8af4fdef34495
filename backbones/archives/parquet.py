"""Parquet files as the Hugging Face hub keeps data sets: a row per sample, images as bytes in a column.

A member is called ``ROW/COLUMN``, the row with nine digits so that names sort as rows do. Neighbours lie in one row group, which is
read and unpacked as a whole; the last few are kept.
"""

from __future__ import annotations

import bisect
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from beit3_bench.backbones.archives.archive import AGAIN, Archive, unreadable
from beit3_bench.errors import BenchError, requires
from beit3_bench.files import open_regular

_KEPT = 4  # row groups in a process, of all files: of two columns, and the next ones
_OPEN = 8  # files; a data set may have hundreds
_LARGEST = 1 << 32  # bytes of a column in a row group, unpacked
_PURPOSE = "reading .parquet files"


def parquet_member(row: int, column: str) -> str:
    """The name of an image in a file."""
    return f"{row:09d}/{column}"


def column_names(path: str) -> list[str]:
    """Names of the columns of a file.

    Raises:
        BenchError: no whole parquet file.
    """
    return list(_open(path).schema_arrow.names)


def read_columns(path: str, columns: list[str]) -> dict[str, list[Any]]:
    """Columns as lists of Python values; ``image.path`` is a field of a column.

    Raises:
        BenchError: a damaged file.
    """
    requires("pyarrow", _PURPOSE)
    import pyarrow.compute as pc

    try:
        with _open(path) as file:
            table = file.read(columns=columns, use_threads=False)
            values = {}
            for name in columns:
                first, *rest = name.split(".")
                column = table.column(first)
                values[name] = (pc.struct_field(column, rest) if rest else column).to_pylist()
            return values
    except _errors() as error:
        raise _broken(path, error) from error


def is_image(path: str, column: str) -> bool:
    """Whether a column holds files: bytes, or a struct with bytes."""
    import pyarrow as pa

    kind = _open(path).schema_arrow.field(column).type
    kind = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class Parquet(Archive):
    """Only the row groups are indexed; sizes are found out when they are asked for."""

    def __init__(self, path: str):
        """Raises: BenchError: no whole parquet file; pyarrow is not installed."""
        with _open(path) as file:
            try:
                facts = os.stat(path)
            except OSError as error:
                raise unreadable(path, error) from error
            super().__init__(path, facts)
            groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
            self._ends = list(accumulate(group.num_rows for group in groups))
            self._columns = set(file.schema_arrow.names)
            self._sizes: dict[tuple[str, int], list[int]] = {}

    def __contains__(self, name: object) -> bool:
        row, _, column = str(name).partition("/")
        return row.isdecimal() and len(row) == 9 and column in self._columns and int(row) < (self._ends or [0])[-1]

    def __iter__(self) -> Iterator[str]:
        rows = (self._ends or [0])[-1]
        return (parquet_member(row, column) for row in range(rows) for column in sorted(self._columns))

    def size(self, name: str) -> int:
        group, place, column = self._find(name)
        if (column, group) not in self._sizes:
            import pyarrow.compute as pc

            sizes = pc.fill_null(pc.binary_length(self._group(column, group)), -1)
            self._sizes[column, group] = sizes.to_pylist()
        size = self._sizes[column, group][place]
        if size < 0:
            raise self._empty(name)
        return size

    def read(self, name: str) -> bytes:
        group, place, column = self._find(name)
        content = self._group(column, group)[place].as_py()
        if content is None:
            raise self._empty(name)
        return content

    def _empty(self, name: str) -> BenchError:
        row, _, column = name.partition("/")
        return BenchError(f"{self.path}: row {int(row)} has no bytes in column {column!r}; get the file again")

    def _find(self, name: str) -> tuple[int, int, str]:
        """Row group, row in it and column of a member."""
        if name not in self:
            raise self.missing(name)
        text, _, column = name.partition("/")
        row = int(text)
        group = bisect.bisect_right(self._ends, row)
        return group, row - (self._ends[group - 1] if group else 0), column

    def _group(self, column: str, group: int) -> Any:
        """The bytes of a column in a row group, an array of Arrow."""
        return _kept().group(self, column, group)

    def read_group(self, reader: Any, column: str, group: int) -> Any:
        """As `_group`, from the file."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = reader.schema_arrow.field(column).type
        name = f"{column}.bytes" if pa.types.is_struct(kind) else column
        facts = reader.metadata.row_group(group)
        columns = [facts.column(n) for n in range(facts.num_columns)]
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == name)
        if size > _LARGEST:
            raise BenchError(
                f"{self.path}: row group {group} holds {size / 2**30:.0f} GiB of images, which are read at once; write it again with "
                "smaller row groups (100 rows)"
            )
        values = reader.read_row_group(group, columns=[name], use_threads=False).column(column)
        return pc.struct_field(values, "bytes") if pa.types.is_struct(kind) else values


class _Kept:
    """The files and row groups that a process used last."""

    def __init__(self) -> None:
        self.process, self.turn = os.getpid(), threading.Lock()
        self.readers: OrderedDict[tuple, Any] = OrderedDict()
        self.groups: OrderedDict[tuple, Any] = OrderedDict()

    def group(self, archive: Parquet, column: str, group: int) -> Any:
        key = (archive.path, archive.stamp, column, group)
        with self.turn:
            if key not in self.groups:
                try:
                    self.groups[key] = archive.read_group(self._reader(archive), column, group)
                except _errors() as error:
                    raise _broken(archive.path, error) from error
            self.groups.move_to_end(key)
            while len(self.groups) > _KEPT:
                self.groups.popitem(last=False)
            return self.groups[key]

    def _reader(self, archive: Parquet) -> Any:
        key = (archive.path, archive.stamp)
        if key not in self.readers:
            archive.check_current()
            self.readers[key] = _open(archive.path)
        self.readers.move_to_end(key)
        while len(self.readers) > _OPEN:
            self.readers.popitem(last=False)[1].close()
        return self.readers[key]


_last: _Kept | None = None


def _kept() -> _Kept:
    """Of this process: Arrow's readers are not for two."""
    global _last
    if _last is None or _last.process != os.getpid():
        _last = _Kept()
    return _last


def _open(path: str) -> Any:
    parquet = requires("pyarrow.parquet", _PURPOSE)
    try:
        open_regular(Path(path)).close()
        return parquet.ParquetFile(path, pre_buffer=False)
    except _errors() as error:
        raise _broken(path, error) from error


def _errors() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError, KeyError)


def _broken(path: str, error: Exception) -> BenchError:
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(path, error)
    why = " ".join(str(error).split())[:100]
    return BenchError(f"{path}: is no whole parquet file ({why}); it was cut off or damaged: {AGAIN}")
