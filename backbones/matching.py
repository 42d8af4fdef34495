"""An image and the texts that are compared with it: what matchers of several families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from beit3_bench.backbones.abilities import Item
from beit3_bench.backbones.reading import NativeReader

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Ids = tuple[int, ...]
"""Token ids of a text, special ones included."""


class CandidateReader(NativeReader):
    """Tokenises ``Item.texts``, each distinct one once."""

    def prepare(self, items: Sequence[Item]) -> None:
        source: dict[str, str] = {}
        of_item: set[int] = set()
        for item in items:
            if id(item.texts) not in of_item:  # where all are compared with all, they are one tuple
                of_item.add(id(item.texts))
                source.update(dict.fromkeys(item.texts, item.id))
        super().prepare([Item(name, text=text) for text, name in source.items()])

    def candidates(self, items: Sequence[Item]) -> list[list[list[int]]]:
        """Token ids of each item's texts."""
        return [[self.ids_of(text, item.id) for text in item.texts] for item in items]


def scores_by_length(
    texts: Sequence[Sequence[int]], at_once: int, device: torch.device, score: Callable[[list[Ids]], Tensor]
) -> Tensor:
    """A score per text (n,), float32, in groups of one length: nothing is padded, and a text that comes twice is scored once.

    Args:
        texts: token ids of each.  at_once: texts of a group that are scored together, at most.
        score: ids of texts of one length -> (texts,).
    """
    import torch

    groups: dict[int, dict[Ids, list[int]]] = {}
    for place, text in enumerate(texts):
        ids = tuple(text)
        groups.setdefault(len(ids), {}).setdefault(ids, []).append(place)
    scores = torch.empty(len(texts), device=device)
    for length in sorted(groups, reverse=True):
        places = groups[length]
        distinct = list(places)
        for part in (distinct[n : n + at_once] for n in range(0, len(distinct), at_once)):
            values = score(part).float()
            counts = torch.tensor([len(places[text]) for text in part], device=device)
            where = torch.tensor([place for text in part for place in places[text]], device=device)
            scores[where] = values.repeat_interleave(counts)
    return scores
