"""COCO's Karpathy split: all of `dataset_coco.json`, and the 5,000 images and 25,010 captions of its test part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.files import write_json
from beit3_bench.tasks.madeup import MadeUp, touch
from beit3_bench.tasks.madeup.embeddings import embedding_rows
from beit3_bench.tasks.madeup.texts import Texts

IMAGES = 5_000
OTHERS = {"val": 5_000, "restval": 30_504, "train": 82_783}
FIVE, SIX_EVERY = 5, 500
"""Captions of an image, and every how many images have one more: 25,010 of 5,000."""


def write(root: Path, samples: int) -> None:
    """The split file; images of the test part alone."""
    texts = Texts(0)
    parts = {"test": samples} | {name: max(1, round(count * samples / IMAGES)) for name, count in OTHERS.items()}
    of_image = np.repeat(np.arange(sum(parts.values())), FIVE)
    of_image = np.sort(np.concatenate([of_image, np.arange(SIX_EVERY - 1, sum(parts.values()), SIX_EVERY)]))
    sentences = iter(texts.sentences(of_image, 8, 14))
    counts = np.bincount(of_image).tolist()
    records: list[dict[str, Any]] = []
    sentence = 0
    for part, count in parts.items():
        folder = "train2014" if part == "train" else "val2014"
        for _ in range(count):
            number = len(records)
            said = [next(sentences) for _ in range(counts[number])]
            ids = list(range(sentence, sentence + len(said)))
            sentence += len(said)
            records.append(
                {
                    "filepath": folder,
                    "sentids": ids,
                    "filename": f"COCO_{folder}_{number + 1:012d}.jpg",
                    "imgid": number,
                    "split": part,
                    "sentences": [
                        {"tokens": words, "raw": f"{' '.join(words).capitalize()}.", "imgid": number, "sentid": i}
                        for words, i in zip(said, ids, strict=True)
                    ],
                    "cocoid": number + 1,
                }
            )
    touch(root / "val2014", [record["filename"] for record in records[:samples]])
    write_json(root / "dataset_coco.json", {"images": records, "dataset": "coco"})


def rows(task: Task, split: Split) -> Iterator[list[Row]]:
    """Embeddings; a caption's lies near its image's."""
    return embedding_rows(task, split)


MADE_UP = MadeUp(IMAGES, write, rows)
