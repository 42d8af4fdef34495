"""Which words of a caption are hidden when captioning is learned."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_caption(
    token_ids: Tensor, length: int, mask_prob: float, mask_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mask a caption for training (official `CaptioningDataset._masking_on_text_tokens`).

    int(length * mask_prob + 0.5) of the positions 1..length-1 are drawn, at least one: SEP can be, CLS never. Of these
    80% become the mask, 10% stay, 10% become a random id from 3 on.

    Args:
        token_ids: int64 (L,), CLS first; ``length`` of them are not padding.

    Returns:
        The masked ids (L,), and bool (L,) of the drawn positions.
    """
    count = max(min(int(length * mask_prob + 0.5), length - 1), 1)
    drawn = 1 + torch.randperm(length - 1, generator=generator)[:count]
    positions = torch.zeros(len(token_ids), dtype=torch.bool)
    positions[drawn] = True
    dice = torch.rand(count, generator=generator)
    random = torch.randint(3, mask_id + 1, (count,), generator=generator)
    old = token_ids[drawn]
    masked = token_ids.clone()
    masked[drawn] = torch.where(dice < 0.8, torch.full_like(old, mask_id), torch.where(dice < 0.9, old, random))
    return masked, positions
