"""Packed weights change the speed of a product and nothing else."""

from __future__ import annotations

import pytest
import torch
from exactness import PLAIN, assert_exact, assert_plain
from torch import nn

from beit3_bench.backbones import packing
from beit3_bench.backbones.beit3.bench.measure import flops_of
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.backbones.packing import PackedLinear, pack_weights
from beit3_bench.backbones.products import exact_products

pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif(
        not (torch.backends.mkl.is_available() or torch.backends.mkldnn.is_available()), reason="neither MKL nor oneDNN"
    ),
]


bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no products in bfloat16 on this processor"
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [20, 2])
def test_products_are_the_same_for_any_number_of_rows(bias, outputs):
    torch.manual_seed(0)
    plain, layer = nn.Linear(48, outputs, bias=bias), nn.Linear(48, outputs, bias=bias)
    layer.load_state_dict(plain.state_dict())
    assert pack_weights(layer)
    with torch.inference_mode():
        for shape in ((7, 48), (7, 48), (7, 48), (1, 7, 48), (3, 48), (2, 5, 48), (48,), (0, 48), (7, 48)):
            x = torch.randn(shape)
            assert_plain(layer(x), plain(x))
        turned = torch.randn(48, 7).t()
        assert_plain(layer(turned), plain(turned))
        many = torch.randn(400, 48)
        whole = layer(many)
        for start, rows in ((0, 1), (399, 1), (5, 2), (7, 3), (0, 7), (11, 64), (3, 197)):
            assert_exact(layer(many[start : start + rows]), whole[start : start + rows])
        tokens, first = many.view(80, 5, 48), whole.view(80, 5, outputs)[:, :1]
        for images in (1, 2, 7, 7, 7, 80):  # views with gaps
            assert_exact(layer(tokens[:images, :1]), first[:images])
    assert isinstance(layer, PackedLinear)
    assert layer.packed_rows == (0 if layer.packed is None else 7)
    assert list(layer.parts) == ([(0, outputs)] if layer.way.library == "oneDNN" else [])
    if exact_products() == PLAIN and torch.backends.mkl.is_available():
        assert layer.packed is not None


def test_a_part_of_the_outputs_is_that_of_all():
    torch.manual_seed(0)
    layer = nn.Linear(48, 30)
    x, plain = torch.randn(9, 48), layer.weight.detach()
    for bias in (layer.bias.detach(), None):
        layer.bias = None if bias is None else nn.Parameter(bias)
        expected = torch.nn.functional.linear(x, plain[10:], None if bias is None else bias[10:])
        assert torch.equal(packing.linear_part(layer, x, 10, 30), expected)
        packed = nn.Linear(48, 30, bias=bias is not None)
        packed.load_state_dict(layer.state_dict())
        pack_weights(packed)
        with torch.inference_mode():
            part = packing.linear_part(packed, x, 10, 30)
            assert_plain(part, expected)
            for rows in (1, 2, 3, 5):
                assert_exact(packing.linear_part(packed, x[:rows], 10, 30), part[:rows])
        packing.linear_part(packed, x, 10, 30).sum().backward()
        assert packed.weight.grad[:10].abs().max() == 0 < packed.weight.grad[10:].abs().max()


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no MKL on this processor")
def test_a_packed_product_that_is_not_the_plain_one_is_not_used(monkeypatch):
    monkeypatch.setattr(packing, "exact_products", lambda: PLAIN)
    real = torch.ops.mkl._mkl_linear
    monkeypatch.setattr(torch.ops.mkl, "_mkl_linear", lambda *arguments: real(*arguments) * (1 + 2**-20))
    layer, x = nn.Linear(48, 20), torch.randn(7, 48)
    pack_weights(layer)
    with torch.inference_mode():
        expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
        for _ in range(4):
            assert torch.equal(layer(x), expected)
    assert layer.packed is None
    assert not layer.packs


def test_operations_are_counted_once_while_weights_are_packed():
    """The call that packs compares two products, of which a counter is to see one: `bench` took the share of the roof from both."""
    layer, x = nn.Linear(48, 20), torch.randn(7, 48)
    pack_weights(layer)
    with torch.inference_mode():
        assert [flops_of(lambda: layer(x)) for _ in range(4)] == [2 * 7 * 48 * 20] * 4


def test_gradients_autocast_and_new_weights_pass_by_the_packed_ones():
    torch.manual_seed(0)
    plain, layer = nn.Linear(48, 20), nn.Linear(48, 20)
    pack_weights(layer)
    x = torch.randn(4, 48)
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        assert layer.packed is not None or layer.parts or exact_products() != PLAIN
        layer.load_state_dict(plain.state_dict())
        assert_plain(layer(x), plain(x))
        for _ in range(3):
            layer(x)
        with torch.autocast("cpu", torch.float16):
            assert layer(x).dtype == torch.float16
    layer(x).sum().backward()
    assert layer.weight.grad is not None


@bfloat16
@pytest.mark.parametrize("bias", [True, False])
def test_products_in_bfloat16_are_rounded_as_those_of_autocast(bias):
    torch.manual_seed(0)
    plain, layer = nn.Linear(48, 20, bias=bias), nn.Linear(48, 20, bias=bias)
    layer.load_state_dict(plain.state_dict())
    pack_weights(layer)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for shape in ((7, 48), (1, 7, 48), (300, 48), (2, 5, 48), (48,), (0, 48), (7, 48)):
            for x in (torch.randn(shape), torch.randn(shape).to(torch.bfloat16)):
                got, expected = layer(x), plain(x)
                assert got.dtype == torch.bfloat16
                torch.testing.assert_close(got, expected, rtol=2**-7, atol=2**-8)
        turned = torch.randn(48, 7).t()
        torch.testing.assert_close(layer(turned), plain(turned), rtol=2**-7, atol=2**-8)
    assert layer.rounded is not None
    with torch.no_grad():
        layer.load_state_dict({name: torch.zeros_like(value) for name, value in plain.state_dict().items()})
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(3, 48)).abs().max() == 0
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(3, 48)).sum().backward()
    assert layer.weight.grad is not None


@bfloat16
def test_a_model_in_bfloat16_differs_by_rounding_only():
    torch.manual_seed(0)
    config = BEiT3Config.preset("tiny", image_size=32)
    model = build_model("retrieval", config).eval()
    images, ids = torch.randn(3, 3, 32, 32), torch.randint(4, 60, (3, 9))
    with torch.inference_mode():
        exact = model.encode_image(images), model.encode_text(ids)
        with torch.autocast("cpu", torch.bfloat16):
            plain = model.encode_image(images), model.encode_text(ids)
            pack_weights(model)
            packed = model.encode_image(images), model.encode_text(ids)
        assert any(isinstance(m, PackedLinear) and m.rounded is not None for m in model.modules())
        for right, a, b in zip(exact, plain, packed, strict=True):
            assert (b - right).abs().max() <= 2 * (a - right).abs().max() + 2**-8
        assert_plain(model.encode_image(images), exact[0])  # float32 stays exact


def test_a_model_keeps_its_outputs_its_names_and_its_state():
    torch.manual_seed(0)
    model = build_model("vqav2", BEiT3Config.preset("tiny", image_size=32), num_classes=5).eval()
    images, ids = torch.randn(2, 3, 32, 32), torch.randint(4, 60, (2, 9))
    with torch.inference_mode():
        expected, state = model(images, ids), list(model.state_dict())
        assert pack_weights(model)
        first = model(images, ids)
        for _ in range(3):
            assert_plain(model(images, ids), expected)
            assert torch.equal(model(images, ids), first)
        for i in range(2):
            assert_exact(model(images[i : i + 1], ids[i : i + 1]), first[i : i + 1])
    assert list(model.state_dict()) == state
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert any(m.packed is not None or m.parts for m in packed) or exact_products() != PLAIN


def test_weights_that_no_library_can_take_stay_as_they_are(monkeypatch):
    half = nn.Linear(4, 4).to(torch.bfloat16)
    pack_weights(half)
    assert type(half) is nn.Linear
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer = nn.Linear(4, 4)
    assert not pack_weights(layer)
    assert type(layer) is nn.Linear
