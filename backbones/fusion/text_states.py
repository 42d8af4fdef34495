"""States of texts that are the same for every image, computed once and kept, token behind token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from beit3_bench.backbones.matching import Ids


class TextStates:
    """Grows by doubling, so that a gather over all texts is one operation."""

    def __init__(self) -> None:
        self._offsets: dict[Ids, int] = {}
        self._kept: Tensor | None = None
        self._tokens = 0

    def __contains__(self, text: Ids) -> bool:
        return text in self._offsets

    def add(self, texts: Sequence[Ids], states: Tensor) -> None:
        """texts: of one length L.  states: floating point (texts, L, D)."""
        rows = states.flatten(0, 1)
        if self._kept is None:
            self._kept = rows.new_empty(len(rows), rows.shape[1])
        if self._tokens + len(rows) > len(self._kept):
            grown = rows.new_empty(max(2 * len(self._kept), self._tokens + len(rows)), rows.shape[1])
            grown[: self._tokens] = self._kept[: self._tokens]
            self._kept = grown
        self._kept[self._tokens : self._tokens + len(rows)] = rows
        length = states.shape[1]
        self._offsets.update((text, self._tokens + n * length) for n, text in enumerate(texts))
        self._tokens += len(rows)

    def offsets(self, texts: Sequence[Ids]) -> Tensor:
        """int64 (texts,): in `states`, of the first token of each."""
        assert self._kept is not None
        return torch.tensor([self._offsets[text] for text in texts], device=self._kept.device)

    @property
    def states(self) -> Tensor:
        """(tokens, D)."""
        assert self._kept is not None
        return self._kept[: self._tokens]

    def of(self, texts: Sequence[Ids]) -> Tensor:
        """States (texts, L, D) of texts of one length L."""
        steps = torch.arange(len(texts[0]), device=self.states.device)
        return self.states[self.offsets(texts)[:, None] + steps]
