"""Files, folders and addresses -> pictures, which are opened when they are asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from beit3_bench.errors import BenchError
from beit3_bench.harness.pictures.opening import SUFFIXES, open_upright
from beit3_bench.harness.predicting.web import fetch, is_address
from beit3_bench.tasks.image_folders import images_below, left_out_line


@dataclass(frozen=True)
class Picture:
    """A picture by name. name: a path, or an address.  alone: it was named itself, not by its folder."""

    name: str
    alone: bool = True

    @cached_property
    def content(self) -> bytes | None:
        """Of an address, what lies there, fetched once; None of a file."""
        return fetch(self.name) if is_address(self.name) else None

    def open(self, side: int | None = None) -> Image.Image:
        """The picture as RGB, upright; see `pictures.opening.open_upright`.

        Raises:
            BenchError: it is not there, or no picture.
        """
        return open_upright(self.name, self.content, side)

    @property
    def path(self) -> Path | None:
        return None if is_address(self.name) else Path(self.name)


@dataclass(frozen=True)
class Sources:
    """pictures: in the order given, those of a folder by name.  notes: what was left out, a line each."""

    pictures: list[Picture] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, given: Sequence[str]) -> Sources:
        """The pictures that a command line names: files, folders (with the folders below), addresses.

        Raises:
            BenchError: no such file; a folder without pictures.
        """
        sources = cls()
        for name in given:
            if is_address(name):
                sources.pictures.append(Picture(name))
                continue
            path = Path(name)
            try:
                is_folder = path.is_dir()
                there = is_folder or path.exists()
            except (OSError, ValueError) as error:
                raise BenchError(f"{name}: is no name of a file ({error}); check the name") from error
            if not there:
                raise BenchError(f"{name}: picture not found; check the name")
            if is_folder:
                sources._add_folder(path)
            else:
                sources.pictures.append(Picture(name))
        return sources

    def _add_folder(self, folder: Path) -> None:
        files = images_below(folder, SUFFIXES)
        line = left_out_line(folder, files.left_out)
        if not files.names:
            raise BenchError(f"{folder}: holds no pictures ({', '.join(SUFFIXES)}){f'; {line}' if line else ''}")
        self.pictures.extend(Picture(str(folder / name), alone=False) for name in files.names)
        if line is not None:
            self.notes.append(line)
