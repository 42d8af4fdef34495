"""Frozen image features of the ImageNet folders, for k-nearest-neighbour and linear probing.

Two kinds. ``embedding``: the image embedding of a dual encoder, the very rows of task `imagenet` (a feature store serves
both). ``patches``: the mean of the patch tokens behind the last norm that the checkpoint has, for any BEiT-3 checkpoint.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row
from beit3_bench.tasks.dual_encoder import DualEncoder
from beit3_bench.tasks.imagenet import ImageFolders, ranked_scores
from beit3_bench.tasks.scores import Scores

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.beit3.checkpoint import LoadedModel

FINAL_NORM = "beit3.encoder.layer_norm.A.weight"
BLOCK = 8192
"""Images that are scored at a time."""
NOT_THE_ENCODER = ("[!b]*",)  # names of heads; all of the encoder begins with "beit3."


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


class ImageEmbeddings(ImageFolders, DualEncoder):
    """Embeddings of the images alone."""

    name = "probe"
    title = "ImageNet-1K, probing of image embeddings"
    data_of = "imagenet"
    uses_text = False

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        super().__init__(data_root, options)
        self._ranks: Callable[[torch.Tensor, np.ndarray], np.ndarray] | None = None
        self._counts: dict[str, int] = {}

    def examples(self, split: str) -> list[Example]:
        return self.labelled_images(split)

    def fit(
        self,
        rows: Mapping[str, Row],
        examples: Sequence[Example],
        classifier: Classifier,
        device: torch.device,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Learn the classes from the rows of the training split; `score` then tells them apart.

        Returns:
            The settings that were chosen.

        Raises:
            BenchError: see `knn_ranks` and `fit_probe`.
        """
        import torch

        from beit3_bench.tasks.metrics import knn, linear_probe
        from beit3_bench.tasks.metrics.topk import class_ranks

        features = self._features(rows, examples).to(device)
        labels = torch.tensor([e.target for e in examples], device=device)
        classes = len(self.classes())
        self._counts = {"training images": len(examples), "classes": classes}
        if classifier.method == "knn":
            k, temperature = classifier.k or knn.NEIGHBOURS, classifier.temperature or knn.TEMPERATURE

            def vote(queries: torch.Tensor, targets: np.ndarray) -> np.ndarray:
                return knn.knn_ranks(features, labels, queries.to(device), targets, classes, k, temperature)

            self._ranks = vote
            return {"k": k, "temperature": temperature}
        strengths = classifier.strengths or linear_probe.STRENGTHS
        fitted = linear_probe.fit_probe(features, labels, classes, strengths, seed, _say)

        def decide(queries: torch.Tensor, targets: np.ndarray) -> np.ndarray:
            blocks = zip(queries.split(BLOCK), np.split(targets, range(BLOCK, len(targets), BLOCK)), strict=True)
            return np.concatenate([class_ranks(fitted.scores(x.to(device)).cpu().numpy(), y) for x, y in blocks])

        self._ranks = decide
        return {"C": fitted.strength, "held_out_top1": {f"{c:g}": value for c, value in fitted.held_out.items()}}

    def score(self, rows: Mapping[str, Row], examples: Sequence[Example]) -> Scores:
        """Top-1 and top-5 of the classifier that `fit` learned."""
        if self._ranks is None:
            raise BenchError(f"task {self.name}: no classifier is learned yet; call fit with the training split first")
        ranks = self._ranks(self._features(rows, examples), np.array([e.target for e in examples]))
        return ranked_scores(ranks, examples, {"images": len(examples), **self._counts})

    def _features(self, rows: Mapping[str, Row], examples: Sequence[Example]) -> torch.Tensor:
        """float32 (n, D), in the order of the examples."""
        import torch

        return torch.from_numpy(np.stack([rows[e.id]["embedding"] for e in examples]))


class PatchMeans(ImageEmbeddings):
    """Means of the patch tokens."""

    title = "ImageNet-1K, probing of mean patch features"

    def load_model(
        self, checkpoint: Path, preset: str | None, image_size: int | None, allow_missing: Sequence[str]
    ) -> LoadedModel:
        """The vision tower of any BEiT-3 checkpoint; whatever else the file holds is left aside.

        Raises:
            BenchError: not a BEiT-3 checkpoint, or a part of the tower is missing.
        """
        from beit3_bench.backbones.beit3.checkpoint import load_model_for
        from beit3_bench.backbones.checkpoints import read_checkpoint
        from beit3_bench.backbones.preprocess import Preprocessing

        names = read_checkpoint(checkpoint).tensors.keys()
        classifier = "fc_norm.weight" in names
        # The retrieval model ends with the encoder's norm; the classifier has its own behind the mean, or none.
        head, arguments = ("retrieval", {}) if FINAL_NORM in names else ("imagenet-linear", {"num_classes": 1})
        allowed = (*allow_missing, *NOT_THE_ENCODER)
        loaded = load_model_for(head, checkpoint, preset, image_size, arguments, allowed)
        if head == "imagenet-linear":
            loaded.model.head = None  # type: ignore[assignment]
            loaded.model.fc_norm = loaded.model.fc_norm if classifier else None  # type: ignore[assignment]
        if not classifier and "preprocessing" not in loaded.metadata:
            loaded = dataclasses.replace(loaded, preprocessing=Preprocessing(loaded.config.image_size))
        return loaded

    def predict(self, model: torch.nn.Module, batch: dict[str, Any]) -> list[Row]:
        """Unit-length means, float32 (D,)."""
        import torch.nn.functional as F

        assert self.preprocessing is not None
        means = model.beit3(self.preprocessing.normalise(batch["images"])).image[:, 1:].mean(dim=1)
        norm = getattr(model, "fc_norm", None)
        values = F.normalize((means if norm is None else norm(means)).float(), dim=-1).cpu().numpy()
        return [{"id": i, "embedding": row} for i, row in zip(batch["ids"], values, strict=True)]


FEATURES: dict[str, type[ImageEmbeddings]] = {"embedding": ImageEmbeddings, "patches": PatchMeans}


def _say(line: str) -> None:
    print(line, file=sys.stderr)
