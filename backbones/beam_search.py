"""Beam search as transformers made it up to 4.26 (`BeamSearchScorer`), the rule behind BLIP's and CoCa's numbers.

It divides the score of a hypothesis by its whole length, prompt included and without the end token; later versions count
generated words alone, and so prefer longer texts. Beams may form groups, which choose their words one after another; a
penalty of diversity keeps a group from words that the groups before it chose in the same step (Vijayakumar et al., 2018;
transformers' `HammingDiversityLogitsProcessor`). All groups of a sample share one list of finished hypotheses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

_NEVER = -1e9  # score of the beams that are no beams yet

Texts = Sequence[Sequence[int]]


class Decoder(Protocol):
    """A network that reads texts word by word: ``beams`` rows per sample, one sample behind the other."""

    @property
    def samples(self) -> int:
        """How many are being searched."""

    def step(self, words: Tensor, texts: Texts) -> Tensor:
        """Scores of the next word, float32 (rows, vocabulary), which are summed up along a text.

        words: int64 (rows, t), what each row reads anew, the prompt first.  texts: what each row then holds.
        """

    def select(self, rows: Tensor, samples: Tensor | None) -> None:
        """Go on with these rows.  samples: those that they belong to; None = all."""


@dataclass(frozen=True)
class Width:
    """beams: of all groups of a sample.  diversity_penalty: what a word's score loses per beam of an earlier group that chose it."""

    beams: int
    groups: int = 1
    diversity_penalty: float = 0.0

    @property
    def per_group(self) -> int:
        return self.beams // self.groups


@dataclass(frozen=True)
class Hypothesis:
    """ids: start token and prompt included, and the end token where it was reached.  score: summed, by length."""

    ids: list[int]
    score: float


@dataclass
class _Finished:
    """The best finished hypotheses of a sample."""

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


Candidate = tuple[float, int, int]
"""Summed score, beam of the group that it continues, and the new word."""


@torch.no_grad()
def search(
    decoder: Decoder,
    prompt: Sequence[int],
    end: int,
    width: Width,
    max_length: int,
    length_penalty: float,
    device: torch.device,
) -> list[Hypothesis]:
    """The best text of every sample.

    Args:
        prompt: token ids that every text begins with, the start token first.  end: the end token.
        max_length: tokens, prompt included, the end token not.
        length_penalty: a hypothesis scores (sum of scores) / length ** length_penalty.
        device: of the decoder.
    """
    beams, groups, size = width.beams, width.groups, width.per_group
    finished = [_Finished(beams, length_penalty) for _ in range(decoder.samples)]
    alive = list(range(decoder.samples))
    texts = [[list(prompt) for _ in range(beams)] for _ in alive]  # of those that are alive
    first = ([0.0] + [_NEVER] * (size - 1)) * groups
    totals = torch.tensor([first for _ in alive], device=device)
    words = torch.tensor([list(prompt)], device=device).repeat(len(alive) * beams, 1)
    while alive:
        length = len(texts[0][0])
        scores = decoder.step(words, [text for several in texts for text in several])
        scores = scores.view(len(alive), groups, size, -1)
        chosen: list[list[Candidate]] = [[] for _ in alive]
        done = [False] * len(alive)
        for group in range(groups):
            of_group = _diverse(scores[:, group], chosen, width.diversity_penalty)
            sums = (totals.view(len(alive), groups, size, 1)[:, group] + of_group).flatten(1)
            best, index = sums.topk(min(2 * size, sums.shape[1]), dim=1)
            for n, candidates in enumerate(_candidates(best, index, scores.shape[-1], group * size)):
                if done[n]:
                    continue
                chosen[n] += _step(finished[alive[n]], texts[n], candidates, end, size)
                done[n] = finished[alive[n]].is_done(candidates[0][0], length)
        going = [n for n in range(len(alive)) if not done[n]]
        parents = [n * beams + parent for n in going for _, parent, _ in chosen[n]]
        kept = [chosen[n] for n in going]
        texts = [
            [[*texts[n][parent], word] for _, parent, word in several] for n, several in zip(going, kept, strict=True)
        ]
        shrunk = len(going) < len(alive)
        alive = [alive[n] for n in going]
        if not alive:
            break
        if length + 1 == max_length:
            for sample, open_texts, several in zip(alive, texts, kept, strict=True):
                for ids, (total, _, _) in zip(open_texts, several, strict=True):
                    finished[sample].add(ids, total)
            break
        totals = torch.tensor([[total for total, _, _ in several] for several in kept], device=device)
        words = torch.tensor([[text[-1]] for several in texts for text in several], device=device)
        decoder.select(torch.tensor(parents, device=device), torch.tensor(going, device=device) if shrunk else None)
    best_finished = [max(reversed(f.kept), key=lambda kept: kept.score) for f in finished]
    return [Hypothesis(_ended(h.ids, end, max_length), h.score) for h in best_finished]


def repeated(scores: Tensor, texts: Texts, penalty: float) -> Tensor:
    """Scores (rows, vocabulary) with the penalty of repetition on the words that a row's text holds (Keskar et al., 2019): negative
    ones are multiplied by it, others divided.
    """
    if penalty == 1.0:
        return scores
    held = torch.tensor([list(text) for text in texts], device=scores.device)
    of_held = scores.gather(1, held)
    return scores.scatter(1, held, torch.where(of_held < 0, of_held * penalty, of_held / penalty))


def without(scores: Tensor, word: int) -> Tensor:
    """Scores (rows, vocabulary) by which a word is not chosen."""
    scores = scores.clone()
    scores[:, word] = float("-inf")
    return scores


def _ended(ids: list[int], end: int, max_length: int) -> list[int]:
    return [*ids, end] if len(ids) < max_length else ids


def _diverse(scores: Tensor, chosen: Sequence[Sequence[Candidate]], penalty: float) -> Tensor:
    """Scores of a group (samples, beams, vocabulary), less those of the words that earlier groups chose in this step."""
    if not penalty or not any(chosen):
        return scores
    counts = torch.zeros(len(chosen), 1, scores.shape[-1])
    for row, candidates in zip(counts, chosen, strict=True):
        for _, _, word in candidates:
            row[0, word] += 1
    return scores - penalty * counts.to(scores.device)


def _candidates(best: Tensor, index: Tensor, vocabulary: int, offset: int) -> list[list[Candidate]]:
    """offset: of the group's first beam."""
    rows = zip(best.tolist(), index.tolist(), strict=True)
    return [[(t, offset + i // vocabulary, i % vocabulary) for t, i in zip(*row, strict=True)] for row in rows]


def _step(
    finished: _Finished, texts: list[list[int]], candidates: list[Candidate], end: int, width: int
) -> list[Candidate]:
    """The beams of the next step; an end token is a hypothesis if it stands among the first ``width`` candidates."""
    chosen: list[Candidate] = []
    for rank, (total, parent, word) in enumerate(candidates):
        if word != end:
            chosen.append((total, parent, word))
        elif rank < width:
            finished.add(texts[parent], total)
        if len(chosen) == width:
            break
    return chosen
