"""Whether a product's rows depend on each other is found out by trying, and what is promised of them holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from exactness import PLAIN

from beit3_bench.backbones import products
from beit3_bench.backbones.products import CANDIDATES, ExactProducts, exact_linear, exact_products, onednn_layout

pytestmark = pytest.mark.isa


def strict_mkl() -> bool:
    """Whether the library promises it: MKL's strict mode, on an Intel processor with AVX2."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    capped = os.environ.get("MKL_ENABLE_INSTRUCTIONS", "AVX2") in ("SSE4_2", "AVX")
    intel = "GenuineIntel" in facts and "avx2" in facts and torch.backends.mkl.is_available()
    return intel and not capped and os.environ.get("MKL_CBWR", "").endswith(",STRICT")


def test_plain_products_are_exact_where_the_library_promises_it():
    assert not strict_mkl() or exact_products() == PLAIN


@pytest.mark.parametrize(("inputs", "outputs"), [(40, 24), (768, 3072), (3072, 768), (1024, 2), (100, 333)])
def test_rows_do_not_depend_on_each_other_where_products_are_exact(inputs, outputs):
    """Shapes that the self-test does not try."""
    way = exact_products()
    if way is None:
        pytest.skip("products are not exact on this processor with these settings; closeness is promised")
    torch.manual_seed(1)
    x, weight, bias = torch.randn(300, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    laid_out = onednn_layout(weight) if way.library == "oneDNN" else weight
    whole = exact_linear(way, x, laid_out, bias)
    torch.testing.assert_close(whole, F.linear(x, weight, bias), rtol=1e-4, atol=1e-3)
    order = torch.randperm(len(x))
    assert torch.equal(exact_linear(way, x[order], laid_out, bias), whole[order])
    for rows in (1, 2, 3, 5, 6, 10, 12, 14, 30, 100, 250):
        assert torch.equal(exact_linear(way, x[-rows:], laid_out, bias), whole[-rows:]), rows
    tokens = x.view(60, 5, inputs)
    first = whole.view(60, 5, outputs)[:, :1]
    for images in (1, 2, 3, 16, 60):  # the first tokens only, a view with gaps
        assert torch.equal(exact_linear(way, tokens[:images, :1], laid_out, bias), first[:images])
    own = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(exact_linear(way, x, laid_out, bias), whole)
    finally:
        torch.set_num_threads(own)


def test_products_that_depend_on_the_number_of_rows_are_found_out(monkeypatch):
    """As MKL does on AMD: fewer than 4 rows are summed in another order."""

    def linear(x, weight, bias):
        halves = weight.shape[1] // 2 if x.numel() // x.shape[-1] < 4 else weight.shape[1]
        return (x[..., :halves] @ weight[:, :halves].t()) + (x[..., halves:] @ weight[:, halves:].t()) + bias

    threads = torch.get_num_threads()
    monkeypatch.setattr(products.F, "linear", linear)
    assert not products._is_exact(PLAIN, threads)
    assert torch.get_num_threads() == threads


def test_an_operator_that_is_missing_is_no_way(monkeypatch):
    def missing(weight):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(products, "onednn_layout", missing)
    assert not products._is_exact(ExactProducts("oneDNN", 2), torch.get_num_threads())


@pytest.mark.parametrize("shape", [(1, 8), (8,), (1, 1, 8), (2, 8), (2, 3, 8), (0, 8)])
@pytest.mark.parametrize("way", [way for way in CANDIDATES if way.library == "plain"])
def test_few_rows_are_filled_up_and_given_back_alone(way, shape):
    x, weight, bias = torch.randn(shape), torch.randn(5, 8), torch.randn(5)
    ours = exact_linear(way, x, weight, bias)
    torch.testing.assert_close(ours, F.linear(x, weight, bias))
    assert ours.shape == (*shape[:-1], 5)
