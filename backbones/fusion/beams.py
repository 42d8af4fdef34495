"""Beam search as transformers 4.15 makes it, the version behind BLIP's published numbers.

It divides the score of a hypothesis by its whole length, prompt included and without the end token; later versions count
generated words alone, and so prefer longer texts. Every image is computed once; its beams share its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_bench.backbones.fusion.bert import BertDecoder, Cache, Context
from beit3_bench.errors import BenchError

_NEVER = -1e9  # score of the beams that are no beams yet


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


@dataclass(frozen=True)
class Hypothesis:
    """ids: start token and prompt included, and the end token where it was reached.  score: see `Beams`."""

    ids: list[int]
    score: float


@dataclass
class _Found:
    """The best finished hypotheses of a group."""

    size: int
    penalty: float
    kept: list[Hypothesis] = field(default_factory=list)

    def add(self, ids: Sequence[int], total: float) -> None:
        hypothesis = Hypothesis(list(ids), total / len(ids) ** self.penalty)
        if len(self.kept) < self.size or hypothesis.score > self.worst:
            self.kept.append(hypothesis)
            if len(self.kept) > self.size:
                self.kept.remove(min(self.kept, key=lambda kept: kept.score))

    @property
    def worst(self) -> float:
        return min(hypothesis.score for hypothesis in self.kept)

    def is_done(self, best_total: float, length: int) -> bool:
        """Whether no open beam can be better, judged by its score at this length."""
        return len(self.kept) == self.size and self.worst >= best_total / length**self.penalty


@torch.no_grad()
def search(decoder: BertDecoder, context: Context, prompt: Sequence[int], end: int, beams: Beams) -> list[Hypothesis]:
    """The best text of every group of a context.

    Args:
        prompt: token ids that every text begins with, the start token first.  end: the end token.
    """
    width = beams.num_beams
    groups = context.groups
    device = decoder.cls.predictions.bias.device
    found = [_Found(width, beams.length_penalty) for _ in range(groups)]
    alive = list(range(groups))
    texts = [[list(prompt) for _ in range(width)] for _ in range(groups)]  # of those that are alive
    totals = torch.tensor([[0.0] + [_NEVER] * (width - 1)] * groups, device=device)
    words = torch.tensor([list(prompt)], device=device).repeat(groups * width, 1)
    cache = Cache()
    while alive:
        length = len(texts[0][0])
        log_p = F.log_softmax(decoder.step(words, context, cache).float(), dim=-1)
        log_p = _adjusted(log_p, texts, end if length < beams.min_length else None, beams.repetition_penalty)
        sums = (totals.view(-1, 1) + log_p).view(len(alive), -1)
        best, index = sums.topk(min(2 * width, sums.shape[1]), dim=1)
        going, parents, kept = [], [], []
        for n, (group, candidates) in enumerate(zip(alive, _candidates(best, index, log_p.shape[1]), strict=True)):
            chosen = _step(found[group], texts[n], candidates, end, width)
            if found[group].is_done(candidates[0][0], length):
                continue
            going.append(n)
            kept.append(chosen)
            parents += [n * width + parent for _, parent, _ in chosen]
        texts = [
            [[*texts[n][parent], word] for _, parent, word in chosen] for n, chosen in zip(going, kept, strict=True)
        ]
        alive = [alive[n] for n in going]
        if not alive:
            break
        if length + 1 == beams.max_length:
            for group, open_texts, chosen in zip(alive, texts, kept, strict=True):
                for ids, (total, _, _) in zip(open_texts, chosen, strict=True):
                    found[group].add(ids, total)
            break
        totals = torch.tensor([[total for total, _, _ in chosen] for chosen in kept], device=device)
        words = torch.tensor([[text[-1]] for several in texts for text in several], device=device)
        cache.select(torch.tensor(parents, device=device))
        if len(going) < context.groups:
            context = context.select(torch.tensor(going, device=device))
    best_found = [max(reversed(f.kept), key=lambda kept: kept.score) for f in found]
    return [Hypothesis(_ended(h.ids, end, beams.max_length), h.score) for h in best_found]


def _ended(ids: list[int], end: int, max_length: int) -> list[int]:
    return [*ids, end] if len(ids) < max_length else ids


def _adjusted(log_p: Tensor, texts: list[list[list[int]]], forbidden: int | None, penalty: float) -> Tensor:
    """Log-probabilities with the penalty of repetition, and without a token that is not allowed yet."""
    if penalty != 1.0:
        said = torch.tensor([text for several in texts for text in several], device=log_p.device)
        log_p = log_p.scatter(
            1, said, log_p.gather(1, said) * penalty
        )  # all are negative: a larger penalty lowers them
    if forbidden is not None:
        log_p = log_p.clone()
        log_p[:, forbidden] = float("-inf")
    return log_p


Candidate = tuple[float, int, int]
"""Summed log-probability, beam that it continues, and the new word."""


def _candidates(best: Tensor, index: Tensor, vocabulary: int) -> list[list[Candidate]]:
    rows = zip(best.tolist(), index.tolist(), strict=True)
    return [[(t, place // vocabulary, place % vocabulary) for t, place in zip(*row, strict=True)] for row in rows]


def _step(found: _Found, texts: list[list[int]], candidates: list[Candidate], end: int, width: int) -> list[Candidate]:
    """The beams of the next step; an end token is a hypothesis if it stands among the first ``width`` candidates."""
    chosen: list[Candidate] = []
    for rank, (total, parent, word) in enumerate(candidates):
        if word != end:
            chosen.append((total, parent, word))
        elif rank < width:
            found.add(texts[parent], total)
        if len(chosen) == width:
            break
    return chosen
