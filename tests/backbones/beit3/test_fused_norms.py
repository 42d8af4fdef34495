"""Fused LayerNorms: the kernel in Triton's interpreter, and the plain ones wherever there is no card."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beit3_bench.backbones.beit3.fused_norms import add_layer_norm, gelu_layer_norm, layer_norm

KERNEL = """
import torch
import torch.nn.functional as F
from torch import nn
from beit3_bench.backbones.beit3.fused_kernels import add_normalise, normalise

torch.manual_seed(0)
for width in (48, 768, 3072):
    norm = nn.LayerNorm(width, eps=1e-5)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, update = torch.randn(5, 3, width) * 3, torch.randn(5, 3, width).bfloat16()
    strided = torch.randn(5, 6, width)[:, ::2]
    with torch.no_grad():
        for given in (x, strided, x.bfloat16()):
            rows = given.float()
            for gelu in (False, True):
                ours = normalise(given, norm.weight, norm.bias, norm.eps, gelu, torch.float32)
                torch.testing.assert_close(ours, norm(F.gelu(rows) if gelu else rows), atol=2e-5, rtol=1e-5)
        summed, ours = add_normalise(x, update, norm.weight, norm.bias, norm.eps, torch.float32)
        assert torch.equal(summed, x + update)
        torch.testing.assert_close(ours, norm(x + update), atol=2e-5, rtol=1e-5)
        _, rounded = add_normalise(x, update, norm.weight, norm.bias, norm.eps, torch.float16)
        assert (rounded == norm(x + update).half()).float().mean() > 0.99  # the interpreter cuts bfloat16 off
    assert normalise(x[:0], norm.weight, norm.bias, norm.eps, True, torch.bfloat16).shape == (0, 3, width)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_equals_pytorch():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", KERNEL], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_without_a_card_they_are_the_layers_of_pytorch():
    norm = nn.LayerNorm(8)
    x, update = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert torch.equal(layer_norm(norm, x), norm(x))
    assert torch.equal(gelu_layer_norm(norm, x), norm(F.gelu(x)))
    summed, ours = add_layer_norm(norm, x, update)
    assert torch.equal(summed, x + update)
    assert torch.equal(ours, norm(x + update))
