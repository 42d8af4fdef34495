"""Random streams: the same from the same seed and name, anywhere."""

from __future__ import annotations

import torch

from beit3_bench.backbones.seeds import derived, seed_of


def test_seed_of_is_the_same_on_every_machine():
    assert seed_of(0, "a", 3) == 8565203715178055703
    assert len({seed_of(0, i) for i in range(1000)}) == 1000


def test_a_derived_stream_follows_from_seed_and_name_alone():
    generator = torch.Generator().manual_seed(3)
    first = torch.rand(2, generator=derived(generator, "a"))
    torch.rand(5, generator=generator)
    assert torch.equal(torch.rand(2, generator=derived(generator, "a")), first)
    assert not torch.equal(torch.rand(2, generator=derived(generator, "b")), first)
