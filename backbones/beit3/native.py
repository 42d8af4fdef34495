"""BEiT-3's native heads as abilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from beit3_bench.backbones import native, patch_features
from beit3_bench.backbones.abilities import NOT_FINITE, Batch, Captions, Classifies
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from beit3_bench.backbones.abilities import Caption
    from beit3_bench.backbones.beit3.generation import Decoding
    from beit3_bench.backbones.beit3.tokenizer import Tokenizer
    from beit3_bench.backbones.preprocess import Preprocessing
    from beit3_bench.backbones.reading import NativeReader


class NativeAbility(native.NativeAbility):
    """What BEiT-3's heads share."""

    def compile(self) -> None:
        compile_layers(self.module)

    def item_bytes(self) -> int:
        """About 24 rows of width D per token: the feed-forward's hidden state, q, k, v and copies."""
        config = self.module.config
        return (config.num_patches + 64) * config.embed_dim * 24 * 4


def compile_layers(module: nn.Module) -> None:
    """Compile in place, layer by layer: equal layers share one compilation. The head around them stays as it is."""
    import torch

    for layer in module.beit3.encoder.layers:
        layer.compile()
        layer.image_states = torch.compile(layer.image_states)


class DualEncoder(NativeAbility, native.DualEncoder):
    """Each tower's projected first token."""


class PatchTokens(NativeAbility, patch_features.PatchTokens):
    """Of a checkpoint without the encoder's norm the tokens are those before it, and only their mean is normalised, as its head sees it."""

    def tokens(self, batch: Batch) -> Tensor:
        grid = self.module.config.grid
        return self.module.beit3(self.normalise(batch["images"])).image[:, 1:].unflatten(1, (grid, grid))

    def means(self, batch: Batch) -> Tensor:
        means, norm = super().means(batch), self.norm
        return means if norm is None else norm(means)

    @property
    def norm(self) -> nn.Module | None:
        """The classifier's norm behind the mean, where the checkpoint has that instead of the encoder's."""
        from beit3_bench.backbones.beit3.models import ImageClassification

        return self.module.fc_norm if isinstance(self.module, ImageClassification) else None


class AnswerClassifier(NativeAbility, native.AnswerClassifier):
    """The answer of the greatest logit (BEiT-3 paper, section 3.1.1: pooled vision CLS)."""


class PairClassifier(NativeAbility, native.PairClassifier):
    """A text about two images (NLVR2): [vision CLS, text BOS] of both passes (BEiT-3 paper, section 3.1.1)."""


class TextImageClassifier(NativeAbility, native.TextImageClassifier):
    """A text about an image (SNLI-VE): pooled vision CLS, as for questions."""


class ImageClassifier(NativeAbility, Classifies):
    """An image alone: the linear head on mean-pooled patches (official `BEiT3ForImageClassification`)."""

    def predict(self, batch: Batch) -> list[Any]:
        return list(self.module(self.normalise(batch["images"])).float().cpu().numpy())


class Captioner(NativeAbility, Captions):
    """Beam search over masked conditional generation (BEiT-3 paper, section 3.1.2)."""

    def __init__(self, module: nn.Module, reader: NativeReader, preprocessing: Preprocessing, decoding: Decoding):
        super().__init__(module, reader, preprocessing)
        self.decoding = decoding

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """On a card the steps of the search are captured as graphs."""
        from beit3_bench.backbones.beit3.decoding_graphs import keep_graphs

        super().make_ready(device, compiled)
        if device.type == "cuda":
            keep_graphs(self.module)

    def predict(self, batch: Batch) -> list[Caption]:
        from beit3_bench.backbones.abilities import Caption

        d, tokenizer = self.decoding, cast("Tokenizer", self.reader.tokenizer)
        images = self.normalise(batch["images"])
        found = self.module.hypotheses(images, d)
        if not all(math.isfinite(hypothesis.score) for hypothesis in found):
            raise BenchError(
                f"{self.reader.checkpoint}: {NOT_FINITE.format('the score of a caption is NaN or infinity')}"
            )
        return [Caption(tokenizer.decode(h.ids), tuple(h.ids)) for h in found]


def decoding_of(values: Mapping[str, Any]) -> Decoding:
    """How captions are searched: options of the task, and where one is None what the official evaluation command does.

    Raises:
        BenchError: a value that cannot be; see `generation.Decoding`.
    """
    from dataclasses import fields

    from beit3_bench.backbones.beit3.generation import Decoding

    names = [f.name for f in fields(Decoding)]
    return Decoding(**{name: values[name] for name in names if values.get(name) is not None})
