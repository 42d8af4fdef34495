"""`BEiT3Adapter`: the vision tower inside a ViT-Adapter, as a backbone of mmsegmentation.

ViT-Adapter (Chen et al., ICLR 2023, section 3; its `BEiTAdapter` for the settings): a small convolutional branch makes
maps of strides 8, 16 and 32; before each quarter of the blocks they are injected into the tower's tokens, after it they
extract from them, both by multi-scale deformable attention. Patches keep their places, so no weight of the tower changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.ops import MultiScaleDeformableAttention
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit3_bench.backbones.beit3.mmseg_adapter.tower import build_tower, cropped, load_official, padded, pretrained_file
from beit3_bench.backbones.beit3.spatial import evenly_spaced

Size = tuple[int, int]
EPS = 1e-6  # of the adapter's layer norms


class Places:
    """Where the tokens of some maps lie: what deformable attention asks for, made once per input size.

    sizes: (height, width) per map.  centres: (1, tokens, 1, 2), x and y in 0..1.
    """

    def __init__(self, sizes: Sequence[Size], device: torch.device) -> None:
        self.sizes = list(sizes)
        self.shapes = torch.tensor(self.sizes, dtype=torch.long, device=device)
        starts = [0]
        for height, width in self.sizes[:-1]:
            starts.append(starts[-1] + height * width)
        self.starts = torch.tensor(starts, dtype=torch.long, device=device)
        centres = []
        for height, width in self.sizes:
            y = (torch.arange(height, device=device) + 0.5) / height
            x = (torch.arange(width, device=device) + 0.5) / width
            centres.append(
                torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
            )
        self.centres = torch.cat(centres)[None, :, None]


class Sampling(nn.Module):
    """Deformable attention of normalised queries (N, Q, D) over normalised tokens (N, T, D), without residual.

    Args:
        levels: maps that the tokens come from.
        ratio: width of the sampled values relative to ``dim``.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int, ratio: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=EPS)
        self.attn = MultiScaleDeformableAttention(
            dim, heads, levels, points, dropout=0.0, batch_first=True, value_proj_ratio=ratio
        )

    def forward(self, query: Tensor, tokens: Tensor, at: Places, of: Places) -> Tensor:
        return self.attn(
            self.query_norm(query),
            value=self.feat_norm(tokens),
            identity=query.new_zeros(1),
            reference_points=at.centres,
            spatial_shapes=of.shapes,
            level_start_index=of.starts,
        )


class Injector(nn.Module):
    """Tower tokens + gamma * what they sample from the three spatial maps; gamma starts at ``gamma``."""

    def __init__(self, dim: int, heads: int, points: int, ratio: float, gamma: float) -> None:
        super().__init__()
        self.sampling = Sampling(dim, heads, 3, points, ratio)
        self.gamma = nn.Parameter(torch.full((dim,), gamma))

    def forward(self, tokens: Tensor, spatial: Tensor, tower: Places, maps: Places) -> Tensor:
        return tokens + self.gamma * self.sampling(tokens, spatial, at=tower, of=maps)


class ConvolutionalFFN(nn.Module):
    """fc2(gelu(depthwise 3x3(fc1(x)))), the convolution on each map by itself."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor, sizes: Sequence[Size]) -> Tensor:
        parts = self.fc1(tokens).split([h * w for h, w in sizes], dim=1)
        mixed = [
            self.conv(part.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
            for part, size in zip(parts, sizes, strict=True)
        ]
        return self.fc2(F.gelu(torch.cat(mixed, dim=1)))


class Extractor(nn.Module):
    """The three spatial maps + what they sample from the tower's map, then a convolutional FFN."""

    def __init__(
        self, dim: int, heads: int, points: int, ratio: float, ffn_ratio: float, drop_path_rate: float
    ) -> None:
        super().__init__()
        self.sampling = Sampling(dim, heads, 1, points, ratio)
        self.ffn_norm = nn.LayerNorm(dim, eps=EPS)
        self.ffn = ConvolutionalFFN(dim, int(dim * ffn_ratio))
        self.drop_path_rate = drop_path_rate

    def forward(self, spatial: Tensor, tokens: Tensor, maps: Places, tower: Places) -> Tensor:
        spatial = spatial + self.sampling(spatial, tokens, at=maps, of=tower)
        change = self.ffn(self.ffn_norm(spatial), maps.sizes)
        if self.training and self.drop_path_rate:
            kept = 1.0 - self.drop_path_rate
            change = change * change.new_empty(len(change), 1, 1).bernoulli_(kept).div_(kept)
        return spatial + change


class Interaction(nn.Module):
    """One quarter of the adapter; the last has two extractors more."""

    def __init__(self, injector: Injector, extractors: Sequence[Extractor]) -> None:
        super().__init__()
        self.injector = injector
        self.extractors = nn.ModuleList(extractors)


class SpatialPrior(nn.Module):
    """A convolutional stem: images -> maps of strides 4, 8, 16, 32, all of ``dim`` channels."""

    def __init__(self, channels: int, dim: int, norm_cfg: Mapping[str, Any]) -> None:
        super().__init__()

        def conv(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
            norm = build_norm_layer(dict(norm_cfg), outputs)[1]
            return [nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), norm, nn.ReLU(inplace=True)]

        c = channels
        stem = [*conv(3, c, 2), *conv(c, c, 1), *conv(c, c, 1), nn.MaxPool2d(3, stride=2, padding=1)]
        self.stages = nn.ModuleList(
            [
                nn.Sequential(*stem),
                nn.Sequential(*conv(c, 2 * c, 2)),
                nn.Sequential(*conv(2 * c, 4 * c, 2)),
                nn.Sequential(*conv(4 * c, 4 * c, 2)),
            ]
        )
        self.projections = nn.ModuleList(nn.Conv2d(n * c, dim, 1) for n in (1, 2, 4, 4))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for stage, projection in zip(self.stages, self.projections, strict=True):
            x = stage(x)
            maps.append(projection(x))
        return maps


@MODELS.register_module()
class BEiT3Adapter(BaseModule):
    """BEiT-3 with ViT-Adapter: four maps of strides 4, 8, 16, 32, each as wide as the tower.

    Args:
        arch, window_size, global_blocks, drop_path_rate, with_cp, init_cfg: as in `BEiT3`.
        conv_channels: of the stem.  deform_heads: None = the tower's number of heads.  deform_points, deform_ratio: of
            deformable attention.  ffn_ratio: hidden width of the extractors' FFN relative to the tower's.
        interactions: parts into which the blocks are divided.
        gamma: at which the injectors' factors start; ViT-Adapter's configs on BEiT say 1e-6 (``init_values``), its paper 0.
        norm_cfg: of stem and outputs; batch norms are synchronised by ``sync_bn = "torch"`` in the config.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "base",
        window_size: int = 0,
        global_blocks: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        with_cp: bool = False,
        conv_channels: int = 64,
        deform_heads: int | None = None,
        deform_points: int = 4,
        deform_ratio: float = 0.5,
        ffn_ratio: float = 0.25,
        interactions: int = 4,
        gamma: float = 1e-6,
        norm_cfg: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.init_cfg = init_cfg
        self.with_cp = with_cp
        norm_cfg = norm_cfg or {"type": "BN"}
        self.net = build_tower(arch, window_size, global_blocks, drop_path_rate, with_cp, final_norm=False)
        dim, heads = self.net.embed_dim, deform_heads or self.net.config.num_heads
        self.last_blocks = evenly_spaced(self.net.config.depth, interactions)
        self.spatial_prior = SpatialPrior(conv_channels, dim, norm_cfg)
        self.level_embed = nn.Parameter(torch.zeros(3, dim))
        final = self.last_blocks[-1]
        self.interactions = nn.ModuleList(
            Interaction(
                Injector(dim, heads, deform_points, deform_ratio, gamma),
                [
                    Extractor(dim, heads, deform_points, deform_ratio, ffn_ratio, drop_path_rate)
                    for _ in range(3 if last == final else 1)
                ],
            )
            for last in self.last_blocks
        )
        self.up = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.out_norms = nn.ModuleList(build_norm_layer(dict(norm_cfg), dim)[1] for _ in range(4))
        self._initialise()

    def _initialise(self) -> None:
        """New layers as ViT-Adapter starts them; deformable attention as mmcv does."""
        sampling = {m for s in self.modules() if isinstance(s, MultiScaleDeformableAttention) for m in s.modules()}
        for part in (self.spatial_prior, self.interactions, self.up):
            for module in part.modules():
                if module in sampling:
                    continue
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)
                elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                    fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                    nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        nn.init.normal_(self.level_embed)

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names; the adapter keeps the values that it was built with."""
        file = pretrained_file(self.init_cfg)
        if file is not None:
            load_official(self.net, file)
        self._is_init = True

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images float (N, 3, H, W) -> four maps (N, embed_dim, H/s, W/s), sides rounded up."""
        height, width = images.shape[2:]
        images = padded(images)
        finest, *coarser = self.spatial_prior(images)
        sizes: list[Size] = [(m.shape[2], m.shape[3]) for m in coarser]
        maps, tower = Places(sizes, images.device), Places([sizes[1]], images.device)
        spatial = torch.cat(
            [m.flatten(2).transpose(1, 2) + level for m, level in zip(coarser, self.level_embed, strict=True)], dim=1
        )
        x, cls = self.net.embed(images)
        first, seen = 0, []
        for interaction, last in zip(self.interactions, self.last_blocks, strict=True):
            x = self._run(interaction.injector, x.flatten(1, 2), spatial, tower, maps).unflatten(1, sizes[1])
            x, cls = self.net.run_blocks(x, cls, first, last + 1)
            for extractor in interaction.extractors:
                spatial = self._run(extractor, spatial, x.flatten(1, 2), maps, tower)
            seen.append(x.permute(0, 3, 1, 2))
            first = last + 1
        c8, c16, c32 = (
            part.transpose(1, 2).unflatten(2, size)
            for part, size in zip(spatial.split([h * w for h, w in sizes], dim=1), sizes, strict=True)
        )
        outputs = [self.up(c8) + finest, c8, c16, c32]
        # the tower's own maps, from shallow to deep, go to the maps from fine to coarse
        pick = [seen[round(k * (len(seen) - 1) / 3)] for k in range(4)]
        outputs = [
            c + (t if t.shape == c.shape else F.interpolate(t, size=c.shape[2:], mode="bilinear", align_corners=False))
            for c, t in zip(outputs, pick, strict=True)
        ]
        return cropped([norm(m) for norm, m in zip(self.out_norms, outputs, strict=True)], height, width)

    def _run(self, module: nn.Module, *arguments: Any) -> Tensor:
        if self.with_cp and self.training:
            return checkpoint(module, *arguments, use_reentrant=False)
        return module(*arguments)
