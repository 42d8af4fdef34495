"""Read results/published: reference values with their sources."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, fields
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.tasks.files import read_text

REGIMES = ("fine-tuned", "zero-shot", "transfer")
SOURCE_KINDS = (
    "primary",
    "toolkit measurement",
    "third-party measurement",
    "comparison row quoted by another paper",
    "full-text reading notes quoting the paper",
)
"""How near to its origin a value is, nearest first."""


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
        """Side in pixels of a square input such as ``480x480``; None where the source says it otherwise."""
        width, _, height = self.resolution.partition("x")
        return int(width) if width.isdigit() and width == height else None


COLUMNS = tuple("value" if f.name == "printed" else f.name for f in fields(PublishedValue))


def published_folder() -> Path:
    """The folder of the committed csv files."""
    from beit3_bench.results import published

    return Path(next(iter(published.__path__)))


def load_published(folder: Path | None = None) -> list[PublishedValue]:
    """All published values, file by file in alphabetical order.

    Raises:
        BenchError: no csv file, other columns, a value that is not a finite number, an unknown regime or kind of
            source, an id that stands twice.
    """
    folder = folder or published_folder()
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise BenchError(f"{folder}: no csv file with published values; install beit3-bench again")
    values: list[PublishedValue] = []
    seen: dict[str, str] = {}
    for path in files:
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
        for number, row in enumerate(rows, 2):
            where = f"{path}: record {number - 1}"
            if None in row or None in row.values():
                raise BenchError(f"{where}: has another number of columns than the header; quote commas")
            _check(row, where)
            if row["id"] in seen:
                raise BenchError(f"{where}: id {row['id']} stands in {seen[row['id']]} too; ids are unique")
            seen[row["id"]] = path.name
            values.append(PublishedValue(**{("printed" if k == "value" else k): v for k, v in row.items()}))
    return values


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
