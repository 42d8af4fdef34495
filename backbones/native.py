"""Abilities of networks that take normalised images and token ids: what the heads of several families share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.abilities import NOT_FINITE, Ability, Answers, Batch, Classifies, Embeds
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from beit3_bench.backbones.preprocess import PixelScale
    from beit3_bench.backbones.reading import NativeReader


class NativeAbility(Ability):
    """What they share. ``preprocessing`` normalises pixels on the device."""

    module: Any  # torch types every attribute of a Module as "Tensor | Module"
    reader: NativeReader

    def __init__(self, module: nn.Module, reader: NativeReader, preprocessing: PixelScale):
        super().__init__(module, reader)
        self.preprocessing = preprocessing

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> float32, normalised."""
        return self.preprocessing.normalise(images)

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """On a CPU weights are laid out once for its product kernels (see `backbones.packing`)."""
        from beit3_bench.backbones.packing import pack_weights

        if device.type == "cpu" and not compiled:
            pack_weights(self.module)


class DualEncoder(NativeAbility, Embeds):
    """``encode_image(images)`` and ``encode_text(token_ids, padding_mask)``, each (n, D) of unit length."""

    def predict(self, batch: Batch) -> list[Any]:
        if "images" in batch:
            embeddings = self.module.encode_image(self.normalise(batch["images"]))
        else:
            embeddings = self.module.encode_text(batch["token_ids"], batch["padding_mask"])
        return list(embeddings.float().cpu().numpy())


class AnswerClassifier(NativeAbility, Answers):
    """The answer of the greatest logit of ``module(images, token_ids, padding_mask, image_index)``; ``labels`` are the answers."""

    def predict(self, batch: Batch) -> list[str]:
        """Raises: BenchError: nothing says what the outputs mean, or they are not finite."""
        if self.labels is None:
            raise BenchError(
                f"{self.reader.checkpoint}: does not say which answers its outputs are; give the annotations, or the official "
                "answer2label.txt"
            )
        logits = self.logits(batch)
        if not bool(logits.isfinite().all()):
            raise BenchError(f"{self.reader.checkpoint}: {NOT_FINITE.format('a logit is NaN or infinity')}")
        return [self.labels[best] for best in logits.argmax(dim=-1).tolist()]

    def logits(self, batch: Batch) -> Tensor:
        """(B, answers)."""
        images = self.normalise(batch["images"])
        return self.module(images, batch["token_ids"], batch["padding_mask"], batch["image_index"])


class TextImageClassifier(NativeAbility, Classifies):
    """A text about an image: ``module(images, token_ids, padding_mask, image_index)`` -> (n, labels)."""

    def predict(self, batch: Batch) -> list[Any]:
        return list(self.logits(self.module, batch).float().cpu().numpy())

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """(B, labels)."""
        images = self.normalise(batch["images"])
        return module(images, batch["token_ids"], batch["padding_mask"], batch["image_index"])


class PairClassifier(NativeAbility, Classifies):
    """A text about two images: ``module(left, right, token_ids, padding_mask)`` -> (n, labels)."""

    def predict(self, batch: Batch) -> list[Any]:
        return list(self.logits(self.module, batch).float().cpu().numpy())

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """(B, labels)."""
        images = self.normalise(batch["images"])
        left, right = images[batch["image_index"][0::2]], images[batch["image_index"][1::2]]
        return module(left, right, batch["token_ids"], batch["padding_mask"])
