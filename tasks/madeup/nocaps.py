"""nocaps val: 4,500 images of three domains with ten captions each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from beit3_bench.backbones.abilities import Caption
from beit3_bench.tasks.captioning import DOMAINS
from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.files import write_json
from beit3_bench.tasks.madeup import MadeUp, batches, touch
from beit3_bench.tasks.madeup.texts import Texts

IMAGES, TEN = 4_500, 10


def write(root: Path, samples: int) -> None:
    """Images and their captions."""
    names = [f"{number:016x}.jpg" for number in range(samples)]
    said = Texts(0).sentences(np.repeat(np.arange(samples), TEN), 8, 14)
    images = [
        {"id": n, "file_name": name, "width": 1024, "height": 768, "domain": DOMAINS[n % len(DOMAINS)]}
        for n, name in enumerate(names)
    ]
    annotations = [
        {"image_id": n // TEN, "id": n, "caption": f"{' '.join(words).capitalize()}."} for n, words in enumerate(said)
    ]
    touch(root / "val", names)
    write_json(root / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})


def rows(task: Task, split: Split) -> Iterator[list[Row]]:
    """A caption in words of the image's own ones, and as many token ids."""
    random = np.random.default_rng(1)
    for examples in batches(split):
        captions = []
        for example in examples:
            words = " ".join(example.target).rstrip(".").lower().replace(".", "").split()
            chosen = [words[i] for i in random.integers(0, len(words), int(random.integers(8, 15))).tolist()]
            captions.append(Caption(" ".join(chosen), tuple(range(4, 4 + len(chosen)))))
        yield task.rows(examples, captions, split, [None] * len(examples))


MADE_UP = MadeUp(IMAGES, write, rows)
