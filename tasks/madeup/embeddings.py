"""Made-up embeddings: whatever has one target lies near one point."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.madeup import batches

DIMENSIONS = 768
"""Of the base models."""
NOISE = 3.0
"""Length of what is added to a point, on average, by the point's own."""


def embedding_rows(task: Task, split: Split) -> Iterator[list[Row]]:
    """Rows with unit vectors, float32 (768,)."""
    random = np.random.default_rng(0)
    place = {target: n for n, target in enumerate(dict.fromkeys(example.target for example in split.examples))}
    points = random.standard_normal((len(place), DIMENSIONS), dtype=np.float32)
    for examples in batches(split):
        near = points[[place[example.target] for example in examples]]
        near = near + NOISE * random.standard_normal(near.shape, dtype=np.float32)
        near /= np.linalg.norm(near, axis=1, keepdims=True)
        yield task.rows(examples, list(near), split, [None] * len(examples))
