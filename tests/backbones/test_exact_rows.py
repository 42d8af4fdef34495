"""Rows of a foreign network's products do not depend on their batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from beit3_bench.backbones.exact_rows import ExactRows
from beit3_bench.backbones.packing import PLAIN
from beit3_bench.backbones.products import ExactProducts, exact_products


class Foreign(nn.Module):
    """What `packing` does not replace: attention with one packed projection, with parts of one, and plain products."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(32, 2, batch_first=True)
        self.pool = nn.MultiheadAttention(32, 2, batch_first=True)
        self.query = nn.Parameter(torch.randn(3, 32))
        self.proj = nn.Parameter(torch.randn(32, 20))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.own(x, x, x, need_weights=False)[0]
        x = self.pool(self.query.expand(len(x), -1, -1), x, x, need_weights=False)[0]
        return x[:, 0] @ self.proj + torch.matmul(x[:, 1], self.proj)


@pytest.fixture
def network() -> Foreign:
    torch.manual_seed(0)
    return Foreign().eval()


def test_rows_are_the_same_at_any_batch_size_and_plain_to_rounding(network):
    if exact_products() is None:
        pytest.skip("no way of multiplying is exact on this processor")
    exact, x = ExactRows(network), torch.randn(16, 5, 32)
    with torch.inference_mode():
        plain = network(x)
        with exact.entered():
            whole = network(x)
            parts = torch.cat([network(x[i : i + 3]) for i in range(0, 16, 3)])
            single = torch.cat([network(x[i : i + 1]) for i in range(16)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole, single)
    assert torch.allclose(whole, plain, atol=1e-5)


@pytest.mark.parametrize("way", [ExactProducts("plain", 4), ExactProducts("oneDNN", 2)])
def test_every_way_of_multiplying_gives_the_plain_product(network, way):
    exact, x = ExactRows(network), torch.randn(4, 5, 32)
    exact.way = way
    with torch.inference_mode():
        plain = network(x)
        with exact.entered():
            assert torch.allclose(network(x), plain, atol=1e-5)
            other = torch.randn(32, 4)  # no parameter: it may change
            assert torch.equal(torch.randn(1, 32).fill_(1) @ other, torch.ones(1, 32) @ other)
    assert len(exact._laid_out) == 6  # in, out; query, key and value, out; the projection


def test_nothing_is_entered_where_plain_products_are_exact_and_all_is_left_as_it_was(network):
    exact = ExactRows(network)
    before = torch.backends.mha.get_fastpath_enabled()
    exact.way = PLAIN
    with exact.entered():
        assert torch.backends.mha.get_fastpath_enabled() == before
    exact.way = ExactProducts("plain", 4)
    with pytest.raises(ValueError), exact.entered():
        raise ValueError
    assert torch.backends.mha.get_fastpath_enabled() == before
    assert exact._laid_out == {}
