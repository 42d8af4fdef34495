"""Patches of images in the feature store: written by any number of processes, read from the disk as they are needed.

A grid (h, w, D) is one float16 vector of a `feature_store.FeatureSpace` of its own. ADE20K's 20,210 training images at 32 x 32 patches
of 768 numbers are 31.8 GB, of which no more than a batch is in memory.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from beit3_bench.backbones.family import Model
from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.progress import Reporting
from beit3_bench.harness.reuse.feature_store import FeatureSpace, record_bytes
from beit3_bench.harness.reuse.features import Key, file_keys, space_facts
from beit3_bench.tasks.contract import Example, Row, Task
from beit3_bench.text import in_words

if TYPE_CHECKING:
    import torch

_NUMBERS = "<f2"


class PatchStore:
    """Where the engine puts patches of images (a `predict.RowSink`), and a training finds them.

    shape: (h, w, D) of every image.
    """

    def __init__(
        self,
        root: Path,
        task: Task,
        model: Model,
        device: torch.device,
        compute: Compute,
        shape: tuple[int, int, int],
    ):
        """Raises: BenchError: ``root`` cannot be a folder here, or the model reads images so that they have no name."""
        assert task.feature is not None
        facts = space_facts(task, model, device, compute)
        if "image" not in facts:
            raise BenchError(
                f"{model.card.checkpoint}: reads images by no fixed transform, so that patches cannot be kept"
            )
        self.feature, self.shape = task.feature, shape
        self.space = FeatureSpace(root, {**facts["image"], "stored": "float16", "shape": list(shape)}, _NUMBERS)
        self._check()
        self.keys: dict[str, Key] = {}
        self._there: set[str] = set()
        self._whole: dict[bytes, tuple[Path, int]] = {}  # places of patches whose checksums fit

    def look(self, examples: Sequence[Example], processes: Processes, reporting: Reporting) -> None:
        """Find what is there already, on all processes.

        Raises:
            BenchError: an image cannot be read.
        """
        mine = file_keys([e.images[0] for e in examples[processes.rank :: processes.world]])
        hashed = {path: key for part in processes.gather(mine) for path, key in part.items()}
        unread = next((path for path, key in hashed.items() if key is None), None)
        if unread is not None:
            raise BenchError(f"{unread}: cannot be read; restore it")
        self.keys = {e.id: key for e in examples if (key := hashed[e.images[0]]) is not None}
        self._there = set(self._places(examples, reporting)) if processes.first else set()

    def _places(self, examples: Sequence[Example], reporting: Reporting) -> dict[str, tuple[Path, int]]:
        """Where the patches of images stand, for those that have any; each is read once, and its checksum compared."""
        digests = {example.id: self.keys[example.id].digest for example in examples}
        unseen = set(digests.values()) - self._whole.keys()
        with reporting.meter("stored patches", "image", len(unseen), leave=False) as meter:
            self._whole |= self.space.places(unseen, meter.advance)
        return {i: self._whole[digest] for i, digest in digests.items() if digest in self._whole}

    def check_disk(self) -> str:
        """How much there will be, in a line.

        Raises:
            BenchError: more than what is free.
        """
        each = record_bytes(math.prod(self.shape), _NUMBERS)
        missing = each * (len(self.keys) - len(self._there))
        h, w, dim = self.shape
        line = f"patches of {len(self.keys):,} images, {h} x {w} of {dim:,} numbers: {in_words(each * len(self.keys))}"
        free = shutil.disk_usage(self.space.folder).free
        if missing > free:
            raise BenchError(
                f"{line}, of which {in_words(missing)} are to be written, and {in_words(free)} are free in {self.space.folder.parent}; "
                "give --features on a larger disk"
            )
        there = in_words(each * len(self._there))
        return f"{line} in {self.space.folder.parent}" + (f", of which {there} are there" if self._there else "")

    # ---- as the engine sees it ---------------------------------------------------------------------------------------

    def done(self) -> set[str]:
        """Ids of the images that were there when it was looked for them; empty on other processes than the first."""
        return self._there

    def append(self, rows: Iterable[Row]) -> None:
        """Store patches.

        Raises:
            BenchError: the disk is full, a number that float16 does not have, another shape, or an image that has changed meanwhile.
        """
        vectors = {}
        for row in rows:
            grid, key = row[self.feature], self.keys[row["id"]]
            if grid.shape != self.shape:
                raise BenchError(
                    f"row {row['id']}: patches of shape {grid.shape}; those of other images are {self.shape}"
                )
            with np.errstate(over="ignore"):
                half = grid.astype(_NUMBERS)
            if not np.isfinite(half).all():
                raise BenchError(f"row {row['id']}: a number of its patches is beyond float16, in which they are kept")
            if not key.still_true():
                raise BenchError(f"{key.path}: was changed while it was read; give the same command again")
            vectors[key.digest] = half.reshape(-1)
        self.space.append(vectors)
        self._check()

    def _check(self) -> None:
        if self.space.trouble is not None:
            raise BenchError(
                f"{self.space.folder}: {self.space.reason}; give --features on another disk, or make room and give the same command again"
            )

    def close(self) -> None:
        self.space.close()

    # ---- as a training sees it ---------------------------------------------------------------------------------------

    def grids(self, examples: Sequence[Example], reporting: Reporting) -> StoredGrids:
        """The patches of images, all of which are there.

        Raises:
            BenchError: some are not.
        """
        places = self._places(examples, reporting)
        lost = next((example.id for example in examples if example.id not in places), None)
        if lost is not None:
            raise BenchError(f"{self.space.folder}: the patches of {lost} are lost; give the same command again")
        return StoredGrids(self.space, [places[example.id] for example in examples], self.shape)


class StoredGrids:
    """Patches by number of the image."""

    def __init__(self, space: FeatureSpace, places: Sequence[tuple[Path, int]], shape: tuple[int, int, int]):
        self.places, self.shape = places, shape
        try:
            self._packs: Mapping[Path, np.ndarray] = {path: space.mapped(path) for path in {path for path, _ in places}}
        except OSError as error:
            raise BenchError(f"{space.folder}: was changed meanwhile; give the same command again") from error

    def __len__(self) -> int:
        return len(self.places)

    def of(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """float16 (h, w, D) of each."""
        chosen = (self.places[number] for number in numbers)
        return [self._packs[path][record].reshape(self.shape) for path, record in chosen]
