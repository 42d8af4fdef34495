"""Frozen image features of the ImageNet folders, for k-nearest-neighbour and linear probing.

Two kinds. ``embedding``: the image embedding of a dual encoder, the very rows of task `imagenet` (a feature store serves
both). ``patches``: the mean of the patch tokens behind the last norm that the checkpoint has, for any checkpoint with patches.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.abilities import Patches
from beit3_bench.backbones.family import Asked
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, Split
from beit3_bench.tasks.embedding import EmbeddingTask, embeddings_of
from beit3_bench.tasks.imagenet import ImageFolders, ranked_scores
from beit3_bench.tasks.scores import Scores

if TYPE_CHECKING:
    import torch


BLOCK = 8192
"""Images that are scored at a time."""


@dataclass(frozen=True)
class Classifier:
    """method: ``"knn"`` or ``"linear"``.

    k, temperature: of the vote among neighbours (None = DINO's 20 and 0.07).
    strengths: candidates for C of the logistic regression; empty = `linear_probe.STRENGTHS`.
    """

    method: str = "knn"
    k: int | None = None
    temperature: float | None = None
    strengths: tuple[float, ...] = ()


class ImageEmbeddings(ImageFolders, EmbeddingTask):
    """Embeddings of the images alone."""

    name = "probe"
    data_of = "imagenet"
    uses_text = False

    @dataclass
    class Options:
        """features: embedding, of a dual encoder, or patches: the mean patch token of any model that has patches.
        truth: as of task imagenet.
        """

        features: str = "embedding"
        truth: Path | None = None

    def read(self, split: str) -> Split:
        return dataclasses.replace(self.labelled_images(split), labels=None)

    def asked(self, split: Split) -> Asked:
        """An embedding, or the mean of the patches."""
        asked = super().asked(split)
        return dataclasses.replace(asked, ability=Patches, pooled=True) if self.options.features == "patches" else asked

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Embeddings alone say nothing.

        Raises:
            BenchError: always; `Fitted.score` tells the classes apart.
        """
        raise BenchError(f"task {self.name}: its rows are scored by a classifier; use: beit3-bench probe")


@dataclass(frozen=True)
class Fitted:
    """A classifier that was learned from the rows of a training split.

    ranks: features (n, D) and targets (n,) -> rank (from 1) of each target.
    chosen: the settings that were chosen.
    """

    ranks: Callable[[torch.Tensor, np.ndarray], np.ndarray]
    chosen: dict[str, Any]
    counts: dict[str, int]

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Top-1 and top-5 on another split."""
        examples = split.examples
        ranks = self.ranks(features_of(rows, examples), np.array([e.target for e in examples]))
        return ranked_scores(ranks, examples, {"images": len(examples), **self.counts}, self.counts["classes"])


def fit(
    rows: Mapping[str, Row], split: Split, classes: int, classifier: Classifier, device: torch.device, seed: int = 0
) -> Fitted:
    """Learn the classes from the rows of the training split.

    Raises:
        BenchError: see `knn_ranks` and `fit_probe`.
    """
    import torch

    from beit3_bench.tasks.metrics import knn, linear_probe
    from beit3_bench.tasks.metrics.topk import class_ranks

    examples = split.examples
    features = features_of(rows, examples).to(device)
    labels = torch.tensor([e.target for e in examples], device=device)
    counts = {"training images": len(examples), "classes": classes}
    if classifier.method == "knn":
        k, temperature = classifier.k or knn.NEIGHBOURS, classifier.temperature or knn.TEMPERATURE

        def vote(queries: torch.Tensor, targets: np.ndarray) -> np.ndarray:
            return knn.knn_ranks(features, labels, queries.to(device), targets, classes, k, temperature)

        return Fitted(vote, {"k": k, "temperature": temperature}, counts)
    strengths = classifier.strengths or linear_probe.STRENGTHS
    probe = linear_probe.fit_probe(features, labels, classes, strengths, seed, _say)

    def decide(queries: torch.Tensor, targets: np.ndarray) -> np.ndarray:
        blocks = zip(queries.split(BLOCK), np.split(targets, range(BLOCK, len(targets), BLOCK)), strict=True)
        return np.concatenate([class_ranks(probe.scores(x.to(device)).cpu().numpy(), y) for x, y in blocks])

    held_out = {f"{c:g}": value for c, value in probe.held_out.items()}
    return Fitted(decide, {"C": probe.strength, "held_out_top1": held_out}, counts)


def features_of(rows: Mapping[str, Row], examples: Sequence[Example]) -> torch.Tensor:
    """float32 (n, D), in the order of the examples."""
    import torch

    return torch.from_numpy(embeddings_of(examples, rows))


def _say(line: str) -> None:
    print(line, file=sys.stderr)
