"""ADE20K val: 2,000 images with label maps, and their areas as a model of some skill has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.label_maps import CLASSES
from beit3_bench.tasks.madeup import MadeUp, batches, touch
from beit3_bench.tasks.metrics.segmentation import IGNORE

IMAGES = 2_000
CELLS, CELL = (8, 11), 64
"""Rows and columns of one class each, and the pixels of their sides."""
IN_AN_IMAGE = 9
"""Classes of an image, about."""
RIGHT = 0.8


def write(root: Path, samples: int) -> None:
    """Grey label maps, 0 (other) and classes 1..150."""
    from PIL import Image

    random = np.random.default_rng(0)
    names = [f"ADE_val_{number + 1:08d}" for number in range(samples)]
    touch(root / "images" / "validation", [f"{name}.jpg" for name in names])
    folder = root / "annotations" / "validation"
    folder.mkdir(parents=True)
    frequency = 1.0 / np.arange(1, CLASSES + 2)
    frequency /= frequency.sum()
    for name in names:
        there = random.choice(CLASSES + 1, IN_AN_IMAGE, p=frequency)
        cells = random.choice(there, CELLS).astype(np.uint8)
        Image.fromarray(np.kron(cells, np.ones((CELL, CELL), dtype=np.uint8))).save(folder / f"{name}.png")


def rows(task: Task, split: Split) -> Iterator[list[Row]]:
    """Areas of predictions that take some cells for another one of the image."""
    random = np.random.default_rng(1)
    for examples in batches(split):
        labels = [task.read_ahead(example) for example in examples]
        predicted = []
        for label in labels:
            cells = label[::CELL, ::CELL].ravel()
            wrong = random.random(len(cells)) > RIGHT
            cells = np.where(wrong, random.permutation(cells), cells)
            cells = np.where(cells == IGNORE, 0, cells).astype(np.uint8).reshape(CELLS)
            predicted.append(np.kron(cells, np.ones((CELL, CELL), dtype=np.uint8)))
        yield task.rows(examples, predicted, split, labels)


MADE_UP = MadeUp(IMAGES, write, rows)
