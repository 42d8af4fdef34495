"""What a training tells: log.csv, validation.csv, a picture of the curves, and TensorBoard events where it is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit3_bench.backbones.files import storage_error, write_atomic

LOG, VALIDATION, CURVES = "log.csv", "validation.csv", "curves.png"
SHOWN = 8
"""Metrics in the picture at the most; validation.csv has all."""


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a csv file with a header; none where there is no file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Journal:
    """Appends lines as they are made. A resumed training first drops those of steps that it will do again."""

    def __init__(self, folder: Path, resume_at: int = 0):
        self.folder = folder
        for name in (LOG, VALIDATION):
            self._cut(folder / name, resume_at)
        self._board: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at)

    def _cut(self, path: Path, step: int) -> None:
        rows = read_table(path)
        # A kill can leave the last line cut short.
        whole = rows if not rows or path.read_bytes().endswith(b"\n") else rows[:-1]
        kept = [row for row in whole if (row["step"] or "").isdigit() and int(row["step"]) <= step]
        if len(kept) == len(rows):
            return
        if not kept:
            path.unlink()
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(kept[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_atomic(path, text.getvalue().encode())

    def write(self, name: str, row: Mapping[str, Any]) -> None:
        """Append one line to ``log.csv`` or ``validation.csv``; ``row`` has a key ``step``."""
        path = self.folder / name
        try:
            fresh = not path.is_file()
            with open(path, "a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                if fresh:
                    writer.writeheader()
                writer.writerow({k: f"{v:.8g}" if isinstance(v, float) else v for k, v in row.items()})
        except OSError as error:
            raise storage_error(path, error) from error
        if self._board is not None:
            for key, value in row.items():
                if key != "step" and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{path.stem}/{key}", value, row["step"])

    def close(self) -> None:
        """Flush."""
        if self._board is not None:
            self._board.close()

    def draw(self) -> None:
        """Bring the picture up to date."""
        draw_curves(self.folder)


def draw_curves(folder: Path) -> Path | None:
    """``curves.png``: loss, learning rate and the validation metrics over steps; None where nothing was logged."""
    from beit3_bench.harness.training.curves import Line, draw_panels

    log, validation = read_table(folder / LOG), read_table(folder / VALIDATION)
    if not log:
        return None

    def line(rows: list[dict[str, str]], key: str) -> Line:
        return key, [float(row["step"]) for row in rows], [float(row[key]) for row in rows]

    metrics = [key for key in (validation[0] if validation else ()) if key not in ("step", "epoch")][:SHOWN]
    panels = [
        ("training loss", [line(log, "loss")]),
        ("learning rate", [line(log, "lr")]),
        ("validation", [line(validation, key) for key in metrics]),
    ]
    write_atomic(folder / CURVES, draw_panels(panels))
    return folder / CURVES
