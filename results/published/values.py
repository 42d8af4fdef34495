"""The csv files of this folder, read and checked: reference values with their sources."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from beit3_bench.errors import BenchError
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.facts import Regime, facts_file, read_facts
from beit3_bench.tasks.files import read_text
from beit3_bench.tasks.registry import task_names

REGIMES: tuple[str, ...] = get_args(Regime)
SOURCE_KINDS = (
    "primary",
    "toolkit measurement",
    "third-party measurement",
    "comparison row quoted by another paper",
    "full-text reading notes quoting the paper",
)
"""How near to its origin a value is, nearest first."""
OVERVIEW_SOURCE = "BEiT-3: Image as a Foreign Language (arXiv 2208.10442), Table 1"
"""Rows of this source repeat other rows of the same paper: they appear in the overview table only."""


@dataclass(frozen=True)
class PublishedValue:
    """One row of a csv of results/published, field by field (its README says what they mean).

    printed: the value as it stands in the source; `value` is the same as a number, in percent or x100.
    """

    id: str
    system: str
    variant: str
    checkpoint: str
    params: str
    task: str
    split: str
    metric: str
    printed: str
    unit: str
    regime: str
    setting: str
    resolution: str
    extra_data: str
    source: str
    source_url_or_repo_path: str
    source_kind: str
    note: str

    @property
    def value(self) -> float:
        return float(self.printed)

    @property
    def decimals(self) -> int:
        """Digits after the point, as printed."""
        return len(self.printed.partition(".")[2])

    @property
    def image_size(self) -> int | None:
        """Side in pixels of a square input such as ``480x480``, the shorter one of ``shorter edge 384, longer <= 640``; None where
        the source says it otherwise.
        """
        if shorter := re.match(r"shorter edge (\d+)\b", self.resolution):
            return int(shorter[1])
        width, _, height = self.resolution.partition("x")
        return int(width) if width.isdigit() and width == height else None


COLUMNS = tuple("value" if f.name == "printed" else f.name for f in fields(PublishedValue))


def load_published(folder: str | Path | None = None) -> list[PublishedValue]:
    """All published values of a folder, file by file in alphabetical order.

    Args:
        folder: of the csv files; None: the committed ones, beside this module, and behind them what tasks bring in their facts
            (`tasks.facts.Facts.published`).

    Raises:
        BenchError: no csv file, other columns, a value that is not a finite number, an unknown regime or kind of
            source, an id that stands twice.
    """
    place = Path(folder or Path(__file__).parent)
    files = sorted(place.glob("*.csv"))
    if not files:
        raise BenchError(f"{place}: no csv file with published values; install beit3-bench again")
    records = [record for path in files for record in _read_csv(path)]
    if folder is None:
        records += [record for task in task_names() for record in _records_of(task)]
    values: list[PublishedValue] = []
    seen: dict[str, str] = {}
    for record in records:
        row = record.row
        _check(row, record.where)
        if row["id"] in seen:
            raise BenchError(f"{record.where}: id {row['id']} stands in {seen[row['id']]} too; ids are unique")
        seen[row["id"]] = record.file.name
        values.append(PublishedValue(**{("printed" if k == "value" else k): v for k, v in row.items()}))
    return values


@dataclass(frozen=True)
class _Record:
    """A row before it is checked.  where: file and place in it, for messages."""

    file: Path
    where: str
    row: dict[str, str]


def _read_csv(path: Path) -> list[_Record]:
    try:
        lines = csv.DictReader(
            io.StringIO(read_text(path, "published values", "a csv file as README.md shows it"), newline=""),
            strict=True,
        )
        rows = list(lines)
        header = tuple(lines.fieldnames or ())
    except csv.Error as error:
        raise BenchError(f"{path}: cannot be read as csv ({error}); restore the file") from error
    if header != COLUMNS:
        wrong = sorted(set(header) ^ set(COLUMNS)) or ["their order"]
        raise BenchError(
            f"{path}:1: columns differ from the expected ones ({', '.join(map(str, wrong))}); see README.md"
        )
    records = [_Record(path, f"{path}: record {number}", row) for number, row in enumerate(rows, 1)]
    for record in records:
        if None in record.row or None in record.row.values():
            raise BenchError(f"{record.where}: has another number of columns than the header; quote commas")
    return records


def _records_of(task: str) -> list[_Record]:
    """What a task brings: records of its facts file, and of the csv file beside it."""
    facts, file = read_facts(task), facts_file(task)
    if file is None:
        return []
    records = []
    for number, given in enumerate(facts.published, 1):
        where = f"{file}: published {number}"
        for column in given:
            if column not in COLUMNS:
                raise BenchError(f"{where}: no key {column!r}; {did_you_mean(column, COLUMNS)}")
        records.append(_Record(file, where, {column: given.get(column, "") for column in COLUMNS}))
    return records + (_read_csv(file.with_name(facts.published_csv)) if facts.published_csv else [])


def _check(row: dict[str, str], where: str) -> None:
    try:
        finite = math.isfinite(float(row["value"]))
    except ValueError:
        finite = False
    if not finite:
        raise BenchError(f"{where}: value {row['value']!r} is not a number; write it as printed, without unit")
    if row["regime"] not in REGIMES:
        raise BenchError(f"{where}: regime {row['regime']!r} is none of {', '.join(REGIMES)}")
    if row["source_kind"] not in SOURCE_KINDS:
        raise BenchError(f"{where}: source_kind {row['source_kind']!r} is none of: {'; '.join(SOURCE_KINDS)}")
    for key in ("id", "system", "task", "split", "metric", "source"):
        if not row[key]:
            raise BenchError(f"{where}: column {key} is empty; a value without it cannot be checked")
