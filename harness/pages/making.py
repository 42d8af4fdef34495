"""From what `beit3-bench show` was given to pages in files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import quote

from beit3_bench.errors import BenchError
from beit3_bench.harness.pages.image import image_page
from beit3_bench.harness.pages.index import write_index, write_page
from beit3_bench.harness.pages.rendering import Page
from beit3_bench.harness.pages.run import page_name, run_page
from beit3_bench.harness.pages.training import is_training, training_page
from beit3_bench.harness.record.runs import PAGE


@dataclass(frozen=True)
class Wish:
    """The options of `show`, as there."""

    against: Path | None = None
    image: str | None = None
    n: int = 48
    sort: str | None = None
    output: Path | None = None
    data_root: Path | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass
class Made:
    """A page in a file."""

    path: Path
    bytes: int
    samples: int
    seconds: float
    facts: dict[str, Any]
    warnings: list[str]
    index: Path | None = None

    def text(self) -> str:
        lines = f"{self.path}: {self.samples} samples, {self.bytes / 1e6:.1f} MB, {self.seconds:.1f} s"
        return lines if self.index is None else f"{lines}; index: {self.index}"

    def to_dict(self) -> dict[str, Any]:
        told = {**vars(self), "path": str(self.path), "index": None if self.index is None else str(self.index)}
        return {"page": told.pop("path"), **told}


def make_pages(folders: Sequence[Path], wish: Wish) -> tuple[list[Made], list[str]]:
    """Make and write the pages; of several folders, what is wrong with those that have none is told, and the others get theirs.

    Raises:
        BenchError: options that do not go together; see the makers of pages.
    """
    check(folders, wish)
    made: list[Made] = []
    failed: list[str] = []
    if wish.image is not None:
        started = time.perf_counter()
        page = image_page(wish.image, folders, wish.data_root, wish.options, wish.n)
        made.append(_written(_image_place(wish.image, wish.output), page, started))
    else:
        for folder in folders:
            started = time.perf_counter()
            try:
                made.append(_written(place_of(folder, wish.output), _page(folder, wish), started))
            except BenchError as error:
                if len(folders) == 1:
                    raise
                failed.append(str(error))
    if is_folder(wish.output) and made:
        index = write_index(wish.output)
        for one in made:
            one.index = index
    return made, failed


def _page(folder: Path, wish: Wish) -> Page:
    if is_training(folder):
        if wish.against is not None or wish.sort is not None:
            raise BenchError(
                f"{folder}: is the folder of a training, which has no samples; leave out --against and --sort"
            )
        return training_page(folder)
    return run_page(folder, wish.against, wish.n, wish.sort, wish.data_root, wish.options, wish.seed)


def _written(path: Path, page: Page, started: float) -> Made:
    write_page(path, page.html)
    return Made(path, path.stat().st_size, page.cards, time.perf_counter() - started, page.facts, page.warnings)


def check(folders: Sequence[Path], wish: Wish) -> None:
    """Raise if options do not go together."""
    if wish.image is not None:
        for name, value in (("--against", wish.against), ("--sort", wish.sort)):
            if value is not None:
                raise BenchError(f"{name} goes with the page of a run, not with --image; leave one of them out")
    elif len(folders) > 1:
        if wish.against is not None:
            raise BenchError("--against goes with one run; leave out the others")
        if wish.output is not None and not is_folder(wish.output):
            raise BenchError(f"{wish.output}: is one file for {len(folders)} pages; give a folder with --output")


def _image_place(image: str, output: Path | None) -> Path:
    """Where the page of a picture goes; by default into the current folder."""
    if output is not None and not is_folder(output):
        return output
    name = f"image-{quote(image, safe='')}.html"
    if len(name) > 200:
        raise BenchError("--image: is too long for the name of a file; give --output FILE.html")
    return (output or Path()) / name


def is_folder(output: Path | None) -> TypeGuard[Path]:
    """Whether ``--output`` names a folder of pages."""
    return output is not None and (output.is_dir() or output.suffix.lower() not in (".html", ".htm"))


def place_of(folder: Path, output: Path | None) -> Path:
    """Where the page of a folder goes."""
    if output is None:
        return folder / PAGE
    return output / page_name(folder) if is_folder(output) else output
