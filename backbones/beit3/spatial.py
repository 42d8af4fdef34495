"""BEiT-3's vision tower as a plain spatial backbone: images of any size -> one map of stride 16 (ViTDet, section 3).

Vision experts only, windows with a few global blocks, absolute positions interpolated to the input, no relative
positions. Parameters are called as layer-wise learning-rate decay expects (``pos_embed``, ``patch_embed.proj``,
``blocks.N.``); `load_spatial` translates official weights.

CLS is part of the tower, and the map is what the tower computes beside it: in global blocks CLS is one token among all,
in windowed blocks it is a key of every window and itself sees the whole image, so that only patches are windowed. With
``cls_token=False`` it is left out, as ViTDet does. The final LayerNorm is the tower's; ``final_norm=False`` drops it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit3_bench.backbones.beit3.checkpoint import LoadReport, interpolate_positions, tensors_of
from beit3_bench.backbones.beit3.config import POSITION_OFFSET, BEiT3Config
from beit3_bench.backbones.beit3.multiway import FeedForward
from beit3_bench.errors import BenchError


def evenly_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Indexes of ``count`` global blocks, the last of each equal part: depth 12 -> 2, 5, 8, 11."""
    return tuple(sorted({max(round((k + 1) * depth / count) - 1, 0) for k in range(count)}))


def interpolated_positions(pos_embed: Tensor, height: int, width: int) -> Tensor:
    """Positions (1, 1 + g*g, D), CLS first -> (1, height, width, D) of the patches.

    Bicubic, align_corners=False, no antialias; the stored table itself where the size is its own.
    """
    side = math.isqrt(pos_embed.shape[1] - 1)
    table = pos_embed[:, 1:].unflatten(1, (side, side))
    if (height, width) == (side, side):
        return table
    table = F.interpolate(table.float().permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False)
    return table.permute(0, 2, 3, 1).to(pos_embed.dtype)


def window_partition(x: Tensor, size: int) -> Tensor:
    """(N, H, W, C), H and W multiples of ``size`` -> (N * windows, size, size, C), windows in row-major order."""
    n, height, width, channels = x.shape
    x = x.view(n, height // size, size, width // size, size, channels)
    return x.transpose(2, 3).reshape(-1, size, size, channels)


def window_merge(windows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `window_partition`: (N * windows, size, size, C) -> (N, height, width, C)."""
    size, channels = windows.shape[1], windows.shape[3]
    rows, columns = height // size, width // size
    return windows.view(-1, rows, columns, size, size, channels).transpose(2, 3).reshape(-1, height, width, channels)


class SpatialAttention(nn.Module):
    """Self-attention with sub-LayerNorm over a map: in windows of ``window`` x ``window`` tokens, or (0) all of it.

    Where windows reach beyond the map, the missing tokens count as zeros that were normalised to zeros: their keys and
    values are the biases, and they are attended to (ViTDet's padding; detectron2 `Block.forward`).
    """

    def __init__(self, config: BEiT3Config, window: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads, self.window = config.num_heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.inner_attn_ln = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.proj = nn.Linear(dim, dim)

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 3D) -> q, k, v, each (B, heads, T, head_dim)."""
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def output(self, heads: Tensor) -> Tensor:
        return self.proj(self.inner_attn_ln(heads))

    def forward(self, x: Tensor, cls: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x (N, h, w, D), cls (N, 1, D) or None -> the same shapes."""
        n, height, width, dim = x.shape
        first = 0 if cls is None else 1
        if not self.window:
            tokens = x.flatten(1, 2) if cls is None else torch.cat([cls, x.flatten(1, 2)], dim=1)
            q, k, v = self.heads(self.qkv(tokens))
            out = self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            return out[:, first:].view(n, height, width, dim), out[:, :first] if first else None

        size = self.window
        right, below = -width % size, -height % size
        if right or below:
            projected = F.pad(F.linear(x, self.qkv.weight), (0, 0, 0, right, 0, below))
            qkv = projected + self.qkv.bias.to(projected.dtype)
        else:
            qkv = self.qkv(x)
        q, k, v = self.heads(window_partition(qkv, size).flatten(1, 2))
        seen = None
        if cls is not None:
            cls_q, cls_k, cls_v = self.heads(self.qkv(cls))
            _, all_k, all_v = self.heads(qkv[:, :height, :width].flatten(1, 2))
            keys, values = torch.cat([cls_k, all_k], dim=2), torch.cat([cls_v, all_v], dim=2)
            seen = self.output(F.scaled_dot_product_attention(cls_q, keys, values).transpose(1, 2).flatten(2))
            windows = len(k) // n
            k = torch.cat([cls_k.repeat_interleave(windows, dim=0), k], dim=2)
            v = torch.cat([cls_v.repeat_interleave(windows, dim=0), v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, size, size, dim)
        out = window_merge(out, height + below, width + right)[:, :height, :width]
        return self.output(out), seen


class SpatialBlock(nn.Module):
    """Pre-norm attention and vision expert with drop path: one draw per sample and branch, CLS included."""

    def __init__(self, config: BEiT3Config, window: int, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.attn = SpatialAttention(config, window)
        self.norm2 = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        self.mlp = FeedForward(config)
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor, cls: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x (N, h, w, D), cls (N, 1, D) or None -> the same shapes."""
        keep = self.keep(x)
        y, seen = self.attn(self.norm1(x), None if cls is None else self.norm1(cls))
        x = _add(x, y, keep)
        cls = None if cls is None or seen is None else _add(cls, seen, keep)
        keep = self.keep(x)
        x = _add(x, self.mlp(self.norm2(x)), keep)
        return x, None if cls is None else _add(cls, self.mlp(self.norm2(cls)), keep)

    def keep(self, like: Tensor) -> Tensor | None:
        """Stochastic depth: a factor (N,), one draw per sample; None when nothing is dropped."""
        if not self.training or self.drop_path_rate == 0.0:
            return None
        kept = 1.0 - self.drop_path_rate
        return like.new_empty(len(like)).bernoulli_(kept).div_(kept)


def _add(x: Tensor, y: Tensor, keep: Tensor | None) -> Tensor:
    return x + (y if keep is None else y * keep.view(-1, *[1] * (y.ndim - 1)))


class PatchEmbed(nn.Module):
    """Patches of images (N, 3, H, W) -> (N, H/patch, W/patch, dim)."""

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).permute(0, 2, 3, 1)


class SpatialBEiT3(nn.Module):
    """The vision tower over maps.

    Args:
        config: of the checkpoint; its ``grid`` is the size at which positions are stored, ``drop_path_rate`` and
            ``checkpoint_activations`` apply here too.
        window_size: tokens along a window's side (ViTDet: 14, or 16 where it divides the map); 0 = global everywhere.
        global_blocks: indexes of blocks with global attention; None = four, evenly spaced.
        patch_size: of this module; kernels of another size are resampled when loaded.
    """

    def __init__(
        self,
        config: BEiT3Config,
        window_size: int = 14,
        global_blocks: Sequence[int] | None = None,
        cls_token: bool = True,
        final_norm: bool = True,
        patch_size: int = 16,
    ) -> None:
        super().__init__()
        blocks = evenly_spaced(config.depth) if global_blocks is None else tuple(global_blocks)
        if any(not 0 <= i < config.depth for i in blocks) or window_size < 0:
            raise BenchError(
                f"global_blocks {blocks}: the tower has blocks 0..{config.depth - 1}; window_size {window_size}"
            )
        dim = config.embed_dim
        self.config, self.patch_size, self.embed_dim, self.global_blocks = config, patch_size, dim, blocks
        self.patch_embed = PatchEmbed(dim, patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if cls_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.num_patches, dim))
        rates = [config.drop_path_rate * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(
            SpatialBlock(config, 0 if i in blocks else window_size, rate) for i, rate in enumerate(rates)
        )
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps) if final_norm else nn.Identity()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images float (N, 3, H, W) -> tokens with positions: map (N, H/16, W/16, D) and CLS (N, 1, D) or None."""
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise BenchError(
                f"the spatial backbone got images of {height}x{width} pixels; pad to multiples of {self.patch_size}, "
                "or their last columns and rows would never be seen"
            )
        x = self.patch_embed(images)
        x = x + interpolated_positions(self.pos_embed, x.shape[1], x.shape[2])
        if self.cls_token is None:
            return x, None
        return x, (self.cls_token + self.pos_embed[:, :1]).to(x.dtype).expand(len(x), -1, -1)

    def run_blocks(self, x: Tensor, cls: Tensor | None, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Blocks ``start`` to ``stop - 1`` on a map (N, h, w, D) and CLS; adapters do their own work between calls."""
        for block in self.blocks[start:stop]:
            if self.config.checkpoint_activations and self.training:
                x, cls = checkpoint(block, x, cls, use_reentrant=False)
            else:
                x, cls = block(x, cls)
        return x, cls

    def maps_after(self, images: Tensor, indexes: Sequence[int]) -> list[Tensor]:
        """Maps (N, D, H/16, W/16) after the blocks ``indexes`` (ascending); the last block's is normalised."""
        x, cls = self.embed(images)
        maps, done, last = [], 0, len(self.blocks) - 1
        for index in indexes:
            x, cls = self.run_blocks(x, cls, done, index + 1)
            done = index + 1
            maps.append((self.norm(x) if index == last else x).permute(0, 3, 1, 2))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images float (N, 3, H, W), sides multiples of 16 -> (N, D, H/16, W/16)."""
        return self.maps_after(images, [len(self.blocks) - 1])[0]


# ---- official weights ------------------------------------------------------------------------------------------------

_ENDS = {
    "norm1": "self_attn_layer_norm",
    "attn.inner_attn_ln": "self_attn.inner_attn_ln",
    "attn.proj": "self_attn.out_proj",
    "norm2": "final_layer_norm",
}
_POSITIONS, _KERNEL = "beit3.encoder.embed_positions.A.weight", "beit3.vision_embed.proj.weight"
_OTHERS = (
    "beit3.text_embed.*",
    "beit3.vision_embed.mask_token",
    "*.B.*",
    "*.VL.*",
    "beit3.encoder.output_projection.*",
)
_MAY_BE_LEFT_OUT = ("beit3.vision_embed.cls_token", "beit3.encoder.layer_norm.A.*")
"""Vision tensors that a model may be built without."""


def official_vision_names(model: SpatialBEiT3) -> dict[str, list[str]]:
    """Our parameter name -> official name(s); the fused qkv has three, in the order q, k, v."""
    names: dict[str, list[str]] = {}
    for name in model.state_dict():
        if name == "pos_embed":
            names[name] = [_POSITIONS]
        elif name == "cls_token":
            names[name] = ["beit3.vision_embed.cls_token"]
        elif name.startswith("patch_embed."):
            names[name] = [name.replace("patch_embed.", "beit3.vision_embed.")]
        elif name.startswith("norm."):
            names[name] = [name.replace("norm.", "beit3.encoder.layer_norm.A.")]
        else:
            _, index, *middle, kind = name.split(".")
            layer, part = f"beit3.encoder.layers.{index}", ".".join(middle)
            # The paper's form shares attention between modalities: no branch letter there.
            branch = "" if model.config.shared_attention else ".A"
            if part == "attn.qkv":
                names[name] = [f"{layer}.self_attn.{x}_proj{branch}.{kind}" for x in "qkv"]
            elif part.startswith("mlp."):
                names[name] = [f"{layer}.ffn.A.{middle[-1]}.{kind}"]
            else:
                names[name] = [f"{layer}.{_ENDS[part]}{'.A' if part == 'norm2' else branch}.{kind}"]
    return names


def load_spatial(
    model: SpatialBEiT3,
    source: str | Path | Mapping[str, Tensor],
    allow_missing: Sequence[str] = (),
    origin: str | None = None,
) -> LoadReport:
    """Load the vision weights (branch A) of an official checkpoint of any task, and nothing else of it.

    Positions of another grid are interpolated to ``model.config.grid``; a patch kernel of another size is resampled
    (bicubic), as ViTDet-H and EVA do to bring patch 14 to 16.

    Args:
        source: a file, or a mapping of official names to tensors (``{"model": ...}`` is unwrapped).
        allow_missing: patterns of official names that may be missing or of another shape, and are then not loaded.

    Returns:
        the report, in official names; ``unexpected`` lists vision tensors that this model has no place for (the CLS
        token or final norm of a model built without them).

    Raises:
        BenchError: tensors that are missing or misshapen, or layers beyond the model's depth; nothing was changed.
    """
    origin, tensors, notes = tensors_of(source, origin)
    report = LoadReport(notes=notes)
    ready, misshapen = _pair(model, tensors, report)
    taken = {*report.loaded, *report.missing}
    report.unexpected = sorted(
        n for n in tensors if n.startswith("beit3.") and n not in taken and not _matches(n, _OTHERS)
    )
    absent = [n for n in report.missing if n not in tensors and not _matches(n, allow_missing)]
    wrong = [what for name, what in misshapen.items() if not _matches(name, allow_missing)]
    extra = [n for n in report.unexpected if not _matches(n, (*_MAY_BE_LEFT_OUT, *allow_missing))]
    kinds = (("missing", absent), ("of another shape", wrong), ("without a place", extra))
    problems = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in kinds if names]
    if problems:
        only_norm = all("encoder.layer_norm" in n for n in absent + wrong + extra)
        hint = "build it with final_norm=False" if only_norm else "is it an official BEiT-3 checkpoint of this size?"
        raise BenchError(f"{origin}: does not fit the spatial backbone: vision tensors {'; '.join(problems)}; {hint}")
    own = model.state_dict()
    with torch.no_grad():
        for name, value in ready.items():
            own[name].copy_(value)
    return report


def _pair(
    model: SpatialBEiT3, tensors: Mapping[str, Tensor], report: LoadReport
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What is to be copied into each tensor of the model; ``report`` learns what is loaded, missing and resized.

    Returns:
        our name -> value of its shape; and official name -> what is wrong with its shape.
    """
    own = model.state_dict()
    ready: dict[str, Tensor] = {}
    misshapen: dict[str, str] = {}
    for name, group in official_vision_names(model).items():
        if absent := [n for n in group if n not in tensors]:
            report.missing += absent
            continue
        value = torch.cat([tensors[n] for n in group]) if len(group) > 1 else tensors[group[0]]
        value = _fit(model, group[0], value, report)
        if value.shape != own[name].shape:
            report.missing += group
            shapes = f"{tuple(value.shape)} instead of {tuple(own[name].shape)}"
            misshapen |= {n: f"{n} {shapes}" for n in group}
            continue
        ready[name] = value
        report.loaded += group
    return ready, misshapen


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _fit(model: SpatialBEiT3, name: str, value: Tensor, report: LoadReport) -> Tensor:
    """Bring positions and patch kernel to the model's sizes; everything else is returned as it is."""
    if name == _POSITIONS and value.ndim == 2:
        rows = len(value) - POSITION_OFFSET - 1
        side, grid = math.isqrt(max(rows, 0)), model.config.grid
        if side and side**2 == rows:
            if side != grid:
                report.resized[name] = f"{side}x{side} -> {grid}x{grid}"
                value = interpolate_positions(value, grid)
            value = value[POSITION_OFFSET:]
        return value[None]
    if name == _KERNEL and value.ndim == 4 and value.shape[-1] != model.patch_size:
        size = model.patch_size
        report.resized[name] = f"{value.shape[-2]}x{value.shape[-1]} -> {size}x{size}"
        kernel = F.interpolate(value.float(), size=(size, size), mode="bicubic", align_corners=False)
        return kernel.to(value.dtype)
    return value
