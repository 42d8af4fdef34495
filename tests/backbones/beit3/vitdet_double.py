"""Test double: the plain ViT with windows and decomposed relative positions that the ViTDet goldens were made with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, dim // heads))

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        q, k, v = self.qkv(x).view(n, h * w, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-1, -2)
        grid_q = q.unflatten(2, (h, w))
        rows = torch.arange(h)[:, None] - torch.arange(h) + h - 1
        columns = torch.arange(w)[:, None] - torch.arange(w) + w - 1
        by_row = torch.einsum("nhyxc,ykc->nhyxk", grid_q, self.rel_pos_h[rows])
        by_column = torch.einsum("nhyxc,xkc->nhyxk", grid_q, self.rel_pos_w[columns])
        bias = by_row[..., :, None] + by_column[..., None, :]
        out = (scores + bias.reshape(scores.shape)).softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(n, h, w, c))


class _Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, grid: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, heads, window or grid)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        y, (n, h, w, c) = self.norm1(x), x.shape
        if self.window:
            s = self.window
            y = F.pad(y, (0, 0, 0, -w % s, 0, -h % s))
            rows, columns = y.shape[1] // s, y.shape[2] // s
            y = y.view(n, rows, s, columns, s, c).transpose(2, 3).reshape(-1, s, s, c)
            y = self.attn(y).view(n, rows, columns, s, s, c).transpose(2, 3).reshape(n, rows * s, columns * s, c)
            y = y[:, :h, :w]
        else:
            y = self.attn(y)
        x = x + y
        return x + self.mlp(self.norm2(x))


class PlainViT(nn.Module):
    """Images (N, 3, S, S) -> (N, dim, S/16, S/16); ``spec`` is the ``spec`` of a golden variant."""

    def __init__(self, spec: dict) -> None:
        super().__init__()
        dim, grid = spec["embed"], spec["img"] // 16
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dim, 16, stride=16)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (spec["pretrain"] // 16) ** 2, dim))
        windows = [spec["window"] if i in spec["wblocks"] else 0 for i in range(spec["depth"])]
        self.blocks = nn.Sequential(*(_Block(dim, spec["heads"], w, grid) for w in windows))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed.proj(images)
        table = self.pos_embed[:, 1:]
        side = int(table.shape[1] ** 0.5)
        table = table.transpose(1, 2).unflatten(2, (side, side))
        if x.shape[-2:] != (side, side):
            table = F.interpolate(table, size=x.shape[-2:], mode="bicubic", align_corners=False)
        return self.blocks((x + table).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
