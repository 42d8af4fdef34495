"""Random streams that follow from a seed and a name alone, so that order, batch and process change nothing."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_of(*parts: Any) -> int:
    """A seed (0 <= seed < 2**63) that follows from ``parts`` alone, on any machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def derived(generator: torch.Generator, key: str) -> torch.Generator:
    """A generator of its own for ``key`` (an example's id), from the seed of ``generator``."""
    return torch.Generator().manual_seed(seed_of(generator.initial_seed(), key))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's global CPU generators from ``seed``; as they were before, afterwards.

    timm and torchvision draw from these.
    """
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.random.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
