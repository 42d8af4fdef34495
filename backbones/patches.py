"""Patches of vision transformers, and their positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def embed_patches(proj: nn.Conv2d, images: Tensor) -> Tensor:
    """A convolution whose stride is its kernel: float32 (B, 3, S, S) -> (B, patches, D), row-major.

    On a card as one product: cuDNN takes several times as long for strides as wide as the kernel.
    """
    if not images.is_cuda:
        return proj(images).flatten(2).transpose(1, 2)
    if torch.is_autocast_enabled(images.device.type):
        images = images.to(torch.get_autocast_dtype(images.device.type))
    size = proj.kernel_size[0]
    patch = images.shape[-1] // size
    x = images.unflatten(3, (patch, size)).unflatten(2, (patch, size))  # (B, 3, rows, size, columns, size)
    x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return F.linear(x, proj.weight.flatten(1), proj.bias)


def resize_positions(table: Tensor, source: int, target: int) -> Tensor:
    """Absolute positions (1, 1 + source^2, D) -> (1, 1 + target^2, D): bicubic, the row of CLS is kept."""
    square = table[:, 1:].float().unflatten(1, (source, source)).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(target, target), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)
