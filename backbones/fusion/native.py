"""Heads of `fusion.heads` as abilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from beit3_bench.backbones import native, patch_features
from beit3_bench.backbones.abilities import NOT_FINITE, Ability, Answers, Batch, Classifies, Item, Matches
from beit3_bench.backbones.fusion.answers import best_answers
from beit3_bench.backbones.fusion.texts import Texts
from beit3_bench.backbones.matching import CandidateReader, Ids, scores_by_length
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from beit3_bench.backbones.fusion.bert import Context
    from beit3_bench.backbones.fusion.config import VisionConfig
    from beit3_bench.backbones.preprocess import Preprocessing

_TEXTS_AT_ONCE = 256
"""Texts of one length that look at an image in one pass."""


class NativeAbility(native.NativeAbility):
    """What the heads share."""

    def compile(self) -> None:
        """Compile in place, layer by layer: equal layers share one compilation."""
        for block in self.module.visual_encoder.blocks:
            block.compile()

    def item_bytes(self) -> int:
        return _item_bytes(self.module.config.vision)


def _item_bytes(config: VisionConfig) -> int:
    """About 16 rows of width D per token of the image: the feed-forward's hidden state and its GELU, q, k, v and copies."""
    return (config.tokens + 40) * config.width * 16 * 4


class DualEncoder(NativeAbility, native.DualEncoder):
    """Projected first tokens of an image alone, and of a text alone."""


class PatchTokens(NativeAbility, patch_features.PatchTokens):
    """What texts look at, without CLS."""

    def tokens(self, batch: Batch) -> Tensor:
        config = self.module.vision
        grid = config.image_size // config.patch_size
        return self.module.visual_encoder(self.normalise(batch["images"]))[:, 1:].unflatten(1, (grid, grid))

    def item_bytes(self) -> int:
        return _item_bytes(self.module.vision)


class PairReader(CandidateReader):
    """An image and the texts that are compared with it."""

    tokenizer: Texts

    def collate(self, items: Sequence[Item]) -> Batch:
        """``images`` uint8 (n, 3, S, S), an image per item; ``texts``: token ids of each item's texts."""
        return {
            "images": torch.stack([self.pixels(item.images[0]) for item in items]),
            "texts": self.candidates(items),
        }


class Matcher(NativeAbility, Matches):
    """The logit of "match" of an image with each of its texts. An image's keys and values are computed once and shared by its texts;
    what a text is before it looks at an image is computed once, and kept where that is more than a look-up.
    """

    def __init__(self, module: nn.Module, reader: PairReader, preprocessing: Preprocessing):
        super().__init__(module, reader, preprocessing)
        self._states: dict[Ids, Tensor] = {}

    def of(self, module: nn.Module | None) -> Ability:
        other = super().of(module)
        assert isinstance(other, Matcher)
        other._states = {}
        return other

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """Forget texts of an earlier pass: the weights may be others now, or elsewhere."""
        self._states.clear()
        super().make_ready(device, compiled)

    def predict(self, batch: Batch) -> list[Any]:
        context = self.module.look(self.normalise(batch["images"]))
        rows = torch.arange(context.groups, device=batch["images"].device).unsqueeze(1)
        scores = [self.scores(context.select(row), texts) for row, texts in zip(rows, batch["texts"], strict=True)]
        return [score.float().cpu().numpy() for score in scores]

    def scores(self, context: Context, texts: Sequence[Sequence[int]]) -> Tensor:
        """Scores (texts,) of texts with the one image of a context."""
        device = self.module.itm_head.weight.device
        return scores_by_length(
            texts,
            _TEXTS_AT_ONCE,
            device,
            lambda part: self.module.fuse(self._unseen(part, device), None, context),
        )

    def _unseen(self, texts: Sequence[Ids], device: torch.device) -> Tensor:
        if not self.module.keeps_texts:
            return self.module.unseen(torch.tensor(texts, device=device))
        new = [text for text in texts if text not in self._states]
        if new:
            states = self.module.unseen(torch.tensor(new, device=device))
            self._states.update(zip(new, states.unbind(0), strict=True))
        return torch.stack([self._states[text] for text in texts])


class QuestionAnswerer(NativeAbility, Answers):
    """A question about an image; ``start``: the token that a decoder begins with."""

    def __init__(self, module: nn.Module, reader: NativeReader, preprocessing: Preprocessing, start: int):
        super().__init__(module, reader, preprocessing)
        self.start = start
        self.ranked: tuple[str, ...] | None = None

    def rank(self, answers: tuple[str, ...]) -> None:
        """Give the network the answers that it ranks, once."""
        if answers != self.ranked:
            assert isinstance(self.reader.tokenizer, Texts)
            positions = self.module.config.decoder.positions
            self.module.rank(self.reader.tokenizer.answers(answers, positions), self.start)
            self.ranked = answers

    def predict(self, batch: Batch) -> list[str]:
        """Raises: BenchError: no answers are known, or scores are not finite."""
        if self.labels is None:
            raise BenchError(
                f"{self.reader.checkpoint}: ranks answers, and none were given; give the annotations, or a file of answers"
            )
        self.rank(self.labels)
        scores = self.module(
            self.normalise(batch["images"]), batch["token_ids"], batch["padding_mask"], batch["image_index"]
        )
        if bool(scores.isnan().any()) or not bool(scores.max(dim=1).values.isfinite().all()):
            raise BenchError(
                f"{self.reader.checkpoint}: {NOT_FINITE.format('the score of an answer is NaN or infinity')}"
            )
        return [self.labels[best] for best in best_answers(scores)]


class EntailmentClassifier(NativeAbility, Classifies):
    """A text about an image: ``module(images, token_ids, padding_mask, image_index)`` -> (n, labels)."""

    def predict(self, batch: Batch) -> list[Any]:
        logits = self.module(
            self.normalise(batch["images"]), batch["token_ids"], batch["padding_mask"], batch["image_index"]
        )
        return list(logits.float().cpu().numpy())


class PairClassifier(NativeAbility, native.PairClassifier):
    """A text about two images (NLVR2)."""
