"""ViLT's heads as abilities, and how their images are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from beit3_bench.backbones import native, patch_features
from beit3_bench.backbones.abilities import Batch, Item, Matches, PixelTransform
from beit3_bench.backbones.corruptions import CorruptedPixels, Corruption
from beit3_bench.backbones.matching import CandidateReader, Ids, scores_by_length
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.backbones.vilt.images import AspectKept

if TYPE_CHECKING:
    from torch import Tensor, nn

    from beit3_bench.backbones.preprocess import Preprocessing
    from beit3_bench.backbones.vilt.model import Patches
    from beit3_bench.backbones.wordpiece import WordPiece

TEXT_MULTIPLE = 8
_TEXTS_AT_ONCE = 64
"""Texts of one length that are read together with an image: with it, each has hundreds of tokens."""


class PatchReader(NativeReader):
    """Images as patches, padded to as many as the largest one has, so that no value depends on what stands beside it."""

    text_multiple: ClassVar[int] = TEXT_MULTIPLE

    def __init__(self, images: AspectKept, tokenizer: WordPiece, vocab_size: int, checkpoint: Path):
        super().__init__(None, tokenizer, self.text_multiple, vocab_size, checkpoint)  # a cache holds squares
        self.resizing = images
        self.source: PixelTransform = images

    def corrupt(self, corruption: Corruption) -> None:
        self.source = CorruptedPixels(self.source, corruption)

    def pixels(self, image: Any) -> Tensor:
        """A file or a PIL image -> uint8 (3, h, w), not yet normalised."""
        if isinstance(image, (str, Path)):
            return self.source.load(image)
        return self.source.pixels(image if image.mode == "RGB" else image.convert("RGB"))

    def distinct(self, images: Sequence[Any]) -> tuple[Any, Tensor]:
        """Each distinct image once, as ``(patches uint8 (u, N, 3, patch * patch), grids int64 (u, 2))``, and the index of each image's."""
        import torch

        from beit3_bench.backbones.vilt.model import patches_of

        order: dict[Any, int] = {}
        for image in images:
            order.setdefault(str(image) if isinstance(image, (str, Path)) else id(image), len(order))
        chosen = {str(i) if isinstance(i, (str, Path)) else id(i): i for i in images}
        patch = self.resizing.patch
        values = torch.zeros(len(order), self.resizing.most, 3, patch * patch, dtype=torch.uint8)
        grids = torch.zeros(len(order), 2, dtype=torch.long)
        for name, number in order.items():
            cut = patches_of(self.pixels(chosen[name]).unsqueeze(0), patch)
            values[number, : cut.values.shape[1]] = cut.values[0].unflatten(-1, (3, -1))
            grids[number] = cut.grids[0]
        index = [order[str(i) if isinstance(i, (str, Path)) else id(i)] for i in images]
        return (values, grids), torch.tensor(index)

    def collate(self, items: Sequence[Item]) -> Batch:
        """``images`` uint8 patches, ``grids``, ``image_index``, ``token_ids`` and ``padding_mask``."""
        (images, grids), index = self.distinct([image for item in items for image in item.images])
        token_ids, padding_mask = self.pad(items)
        return {
            "images": images,
            "grids": grids,
            "image_index": index,
            "token_ids": token_ids,
            "padding_mask": padding_mask,
        }


class PairReader(CandidateReader, PatchReader):
    """An image and the texts that are compared with it, each at its own length."""

    text_multiple = 1

    def collate(self, items: Sequence[Item]) -> Batch:
        """``images`` uint8 patches, ``grids`` and ``image_index`` as of `PatchReader`; ``texts``: token ids of each item's texts."""
        (images, grids), index = self.distinct([item.images[0] for item in items])
        return {"images": images, "grids": grids, "image_index": index, "texts": self.candidates(items)}


class NativeAbility(native.NativeAbility):
    """What ViLT's heads share."""

    preprocessing: AspectKept

    def patches(self, batch: Batch) -> Patches:
        from beit3_bench.backbones.vilt.model import Patches

        return Patches(self.normalise(batch["images"].unsqueeze(-2)).flatten(2), batch["grids"])

    def compile(self) -> None:
        """Compile in place, layer by layer: equal layers share one compilation."""
        for block in self.module.transformer.blocks:
            block.compile()

    def item_bytes(self) -> int:
        """About 16 rows of the width per token: the feed-forward's hidden state and its GELU, q, k, v and copies."""
        config = self.module.config
        tokens = 1 + self.preprocessing.most + config.max_text_length
        return tokens * config.width * 16 * 4


class PatchTokens(NativeAbility, patch_features.PatchTokens):
    """Of an image alone, squared; no text stands before it."""

    preprocessing: Preprocessing  # type: ignore[assignment]

    def tokens(self, batch: Batch) -> Tensor:
        side = self.preprocessing.size // self.module.config.patch_size
        states = self.module.image_states(self.module.cut(self.normalise(batch["images"])))
        return states[:, 1:].unflatten(1, (side, side))

    def item_bytes(self) -> int:
        config = self.module.config
        return (1 + (self.preprocessing.size // config.patch_size) ** 2) * config.width * 16 * 4


class AnswerClassifier(NativeAbility, native.AnswerClassifier):
    """The answer of the greatest logit."""

    def logits(self, batch: Batch) -> Tensor:
        return self.module.answer(self.patches(batch), batch["token_ids"], batch["padding_mask"], batch["image_index"])


class PairClassifier(NativeAbility, native.PairClassifier):
    """A text about two images (NLVR2)."""

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        patches, index = self.patches(batch), batch["image_index"]
        left, right = patches.select(index[0::2]), patches.select(index[1::2])
        return self.module.judge(left, right, batch["token_ids"], batch["padding_mask"])


class Matcher(NativeAbility, Matches):
    """Scores of an image with each of its texts. Its patches are cut to its own and embedded once; the transformer reads them anew with
    every text, as the two look at each other from the first layer on.
    """

    def predict(self, batch: Batch) -> list[Any]:
        patches = self.patches(batch)
        scores = [
            self._of_image(patches.select(row.unsqueeze(0)), texts)
            for row, texts in zip(batch["image_index"], batch["texts"], strict=True)
        ]
        return [score.cpu().numpy() for score in scores]

    def _of_image(self, patches: Patches, texts: Sequence[Sequence[int]]) -> Tensor:
        """patches: of one image, padding behind them."""
        import torch

        own = patches._replace(values=patches.values[:, : int(patches.grids.prod())])
        image, _ = self.module.embed_image(own)
        device = image.device

        def score(part: list[Ids]) -> Tensor:
            return self.module.rank((image, None), torch.tensor(part, device=device))

        return scores_by_length(texts, _TEXTS_AT_ONCE, device, score)
