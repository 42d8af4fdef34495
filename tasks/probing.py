"""Frozen image features of the ImageNet folders, for k-nearest-neighbour and linear probing.

Two kinds. ``embedding``: the image embedding of a dual encoder, the very rows of task `imagenet` (a feature store serves
both). ``patches``: the mean of the patch tokens behind the last norm that the checkpoint has, for any BEiT-3 checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.tasks.base import Example, Row, Scores, Task
from beit3_bench.tasks.dual_encoder import DualEncoder
from beit3_bench.tasks.imagenet import ImageFolders

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from beit3_bench.backbones.checkpoint import LoadedModel

FINAL_NORM = "beit3.encoder.layer_norm.A.weight"
NOT_THE_ENCODER = ("[!b]*",)  # names of heads; all of the encoder begins with "beit3."


class ImageEmbeddings(ImageFolders, DualEncoder):
    """Embeddings of the images alone."""

    name = "probe"
    title = "ImageNet-1K, probing of image embeddings"
    uses_text = False

    def examples(self, split: str) -> list[Example]:
        return self.labelled_images(split)

    def score(self, rows: Mapping[str, Row], examples: Sequence[Example]) -> Scores:
        raise NotImplementedError("features are scored by harness.probe, with those of the training split")


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
        from beit3_bench.backbones.checkpoint import load_model_for, read_checkpoint
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


FEATURES: dict[str, type[Task]] = {"embedding": ImageEmbeddings, "patches": PatchMeans}
