"""What the tasks of a shared space of images and texts have in common: each image and each text is embedded once.

Used by retrieval (`retrieval`), ImageNet as retrieval of the class text (`imagenet`) and probing (`probing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Embeds
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, Split, Task


class EmbeddingTask(Task):
    """Examples are of kind ``image`` (one file) or ``text``; a row is ``{"id", "embedding"}``."""

    ability = Embeds
    feature = "embedding"
    row_shape: ClassVar[Mapping[str, Any]] = {"embedding": np.ndarray}

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """Unit-length embeddings, float32 (D,)."""
        return [{"id": e.id, "embedding": value} for e, value in zip(examples, values, strict=True)]

    def candidates(self, names: Sequence[str]) -> list[tuple[str, list[str]]]:
        """The texts themselves."""
        if not names:
            raise BenchError(f"task {self.name} compares pictures with texts; give at least one text")
        return [(name, [name]) for name in names]


def embeddings_of(examples: Sequence[Example], rows: Mapping[str, Row]) -> np.ndarray:
    """Their embeddings, (n, D), in their order.

    Raises:
        BenchError: they are not all of one length; names two rows.
    """
    vectors = [rows[example.id]["embedding"] for example in examples]
    for example, vector in zip(examples, vectors, strict=True):
        if vector.shape != vectors[0].shape:
            raise BenchError(
                f"rows {examples[0].id} and {example.id}: embeddings of shapes {vectors[0].shape} and {vector.shape}; a model gives "
                "vectors of one length"
            )
    return np.stack(vectors)
