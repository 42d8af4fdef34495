"""Ranking a list of answers by a decoder, as ALBEF and BLIP answer VQAv2 (official `rank_answer` of both).

First the answers whose first token is likeliest behind the start token; then, of those, the log-probability of every token. The
answers of a question are decoded together as a tree: what several begin with is computed once, every token sees those before it
in its own answer alone, and all look at the same states of the question.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones.fusion.bert import BertDecoder, Context
from beit3_bench.backbones.word_cache import Cache

_GROUP = 16  # questions whose trees are decoded together on a card; on a CPU each alone, so that no value depends on its batch


class AnswerTree(nn.Module):
    """Every beginning of an answer as a node; node 0 is the start token.

    Args:
        answers: token ids of each answer, without the start and with the end token; empty = an answer that is never given.
        start: the token that the decoder begins with.
    """

    tokens: Tensor
    depths: Tensor
    ancestors: Tensor
    paths: Tensor
    targets: Tensor
    lengths: Tensor

    def __init__(self, answers: Sequence[Sequence[int]], start: int):
        super().__init__()
        nodes: dict[tuple[int, ...], int] = {(): 0}
        for ids in answers:
            for end in range(1, len(ids)):
                nodes.setdefault(tuple(ids[:end]), len(nodes))
        longest = max((len(ids) for ids in answers), default=1) or 1
        paths = [[nodes[tuple(ids[:end])] for end in range(len(ids))] for ids in answers]
        ancestors = [[nodes[beginning[:end]] for end in range(len(beginning) + 1)] for beginning in nodes]
        for name, value in (
            ("tokens", [start, *(beginning[-1] for beginning in list(nodes)[1:])]),
            ("depths", [len(beginning) for beginning in nodes]),
            ("ancestors", [row + [row[-1]] * (longest - len(row)) for row in ancestors]),
            ("paths", [row + [0] * (longest - len(row)) for row in paths]),
            ("targets", [list(ids) + [0] * (longest - len(ids)) for ids in answers]),
            ("lengths", [len(ids) for ids in answers]),
        ):
            # Part of the answers, not of the weights: not in a state dict.
            self.register_buffer(name, torch.tensor(value, dtype=torch.long), persistent=False)

    @property
    def count(self) -> int:
        """How many answers may be given."""
        return int((self.lengths > 0).sum())

    def candidates(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Logits (B, vocabulary) behind the start token -> the k answers of the likeliest first tokens, int64 (B, k), and the
        log-probabilities of those tokens. Of equal ones (many answers share a first token) the earlier answers are taken.
        """
        first = F.log_softmax(logits.float(), dim=-1)[:, self.targets[:, 0]]
        first = first.masked_fill(self.lengths == 0, float("-inf"))
        chosen = first.sort(dim=1, descending=True, stable=True).indices[:, : min(k, self.count)]
        return chosen, first.gather(1, chosen)

    def log_likelihoods(self, decoder: BertDecoder, context: Context, chosen: Tensor, smoothing: float = 0.0) -> Tensor:
        """Summed log-probabilities of the tokens of answers, end token included: (B, k).

        Args:
            context: of as many groups as there are questions.  chosen: int64 (B, k).
            smoothing: share of the mean over the vocabulary in a token's log-probability (label smoothing).
        """
        size = _GROUP if chosen.is_cuda else 1
        parts = [
            self._of_group(decoder, context.select(rows), chosen[rows], smoothing)
            for rows in torch.arange(len(chosen), device=chosen.device).split(size)
        ]
        return torch.cat(parts)

    def _of_group(self, decoder: BertDecoder, context: Context, chosen: Tensor, smoothing: float) -> Tensor:
        trees = [self.paths[answers].unique() for answers in chosen]
        most = max(len(tree) for tree in trees)
        device = chosen.device
        used = torch.zeros(len(trees), most, dtype=torch.long, device=device)
        mask = torch.eye(most, dtype=torch.bool, device=device).repeat(
            len(trees), 1, 1
        )  # rows of padding see themselves
        place = torch.zeros(len(trees), len(self.tokens), dtype=torch.long, device=device)
        for n, tree in enumerate(trees):
            used[n, : len(tree)] = tree
            place[n, tree] = torch.arange(len(tree), device=device)
            mask[n, : len(tree)].scatter_(1, place[n][self.ancestors[tree]], True)
        states = decoder.states(self.tokens[used], context, mask.unsqueeze(1), self.depths[used])
        paths = self.paths[chosen]  # (B, k, steps)
        at = place.gather(1, paths.flatten(1)).view_as(paths)
        wanted = self.targets[chosen]
        rows = torch.arange(len(trees), device=device)[:, None, None]
        logits = decoder.logits(states).float()
        normaliser = logits.logsumexp(dim=-1)
        steps = logits[rows, at, wanted] - normaliser[rows, at]
        if smoothing:
            mean = (logits.mean(dim=-1) - normaliser)[rows, at]
            steps = (1 - smoothing) * steps + smoothing * mean
        within = torch.arange(paths.shape[2], device=device) < self.lengths[chosen].unsqueeze(-1)
        return steps.masked_fill(~within, 0.0).sum(dim=-1)


def rank_answers(
    decoder: BertDecoder, tree: AnswerTree, context: Context, k: int, smoothing: float, first_twice: bool
) -> Tensor:
    """Scores of all answers for the questions of a context: float32 (B, answers), -inf for those that are no candidates.

    Args:
        first_twice: count the log-probability of an answer's first token once more, as ALBEF does (official `model_vqa.py`: the
            chain rule is applied to a loss that holds the first token already).
    """
    start = tree.tokens[:1].repeat(context.groups, 1)
    chosen, first = tree.candidates(decoder.step(start, context, Cache()), k)
    scores = tree.log_likelihoods(decoder, context, chosen, smoothing)
    if first_twice:
        scores = scores + first
    return scores.new_full((context.groups, len(tree.lengths)), float("-inf")).scatter(1, chosen, scores)


def best_answers(scores: Tensor) -> list[int]:
    """The place of each row's greatest score; of equal ones the first."""
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    best = scores.max(dim=1, keepdim=True).values
    return places.masked_fill(scores != best, scores.shape[1]).min(dim=1).values.tolist()
