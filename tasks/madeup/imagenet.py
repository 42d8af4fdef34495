"""ImageNet-1K val: 50,000 images in 1,000 class folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from beit3_bench.tasks.class_folders import imagenet_classes
from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.madeup import MadeUp, touch
from beit3_bench.tasks.madeup.embeddings import embedding_rows

IMAGES = 50_000


def write(root: Path, samples: int) -> None:
    """Class folders, as many images in each; with fewer images than classes, the first classes."""
    classes = imagenet_classes()[:samples]
    for place, wnid in enumerate(classes):
        numbers = range(place, samples, len(classes))
        touch(root / "val" / wnid, [f"ILSVRC2012_val_{number + 1:08d}.JPEG" for number in numbers])


def rows(task: Task, split: Split) -> Iterator[list[Row]]:
    """Embeddings of images and of the class texts; an image's lies near its class's."""
    return embedding_rows(task, split)


MADE_UP = MadeUp(IMAGES, write, rows)
