"""The simple feature pyramid: five maps made from the last map of a plain backbone (ViTDet, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.errors import BenchError


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of every pixel of a (N, C, H, W) map; eps 1e-6.

    Not a `nn.LayerNorm`: the ViTDet recipe exempts those from weight decay, and these not.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


class ConvNorm(nn.Conv2d):
    """Convolution without bias, "same" padding, then `ChannelLayerNorm` under the name ``norm``, then ReLU if asked."""

    def __init__(self, inputs: int, outputs: int, kernel: int, relu: bool = False) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = ChannelLayerNorm(outputs)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(super().forward(x))
        return F.relu(x) if self.relu else x


class SimpleFeaturePyramid(nn.Module):
    """Backbone ``net`` and the maps p2..p6 (strides 4, 8, 16, 32, 64) made from its only map.

    Args:
        net: (N, 3, H, W) -> (N, embed_dim, H/16, W/16).
        embed_dim: channels of that map.
        out_channels: channels of every pyramid map.
    """

    strides = (4, 8, 16, 32, 64)

    def __init__(self, net: nn.Module, embed_dim: int, out_channels: int) -> None:
        super().__init__()
        self.net = net
        self.embed_dim = embed_dim

        def out(channels: int) -> list[nn.Module]:
            return [ConvNorm(channels, out_channels, 1), ConvNorm(out_channels, out_channels, 3)]

        half, quarter = embed_dim // 2, embed_dim // 4
        up = [nn.ConvTranspose2d(embed_dim, half, 2, stride=2), ChannelLayerNorm(half), nn.GELU()]
        self.simfp_2 = nn.Sequential(*up, nn.ConvTranspose2d(half, quarter, 2, stride=2), *out(quarter))
        self.simfp_3 = nn.Sequential(nn.ConvTranspose2d(embed_dim, half, 2, stride=2), *out(half))
        self.simfp_4 = nn.Sequential(*out(embed_dim))
        self.simfp_5 = nn.Sequential(nn.MaxPool2d(2, stride=2), *out(embed_dim))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images float32 (N, 3, H, W) -> [p2, p3, p4, p5, p6], each (N, out_channels, H/s, W/s)."""
        x = self.net(images)
        expected = (len(images), self.embed_dim, images.shape[2] // 16, images.shape[3] // 16)
        if not isinstance(x, Tensor) or tuple(x.shape) != expected:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise BenchError(
                f"the backbone returned {got}, the detector needs a tensor {expected}: (N, embed_dim, H/16, W/16)"
            )
        maps = [self.simfp_2(x), self.simfp_3(x), self.simfp_4(x), self.simfp_5(x)]
        return [*maps, maps[-1][:, :, ::2, ::2]]
