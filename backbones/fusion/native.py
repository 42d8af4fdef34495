"""Heads of `fusion.heads` as abilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from beit3_bench.backbones import native, patch_features
from beit3_bench.backbones.abilities import NOT_FINITE, Ability, Answers, Batch, Classifies, Item, Matches
from beit3_bench.backbones.fusion.answers import best_answers
from beit3_bench.backbones.fusion.layout import TextLayout
from beit3_bench.backbones.fusion.text_states import TextStates
from beit3_bench.backbones.fusion.texts import Texts
from beit3_bench.backbones.matching import CandidateReader, Ids, scores_by_length
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from beit3_bench.backbones.fusion.bert import Context
    from beit3_bench.backbones.fusion.config import VisionConfig
    from beit3_bench.backbones.preprocess import Preprocessing

_TEXTS_AT_ONCE = 256
"""Texts of one length that look at an image in one pass."""
_TOKENS_AT_ONCE = 65536
"""Of a pass on a card: the feed-forward's hidden state then takes 400 MB in half precision."""


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

    A CPU takes texts of one length at a time, so that a row does not depend on others; a card, which would wait for small operations, the
    texts of many images behind one another.
    """

    def __init__(self, module: nn.Module, reader: PairReader, preprocessing: Preprocessing):
        super().__init__(module, reader, preprocessing)
        self._states = TextStates()

    def of(self, module: nn.Module | None) -> Ability:
        other = super().of(module)
        assert isinstance(other, Matcher)
        other._states = TextStates()
        return other

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """Forget texts of an earlier pass: the weights may be others now, or elsewhere."""
        self._states = TextStates()
        super().make_ready(device, compiled)

    def predict(self, batch: Batch) -> list[Any]:
        context = self.module.look(self.normalise(batch["images"]))
        scores = self.scores(context, batch["texts"])
        return list(torch.cat(scores).cpu().split([len(own) for own in scores]))

    def scores(self, context: Context, texts: Sequence[Sequence[Sequence[int]]]) -> list[Tensor]:
        """Scores of the images of a context with their texts, float32 (texts,) each."""
        if context.device.type != "cpu":
            return self._scores_together(context, texts)
        rows = torch.arange(context.groups).unsqueeze(1)
        return [self._scores_by_length(context.select(row), own) for row, own in zip(rows, texts, strict=True)]

    def _scores_by_length(self, context: Context, texts: Sequence[Sequence[int]]) -> Tensor:
        """With the one image of a context."""
        return scores_by_length(
            texts,
            _TEXTS_AT_ONCE,
            context.device,
            lambda part: self.module.fuse(self._unseen(part, context.device), None, context),
        )

    def _scores_together(self, context: Context, texts: Sequence[Sequence[Sequence[int]]]) -> list[Tensor]:
        """A text that an image has twice is scored once."""
        device, parts, places, before = context.device, [], [], 0
        for image, own in enumerate(texts):
            numbers: dict[Ids, int] = {}
            places += [before + numbers.setdefault(tuple(text), len(numbers)) for text in own]
            before += len(numbers)
            distinct = list(numbers)
            parts += [(image, distinct[n : n + _TEXTS_AT_ONCE]) for n in range(0, len(distinct), _TEXTS_AT_ONCE)]
        if not parts:
            return [torch.empty(0, device=device) for _ in texts]
        scores = []
        for some in _of_about(parts, _TOKENS_AT_ONCE):
            rows = torch.tensor([image for image, _ in some], device=device)
            layout = TextLayout.of([[len(text) for text in part] for _, part in some], device)
            states = layout.take(*self._known([text for _, part in some for text in part], device))
            scores.append(self.module.fuse(states, layout, context.select(rows)).float())
        return list(torch.cat(scores)[torch.tensor(places, device=device)].split([len(own) for own in texts]))

    def _known(self, texts: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
        """States (tokens, D) just before texts look at an image, and where each text begins in them, int64 (texts,)."""
        if self.module.keeps_texts:
            groups: dict[int, list[Ids]] = {}
            for text in dict.fromkeys(texts):
                groups.setdefault(len(text), []).append(text)
            for alike in groups.values():
                self._learn(alike, device)
            return self._states.states, self._states.offsets(texts)
        longest = max(map(len, texts))
        ids = torch.tensor([[*text, *[text[-1]] * (longest - len(text))] for text in texts], device=device)
        return self.module.unseen(ids).flatten(0, 1), torch.arange(len(texts), device=device) * longest

    def _unseen(self, texts: Sequence[Ids], device: torch.device) -> Tensor:
        """States (texts, L, D) of texts of one length."""
        if not self.module.keeps_texts:
            return self.module.unseen(torch.tensor(texts, device=device))
        self._learn(texts, device)
        return self._states.of(texts)

    def _learn(self, texts: Sequence[Ids], device: torch.device) -> None:
        """Keep the states of texts of one length."""
        new = [text for text in texts if text not in self._states]
        for part in (new[n : n + _TEXTS_AT_ONCE] for n in range(0, len(new), _TEXTS_AT_ONCE)):
            self._states.add(part, self.module.unseen(torch.tensor(part, device=device)))


def _of_about(parts: Sequence[tuple[int, list[Ids]]], tokens: int) -> Iterator[list[tuple[int, list[Ids]]]]:
    """Parts together that have about so many tokens, when all are filled up to the longest."""
    some: list[tuple[int, list[Ids]]] = []
    longest = 0
    for part in parts:
        length = sum(map(len, part[1]))
        if some and max(longest, length) * (len(some) + 1) > tokens:
            yield some
            some, longest = [], 0
        some.append(part)
        longest = max(longest, length)
    if some:
        yield some


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
