"""A linear layer on frozen patches that segments images: DINOv2's linear evaluation (Oquab et al., 2023, section 7.4, "Linear").

The head is that of facebookresearch/dinov2, `eval/segmentation/models/decode_heads/linear_head.py` (`BNHead`): a batch normalisation
and a 1x1 convolution on the patch tokens of the last layer; its logits are upsampled bilinearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from beit3_bench.backbones.abilities import Batch, Item, Patches, Reader, Segments
from beit3_bench.backbones.images import opened
from beit3_bench.backbones.preprocess import orientation
from beit3_bench.errors import BenchError

_BLOCK = 2**24
"""Logits of an image that are upsampled at a time."""


class LinearHead(nn.Module):
    """Batch normalisation over all patches of a batch, and a 1x1 convolution, which on vectors is a Linear."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.bn = nn.BatchNorm1d(dim)
        self.cls_seg = nn.Linear(dim, classes)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> LinearHead:
        """mmsegmentation's `BaseDecodeHead`: weights normal with std 0.01, bias 0."""
        self.cls_seg.weight.normal_(std=0.01, generator=generator)
        self.cls_seg.bias.zero_()
        return self

    def forward(self, patches: Tensor) -> Tensor:
        """float32 (B, h, w, D) -> logits (B, h, w, classes)."""
        return self.cls_seg(self.bn(patches.flatten(0, 2))).unflatten(0, patches.shape[:3])


def bilinear(size: int, patches: int, like: Tensor) -> Tensor:
    """The matrix (size, patches) that interpolates as `F.interpolate` does (align_corners=False); a product with it is the same at every
    call also where it is trained through, which the backward pass of `F.interpolate` on a card is not.
    """
    unit = torch.eye(patches, device=like.device, dtype=like.dtype)
    return F.interpolate(unit.unsqueeze(0), size=size, mode="linear", align_corners=False)[0].T


def upsampled(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(..., h, w, C) by matrices (H, h) and (W, w) of `bilinear` -> (..., H, W, C)."""
    return torch.einsum("xw,...ywc->...yxc", columns, torch.einsum("yh,...hwc->...ywc", rows, logits))


def label_map(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Logits (h, w, C) of an image of ``size`` (width, height) -> its classes, uint8 (H, W), block by block."""
    width, height = size
    columns, rows = bilinear(width, logits.shape[1], logits), bilinear(height, logits.shape[0], logits)
    parts = rows.split(max(_BLOCK // (width * logits.shape[2]), 1))
    return torch.cat([upsampled(logits, part, columns).argmax(dim=-1).to(torch.uint8) for part in parts]).cpu().numpy()


def rounded(grids: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Patches of several images as they are stored, in float16: float32 (B, h, w, D) on a device."""
    return torch.from_numpy(np.stack(grids).astype(np.float16, copy=False)).to(device).float()


def stored_size(image: Any) -> tuple[int, int]:
    """(width, height) of an image as its file holds it, which is how patches and labels see it.

    Raises:
        BenchError: it does not open, or is to be turned when it is looked at.
    """
    if not isinstance(image, (str, Path)):
        assert isinstance(image, Image.Image)
        return image.size
    with opened(image) as file:
        if orientation(file) != 1:
            raise BenchError(
                f"{image}: is to be turned by its EXIF orientation, and patches are read as they are stored; store it upright"
            )
        return file.size


class _SizedReader(Reader):
    """A family's reader, with the sizes of the images beside the batch."""

    def __init__(self, reader: Reader):
        self.reader, self.transform = reader, reader.transform

    def prepare(self, items: Sequence[Item]) -> None:
        self.reader.prepare(items)

    def length(self, item: Item) -> int:
        return self.reader.length(item)

    def collate(self, items: Sequence[Item]) -> Batch:
        return {**self.reader.collate(items), "sizes": [stored_size(item.images[0]) for item in items]}


class LinearSegmenter(Segments):
    """Patches of a frozen network, and a linear head that was trained on them.

    patches: has been made ready, and compiled where that was asked for.
    """

    def __init__(self, patches: Patches, head: LinearHead):
        parts = {"head": head} if patches.module is None else {"network": patches.module, "head": head}
        super().__init__(nn.ModuleDict(parts), _SizedReader(patches.reader))
        self.patches, self.head = patches, head

    def predict(self, batch: Batch) -> list[Any]:
        device = self.head.cls_seg.weight.device
        grids = self.patches.predict(batch)
        with torch.autocast(device.type, enabled=False):
            logits = self.head(rounded(grids, device))
            return [label_map(one, size) for one, size in zip(logits, batch["sizes"], strict=True)]

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """Done: see the class."""

    def compile(self) -> None:
        """Done: see the class."""

    def item_bytes(self) -> int | None:
        return self.patches.item_bytes()
