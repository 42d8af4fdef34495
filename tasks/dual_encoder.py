"""What the tasks of the dual encoder share: images and texts are encoded apart, each once, into one space.

Used by retrieval (`retrieval`) and by ImageNet as retrieval of the class text (`imagenet`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.tasks.contract import Example, Row, Task

if TYPE_CHECKING:
    import torch


class DualEncoder(Task):
    """Examples are of kind ``image`` (one file) or ``text``; a row is ``{"id", "embedding"}``."""

    head = "retrieval"
    feature = "embedding"
    row_shape: ClassVar[Mapping[str, Any]] = {"embedding": np.ndarray}
    text_multiple = 1  # texts of one length stand in a batch, and nothing is padded

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        batch: dict[str, Any] = {"ids": [e.id for e in examples]}
        if examples[0].kind == "image":
            batch["images"] = self.load_images([e.images[0] for e in examples])
        else:
            batch["token_ids"], batch["padding_mask"] = self.pad_text(examples)
        return batch

    def predict(self, model: torch.nn.Module, batch: dict[str, Any]) -> list[Row]:
        """Unit-length embeddings, float32 (D,)."""
        if "images" in batch:
            assert self.preprocessing is not None
            embeddings = model.encode_image(self.preprocessing.normalise(batch["images"]))
        else:
            embeddings = model.encode_text(batch["token_ids"], batch["padding_mask"])
        values = embeddings.float().cpu().numpy()
        return [{"id": i, "embedding": row} for i, row in zip(batch["ids"], values, strict=True)]

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def training_collate(
        self, examples: Sequence[Example], generator: torch.Generator, image_ops: Callable
    ) -> dict[str, Any]:
        """Pairs: the examples of `training_examples` have an image and a text."""
        import torch

        from beit3_bench.backbones.preprocess import decode

        token_ids, padding_mask = self.pad_text(examples)
        images = torch.stack([image_ops(decode(e.images[0]), generator) for e in examples])
        return {"ids": [e.id for e in examples], "images": images, "token_ids": token_ids, "padding_mask": padding_mask}

    def loss(self, model: torch.nn.Module, batch: dict[str, Any], gather: Callable, step: int = 0) -> torch.Tensor:
        """Symmetric cross-entropy over the global batch (official `ClipLoss`); with ``labels`` in the batch, pairs of one
        label are not each other's negatives.
        """
        from beit3_bench.backbones.beit3.training.losses import contrastive_loss

        assert self.preprocessing is not None
        images = self.preprocessing.normalise(batch["images"])
        image, text, scale = model(images, batch["token_ids"], batch["padding_mask"])
        return contrastive_loss(image, text, scale, gather, groups=batch.get("labels"))
