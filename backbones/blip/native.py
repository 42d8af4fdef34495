"""BLIP's searched answers and captions as abilities."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from beit3_bench.backbones.abilities import NOT_FINITE, Answers, Batch, Caption, Captions
from beit3_bench.backbones.fusion.native import NativeAbility
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from beit3_bench.backbones.beam_search import Hypothesis
    from beit3_bench.backbones.fusion.beams import Beams
    from beit3_bench.backbones.preprocess import Preprocessing
    from beit3_bench.backbones.reading import NativeReader
    from beit3_bench.backbones.wordpiece import WordPiece


class _Searching(NativeAbility):
    """pieces: that ids become text by."""

    def __init__(self, module: nn.Module, reader: NativeReader, preprocessing: Preprocessing, pieces: WordPiece):
        super().__init__(module, reader, preprocessing)
        self.pieces = pieces

    def texts(self, found: Sequence[Hypothesis]) -> list[str]:
        """Raises: BenchError: a score is not finite."""
        if not all(math.isfinite(hypothesis.score) for hypothesis in found):
            raise BenchError(f"{self.reader.checkpoint}: {NOT_FINITE.format('the score of a text is NaN or infinity')}")
        return [self.pieces.decode(hypothesis.ids) for hypothesis in found]


class AnswerGenerator(_Searching, Answers):
    """A searched answer; no list of answers is asked."""

    def __init__(
        self, module: nn.Module, reader: NativeReader, preprocessing: Preprocessing, pieces: WordPiece, beams: Beams
    ):
        super().__init__(module, reader, preprocessing, pieces)
        self.beams = beams

    def predict(self, batch: Batch) -> list[str]:
        found = self.module.generated(
            self.normalise(batch["images"]),
            batch["token_ids"],
            batch["padding_mask"],
            batch["image_index"],
            self.pieces.special["[SEP]"],
            self.beams,
        )
        return self.texts(found)


class Captioner(_Searching, Captions):
    """A searched caption; ``prompt`` is cut off by its number of characters."""

    def __init__(
        self, module: nn.Module, reader: NativeReader, preprocessing: Preprocessing, pieces: WordPiece, prompt: str
    ):
        super().__init__(module, reader, preprocessing, pieces)
        self.prompt = prompt

    def predict(self, batch: Batch) -> list[Caption]:
        found = self.module.hypotheses(self.normalise(batch["images"]))
        texts = self.texts(found)
        return [Caption(t[len(self.prompt) :], tuple(h.ids)) for t, h in zip(texts, found, strict=True)]
