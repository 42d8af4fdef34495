"""Texts behind one another, as a card reads them: all texts of an image are one sequence, and nothing is computed for padding but
what attention among the tokens of a text needs.

Layers and LayerNorms see tokens, and each token looks at the image by itself; only self-attention must know the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 8
"""Keys, to a multiple of which fused attention with a mask wants them padded."""


@dataclass(frozen=True)
class TextLayout:
    """Where the tokens of ``texts`` texts of ``groups`` images stand in (groups, tokens, D), whose ends are filled with any token.

    padded: int64 (texts, L): places of a text's tokens in groups * tokens; behind its end, of its last token.
    seen: bool (texts, 1, 1, L), True = a token of the text.
    text, token: int64 (groups * tokens,): which text a place belongs to, and which token of it.
    """

    groups: int
    padded: Tensor
    seen: Tensor
    text: Tensor
    token: Tensor

    @classmethod
    def of(cls, lengths: Sequence[Sequence[int]], device: torch.device) -> TextLayout:
        """lengths: of each image's texts, tokens; every image has a text, and every text a token."""
        sizes = [np.asarray(group) for group in lengths]
        flat = np.concatenate(sizes)
        tokens = max(int(size.sum()) for size in sizes)
        starts = np.concatenate(
            [n * tokens + np.concatenate([[0], size.cumsum()[:-1]]) for n, size in enumerate(sizes)]
        )
        longest = -(-int(flat.max()) // _ALIGNED) * _ALIGNED
        step = np.arange(longest)
        text, token = np.zeros((2, len(sizes) * tokens), dtype=np.int64)
        of_text = np.repeat(np.arange(len(flat)), flat)
        of_token = np.arange(len(of_text)) - np.repeat(flat.cumsum() - flat, flat)
        places = starts[of_text] + of_token
        text[places], token[places] = of_text, of_token
        padded = starts[:, None] + np.minimum(step, flat[:, None] - 1)
        seen = (step < flat[:, None])[:, None, None, :]
        return cls(len(sizes), *(torch.from_numpy(a).to(device) for a in (padded, seen, text, token)))

    def take(self, states: Tensor, offsets: Tensor) -> Tensor:
        """(groups, tokens, D) of states (rows, D), in which text i has its tokens from offsets[i] on."""
        return states[offsets[self.text] + self.token].unflatten(0, (self.groups, -1))

    def by_text(self, x: Tensor) -> Tensor:
        """(groups, tokens, D) -> (texts, L, D)."""
        return x.flatten(0, 1)[self.padded]

    def by_group(self, x: Tensor) -> Tensor:
        """The way back: (texts, L, D) -> (groups, tokens, D)."""
        return x.flatten(0, 1)[self.text * x.shape[1] + self.token].unflatten(0, (self.groups, -1))

    def first(self, x: Tensor) -> Tensor:
        """(groups, tokens, D) -> first token of each text, (texts, 1, D)."""
        return x.flatten(0, 1)[self.padded[:, :1]]
