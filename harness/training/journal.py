"""What a training tells: log.csv, validation.csv, a picture of the curves, and the trackers of ``--log-to``."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import has_other_names, open_own, read_limited, storage_error, write_atomic
from beit3_bench.harness.tracking import Trackers

LOG, VALIDATION, CURVES = "log.csv", "validation.csv", "curves.png"
_LARGEST = 2**30  # bytes of a table
SHOWN = 8
"""Metrics in the picture at the most; validation.csv has all."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a csv file with a header; none where there is no file.

    Raises:
        BenchError: not the text of a table.
    """
    if not path.is_file():
        return []
    try:
        return list(csv.DictReader(io.StringIO(read_limited(path, _LARGEST).decode("utf-8"), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BenchError(f"{path}: damaged ({error}); move it away and give the command again") from error


def number(row: Mapping[str, str], key: str) -> float:
    """A number of a table; NaN where there is none that a diagram could show."""
    try:
        value = float(row[key])
    except (KeyError, TypeError, ValueError):
        return math.nan
    return value if abs(value) < 1e30 else math.nan


def _step(row: Mapping[str, Any]) -> int | None:
    """The step of a whole line; None for one that is cut short, or edited."""
    text = row.get("step")
    whole = None not in row and None not in row.values()
    return int(text) if whole and isinstance(text, str) and text.isdecimal() and len(text) < 16 else None


class Journal:
    """Appends lines as they are made. A resumed training first drops those of steps that it will do again."""

    def __init__(self, folder: Path, resume_at: int = 0, trackers: Trackers | None = None):
        self.folder, self.trackers = folder, trackers
        for name in (LOG, VALIDATION):
            self._cut(folder / name, resume_at)

    def _cut(self, path: Path, step: int) -> None:
        rows = read_table(path)
        # A kill can leave the last line cut short.
        torn = bool(rows) and not path.read_bytes().endswith(b"\n")
        whole = rows[:-1] if torn else rows
        kept = [row for row in whole if (at := _step(row)) is not None and at <= step]
        if len(kept) == len(rows) and (rows or not path.exists()):
            return
        if not kept:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(kept[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_atomic(path, text.getvalue().encode())

    def write(self, name: str, row: Mapping[str, Any]) -> None:
        """Append one line to ``log.csv`` or ``validation.csv``; ``row`` has a key ``step``."""
        path = self.folder / name
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        if not path.is_file() or path.stat().st_size == 0:
            writer.writeheader()
        writer.writerow({k: f"{v:.8g}" if isinstance(v, float) else v for k, v in row.items()})
        _append(path, text.getvalue().encode())
        if self.trackers is not None:
            self.trackers.log({f"{path.stem}/{k}": v for k, v in row.items() if k != "step"}, row["step"])

    def draw(self) -> None:
        """Bring the picture up to date."""
        draw_curves(self.folder)


def _append(path: Path, data: bytes) -> None:
    """Add lines to a file: all of them, or none."""
    file = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    end = os.fstat(file).st_size
    try:
        if has_other_names(file):
            write_atomic(path, path.read_bytes() + data)
            return
        written = 0
        while written < len(data):
            written += os.write(file, data[written:])
    except OSError as error:
        os.ftruncate(file, end)
        raise storage_error(path, error) from error
    finally:
        os.close(file)


def draw_curves(folder: Path) -> Path | None:
    """``curves.png``: loss, learning rate, gradient norm and the validation metrics over steps; None where nothing was logged."""
    from beit3_bench.harness.training.curves import Line, draw_panels

    log, validation = read_table(folder / LOG), read_table(folder / VALIDATION)
    if not log:
        return None

    def line(rows: list[dict[str, str]], key: str) -> Line:
        points = [(number(row, "step"), number(row, key)) for row in rows]
        known = [(x, y) for x, y in points if math.isfinite(x)]
        return key, [x for x, _ in known], [y for _, y in known]

    metrics = [key for key in (validation[0] if validation else ()) if key not in ("step", "epoch")][:SHOWN]
    panels = [
        ("training loss", [line(log, "loss")]),
        ("learning rate", [line(log, "lr")]),
        ("gradient norm", [line(log, "grad_norm")] if "grad_norm" in log[0] else []),
        ("validation", [line(validation, key) for key in metrics]),
    ]
    write_atomic(folder / CURVES, draw_panels(panels))
    return folder / CURVES
