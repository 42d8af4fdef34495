"""Beam search of BERT's decoders as transformers 4.15 makes it, the version behind BLIP's published numbers (see
`backbones.beam_search`). Every image is computed once; its beams share its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from beit3_bench.backbones import beam_search
from beit3_bench.backbones.beam_search import Hypothesis, Texts, Width, repeated, without
from beit3_bench.backbones.fusion.bert import BertDecoder, Context
from beit3_bench.backbones.word_cache import Cache
from beit3_bench.errors import BenchError


@dataclass(frozen=True)
class Beams:
    """max_length, min_length: tokens, start token and prompt included, the end token not.
    length_penalty: a hypothesis scores (sum of log-probabilities) / length ** length_penalty.
    repetition_penalty: log-probabilities of tokens that a beam holds already, prompt included, are multiplied by it.
    """

    num_beams: int = 3
    max_length: int = 20
    min_length: int = 5
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0

    def check(self, prompt: int, positions: int) -> None:
        """Raise for what no search can do: with a prompt of so many tokens, and a decoder of so many positions.

        Raises:
            BenchError: names the option.
        """
        if self.num_beams < 1:
            raise BenchError(f"num_beams is {self.num_beams}; give 1 or more")
        if not prompt < self.max_length <= positions:
            raise BenchError(
                f"max_length is {self.max_length}; it counts the prompt, of {prompt} tokens, and the model has positions for "
                f"{positions}: give {prompt + 1} to {positions}"
            )
        if self.min_length < 0:
            raise BenchError(f"min_length is {self.min_length}; give 0 or more")
        if self.repetition_penalty <= 0:
            raise BenchError(f"repetition_penalty is {self.repetition_penalty}; give a number above 0")


class _Reader(beam_search.Decoder):
    """A decoder that looks at a context; words score log-probabilities."""

    def __init__(self, decoder: BertDecoder, context: Context, end: int, beams: Beams):
        self.decoder, self.context, self.end, self.beams = decoder, context, end, beams
        self.cache = Cache()

    @property
    def samples(self) -> int:
        return self.context.groups

    def step(self, words: Tensor, texts: Texts) -> Tensor:
        log_p = F.log_softmax(self.decoder.step(words, self.context, self.cache).float(), dim=-1)
        log_p = repeated(log_p, texts, self.beams.repetition_penalty)
        return without(log_p, self.end) if len(texts[0]) < self.beams.min_length else log_p

    def select(self, rows: Tensor, samples: Tensor | None) -> None:
        self.cache.select(rows)
        if samples is not None:
            self.context = self.context.select(samples)


def search(decoder: BertDecoder, context: Context, prompt: Sequence[int], end: int, beams: Beams) -> list[Hypothesis]:
    """The best text of every group of a context.

    Args:
        prompt: token ids that every text begins with, the start token first.  end: the end token.
    """
    reader = _Reader(decoder, context, end, beams)
    device = decoder.cls.predictions.bias.device
    width = Width(beams.num_beams)
    return beam_search.search(reader, prompt, end, width, beams.max_length, beams.length_penalty, device)
