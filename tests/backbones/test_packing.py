"""Packed weights change the speed of a product and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from beit3_bench.backbones.config import BEiT3Config
from beit3_bench.backbones.models import build_model
from beit3_bench.backbones.packing import PackedLinear, pack_weights

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="no MKL on this processor")


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_same_for_any_number_of_rows(bias):
    torch.manual_seed(0)
    plain, layer = nn.Linear(48, 20, bias=bias), nn.Linear(48, 20, bias=bias)
    layer.load_state_dict(plain.state_dict())
    assert pack_weights(layer)
    with torch.inference_mode():
        for shape in ((7, 48), (7, 48), (7, 48), (1, 7, 48), (3, 48), (2, 5, 48), (48,), (0, 48), (7, 48)):
            x = torch.randn(shape)
            assert torch.equal(layer(x), plain(x)), shape
        turned = torch.randn(48, 7).t()
        assert torch.equal(layer(turned), plain(turned))
    assert isinstance(layer, PackedLinear)
    assert layer.packed is not None
    assert layer.packed_rows == 7


def test_gradients_autocast_and_new_weights_pass_by_the_packed_ones():
    torch.manual_seed(0)
    plain, layer = nn.Linear(48, 20), nn.Linear(48, 20)
    pack_weights(layer)
    x = torch.randn(4, 48)
    with torch.no_grad():
        for _ in range(3):
            layer(x)
        assert layer.packed is not None
        layer.load_state_dict(plain.state_dict())
        assert torch.equal(layer(x), plain(x))
        for _ in range(3):
            layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_a_model_keeps_its_outputs_its_names_and_its_state():
    torch.manual_seed(0)
    model = build_model("vqav2", BEiT3Config.preset("tiny", image_size=32), num_classes=5).eval()
    images, ids = torch.randn(2, 3, 32, 32), torch.randint(4, 60, (2, 9))
    with torch.inference_mode():
        expected, state = model(images, ids), list(model.state_dict())
        assert pack_weights(model)
        for _ in range(3):
            assert torch.equal(model(images, ids), expected)
    assert list(model.state_dict()) == state
    assert any(isinstance(m, PackedLinear) and m.packed is not None for m in model.modules())


def test_weights_that_mkl_cannot_take_stay_as_they_are(monkeypatch):
    half = nn.Linear(4, 4).to(torch.bfloat16)
    pack_weights(half)
    assert type(half) is nn.Linear
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    layer = nn.Linear(4, 4)
    assert not pack_weights(layer)
    assert type(layer) is nn.Linear
