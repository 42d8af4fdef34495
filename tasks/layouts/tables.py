"""Copies of data sets as the Hugging Face hub exports them: parquet files with a row per sample and the images in a column.

Which split a file is of stands in its name (``validation-00000-of-00014.parquet``) or in its folder's (``default/validation/0000.parquet``,
the hub's own conversion). Read where no file of the original layout is there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.tasks.layouts.places import Picture

PATTERNS = ("*.parquet", "data/*.parquet", "default/*.parquet", "default/*/*.parquet", "*_captions/*/*.parquet")
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}(?:-[0-9a-f]+)?")

Record = dict[str, Any]
"""A row: the values of the columns by the first of their names; ``source`` says which row it is, for messages."""


@dataclass(frozen=True)
class Column:
    """A column that a task reads.

    names: what exports call it; rows have the first.  why: what it is needed for, in messages; "" where a task does without.
    image: whether it holds files; rows then have a `Stored` there.
    """

    names: tuple[str, ...]
    why: str = ""
    image: bool = False


@dataclass(frozen=True)
class Stored:
    """An image in a row.  path: the member of the archive.  file_name: what the export says that it was called, or None."""

    path: str
    file_name: str | None

    def named(self, name: str) -> Picture:
        return Picture(self.path, name)


def split_of(file: Path) -> str:
    """The split that an export's file is of."""
    match = _SHARD.fullmatch(file.stem)
    name = match[1] if match else file.parent.name if file.stem.isdecimal() else file.stem
    return name.removeprefix("partial-")


def find_shards(root: Path, splits: Sequence[str] = ()) -> list[Path]:
    """The parquet files of some splits (or of all), in the order of their rows."""
    found = sorted({file for pattern in PATTERNS for file in root.glob(pattern) if not file.name.startswith(".")})
    return [file for file in found if not splits or split_of(file) in splits]


def read_rows(files: Sequence[Path], columns: Sequence[Column], what: str) -> list[Record]:
    """The rows of files of one export; columns that are not there are None.

    Raises:
        BenchError: a damaged file, or a column that is needed and missing; names those that are there.
    """
    return [record for file in files for record in _rows_of(file, columns, what)]


def _rows_of(file: Path, columns: Sequence[Column], what: str) -> list[Record]:
    from beit3_bench.backbones.archives.parquet import column_names, is_image, parquet_member, read_columns

    there = column_names(str(file))
    chosen = {column.names[0]: next((n for n in column.names if n in there), None) for column in columns}
    for column in columns:
        name = chosen[column.names[0]]
        if name is None and column.why:
            wanted = " or ".join(map(repr, column.names))
            raise BenchError(
                f"{file}: has no column {wanted}, {column.why} (found: {', '.join(there)[:300] or 'none'}); "
                f"give another export of {what}, or its original files"
            )
        if name is not None and column.image and not is_image(str(file), name):
            raise BenchError(f"{file}: column {name!r} holds no image files; give another export of {what}")
    images = {c.names[0] for c in columns if c.image}
    plain = {key: name for key, name in chosen.items() if name is not None and key not in images}
    paths = {key: f"{name}.path" for key, name in chosen.items() if name is not None and key in images}
    values = read_columns(str(file), [*plain.values(), *paths.values()])
    count = max((len(v) for v in values.values()), default=0)
    records = []
    for n in range(count):
        record: Record = {
            key: values[name][n] if name is not None else None for key, name in chosen.items() if key not in images
        }
        for key in images:
            name = chosen[key]
            file_name = values[paths[key]][n] if name is not None else None
            record[key] = name and Stored(f"{file}!{parquet_member(n, name)}", file_name)
        records.append(record | {"source": f"{file}: row {n}"})
    return records
