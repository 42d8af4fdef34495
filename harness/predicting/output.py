"""Predictions as pictures: one file, a sheet of several, or a folder with one each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from beit3_bench.errors import BenchError
from beit3_bench.files import make_folder, refuse_link, replacing
from beit3_bench.harness.pictures.sheets import fitted_side, grid, scaled
from beit3_bench.harness.predicting.predictions import Prediction
from beit3_bench.harness.predicting.sources import Picture
from beit3_bench.harness.predicting.web import is_address

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Suffix of a picture that is written -> Pillow's name of its format."""
_OTHER_KINDS = (".gif", ".bmp", ".tif", ".tiff", ".pdf", ".svg", ".heic", ".heif", ".avif", ".ppm", ".eps")
SHEET = 48
"""Pictures on a sheet at most."""
CELL = 640
"""Pixels of the longer side of one there, without what is written below."""
_MOST = 80  # characters of a name


class Gallery:
    """Where pictures go. A file holds one picture, or a sheet of several; a folder holds one each, by the name of the picture.

    paths: of the pictures written so far.  left_out: how many did not find room on the sheet.
    """

    def __init__(self, output: Path, inputs: Sequence[Picture], single: bool):
        """Raises: BenchError: pictures cannot be written there, or would replace one that was given.

        single: there is one prediction.
        """
        self.output, self.single = output, single
        self.kind = KINDS.get(output.suffix.lower())
        self.paths: list[Path] = []
        self.left_out = 0
        self._names: set[str] = set()
        self._cells: list[Image.Image] = []
        self._inputs = {p.path.resolve() for p in inputs if p.path is not None}
        if self.kind is None and output.suffix.lower() in _OTHER_KINDS and not output.is_dir():
            raise BenchError(
                f"{output}: pictures are written as {', '.join(KINDS)}; give such a name, or one without suffix for a folder"
            )
        for path in (output, *output.parents):
            if (
                not path.is_absolute() or path == output
            ):  # how the folder of an absolute path is reached is the system's affair
                refuse_link(path)
        if self.kind is not None and output.is_dir():
            raise BenchError(f"{output}: a folder stands where a picture is to be written; give another --output")
        if self.kind is not None:
            self._check(output)
            make_folder(output.parent)
        else:
            make_folder(output)

    def add(self, prediction: Prediction) -> Path | None:
        """Write a prediction's picture, or keep it for the sheet.

        Returns:
            The file; None where there is one sheet in the end.
        """
        if self.kind is not None and not self.single:
            if len(self._cells) < SHEET:
                factor = CELL / fitted_side(prediction.shown().size)  # letters have one size on a sheet
                self._cells.append(scaled(prediction.picture(), min(factor, 1.0)))
            else:
                self.left_out += 1
            return None
        path = self.output if self.kind is not None else self.output / f"{self._name(prediction)}.png"
        return self._save(path, prediction.picture())

    def close(self) -> None:
        """Write the sheet, where there is one."""
        if self._cells:
            self._save(self.output, grid(self._cells, cell=CELL))

    def _save(self, path: Path, picture: Image.Image) -> Path:
        self._check(path)
        with replacing(path) as file:
            picture.save(file, self.kind or "PNG", **({"quality": 92} if self.kind in ("JPEG", "WEBP") else {}))
        self.paths.append(path)
        return path

    def _check(self, path: Path) -> None:
        if path.resolve() in self._inputs:
            raise BenchError(f"{path}: is one of the pictures given, and would be replaced; give another --output")

    def _name(self, prediction: Prediction) -> str:
        """A name for the picture of a prediction, without suffix: that of its image, told apart from others."""
        plain = "-".join(plain_name(name) for name in prediction.asked.names)[:_MOST].strip("-.") or "picture"
        name, number = plain, 1
        while name.lower() in self._names:
            number += 1
            name = f"{plain}-{number}"
        self._names.add(name.lower())
        return name


def plain_name(name: str) -> str:
    """The name of a file or address as letters, digits, ``-``, ``_`` and ``.`` alone, without folder and suffix."""
    last = name.partition("?")[0].partition("#")[0].rstrip("/") if is_address(name) else name
    stem = re.sub(r"\.\w{1,5}$", "", last.replace("\\", "/").rpartition("/")[2])
    return re.sub(r"[^\w.-]+", "-", stem, flags=re.ASCII).strip("-.")
