"""Masked captions: how many words, which, and what stands in their place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from beit3_bench.backbones.beit3.training.masking import mask_caption


@given(length=st.integers(2, 40), padding=st.integers(0, 5), prob=st.floats(0.0, 1.0), seed=st.integers(0, 1000))
def test_masking_draws_the_official_number_and_never_cls_or_padding(length, padding, prob, seed):
    ids = torch.tensor([0, *range(10, 10 + length - 2), 2, *[1] * padding])
    masked, positions = mask_caption(ids, length, prob, 200, torch.Generator().manual_seed(seed))
    assert positions.sum() == max(min(int(length * prob + 0.5), length - 1), 1)
    assert not positions[0]
    assert not positions[length:].any()
    assert torch.equal(masked[~positions], ids[~positions])
    assert ((masked >= 0) & (masked <= 200)).all()


def test_masked_words_become_mask_kept_or_random_80_10_10():
    ids = torch.tensor([0, *[50] * 4998, 2])
    masked, positions = mask_caption(ids, 5000, 1.0, 200, torch.Generator().manual_seed(0))
    share = (masked[positions] == 200).float().mean()
    kept = (masked[positions] == ids[positions]).float().mean()
    assert share == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1, abs=0.03)
