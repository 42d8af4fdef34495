"""ViLT (Kim et al., 2021; official code: dandelin/ViLT): one vision transformer over the words of a text and the patches of an image,
which are embedded by one linear layer each.

Images of a batch have unequal sizes. Here the patches of each stand one behind the other, and what is padded behind them is masked:
the official code masks by value, which is the same as a pixel of an image is never zero after normalisation in all channels (0.5 is
no value of eight bits), and draws the order of the patches at random, which moves the last bits of a result; here it is kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones.precision import exact

EPS, TEXT_EPS = 1e-6, 1e-12
"""Of the LayerNorms of the transformer (timm's), and of the text embedding (BERT's)."""


@dataclass(frozen=True)
class ViLTConfig:
    """grid: patches of a side of the square images that positions were learnt on.  token_types: rows for texts and images."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    ffn: int = 3072
    patch_size: int = 32
    grid: int = 12
    vocab_size: int = 30522
    max_text_length: int = 40
    token_types: int = 2

    @property
    def image_size(self) -> int:
        """Pixels of the shorter side."""
        return self.grid * self.patch_size

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Patches(NamedTuple):
    """Patches of images, those of each row by row, then padding.

    values: float32 (B, N, 3 * patch * patch), normalised, channel by channel.  grids: int64 (B, 2), rows and columns of each image.
    """

    values: Tensor
    grids: Tensor

    def select(self, rows: Tensor) -> Patches:
        return Patches(self.values[rows], self.grids[rows])


def patches_of(images: Tensor, patch: int, sizes: Tensor | None = None) -> Patches:
    """Cut images: float32 (B, 3, H, W) -> `Patches`.

    Args:
        sizes: int64 (B, 2), height and width of each, where the rest is padding; None = nothing is padded.
    """
    batch, _, height, width = images.shape
    rows, columns = height // patch, width // patch
    cut = images.unflatten(3, (columns, patch)).unflatten(2, (rows, patch)).permute(0, 2, 4, 1, 3, 5)
    values = cut.flatten(3).flatten(1, 2)
    if sizes is None:
        return Patches(values, torch.tensor([[rows, columns]] * batch, device=images.device))
    grids = sizes // patch
    below = torch.arange(rows, device=images.device)[None, :, None] < grids[:, :1, None]
    inside = (below & (torch.arange(columns, device=images.device) < grids[:, 1:, None])).flatten(1)
    order = inside.logical_not().long().argsort(dim=1, stable=True)
    return Patches(values.gather(1, order.unsqueeze(-1).expand_as(values)), grids)


class TextEmbedding(nn.Module):
    """BERT's: words, positions and one token type, normalised."""

    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width)
        self.position_embeddings = nn.Embedding(config.max_text_length, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=TEXT_EPS)

    def forward(self, token_ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: token_ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(token_ids) + positions + self.token_type_embeddings.weight[0])


class Attention(nn.Module):
    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, seen: Tensor | None, first: bool) -> Tensor:
        """seen: bool (B, 1, 1, T), False = padding.  first: the value of the first token alone is wanted."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = q[:, :, :1] if first else q
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.proj(heads.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=EPS)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, seen: Tensor | None, first: bool = False) -> Tensor:
        x = (x[:, :1] if first else x) + self.attn(self.norm1(x), seen, first)
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Official name of the patch convolution; its stride is its kernel, so that it is a product."""

    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)

    def forward(self, values: Tensor) -> Tensor:
        return F.linear(values, self.proj.weight.flatten(1), self.proj.bias)


class Transformer(nn.Module):
    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid**2, config.width))
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=EPS)


class Pooler(nn.Module):
    """tanh(Linear(CLS))."""

    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


class ViLT(nn.Module):
    """The network below its heads."""

    output_layer = ""
    """Name of the weights whose rows are the outputs of a classifier."""

    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.config = config
        self.text_embeddings = TextEmbedding(config)
        self.token_type_embeddings = nn.Embedding(config.token_types, config.width)
        self.transformer = Transformer(config)
        self.pooler = Pooler(config)

    def cut(self, images: Tensor, sizes: Tensor | None = None) -> Patches:
        return patches_of(images, self.config.patch_size, sizes)

    def positions(self, grids: Tensor, length: int) -> Tensor:
        """Positions of patches, (B, length, D): those learnt on a square, resized bilinearly to each image's grid (official
        `visual_embed`, align_corners), and 0 for padding.
        """
        side, table = self.config.grid, self.transformer.pos_embed[:, 1:]
        square = table.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        distinct, index = torch.unique(grids, dim=0, return_inverse=True)
        resized = []
        for rows, columns in distinct.tolist():
            one = F.interpolate(square, size=(rows, columns), mode="bilinear", align_corners=True)
            flat = one.flatten(2).transpose(1, 2)
            resized.append(F.pad(flat, (0, 0, 0, length - rows * columns)))
        return torch.cat(resized).to(table.dtype)[index]

    def embed_image(self, patches: Patches, token_type: int = 1) -> tuple[Tensor, Tensor]:
        """(B, 1 + N, D) and bool (B, 1 + N), False = padding."""
        t, length = self.transformer, patches.values.shape[1]
        x = t.patch_embed(patches.values) + self.positions(patches.grids, length)
        first = (t.cls_token + t.pos_embed[:, :1]).expand(len(x), -1, -1).to(x.dtype)
        x = torch.cat([first, x], dim=1) + self.token_type_embeddings.weight[token_type]
        patch_numbers = torch.arange(length, device=x.device)
        seen = patch_numbers < patches.grids.prod(dim=1, keepdim=True)
        return x, F.pad(seen, (1, 0), value=True)

    def image_states(self, patches: Patches) -> Tensor:
        """CLS and patches of images alone, behind the last norm: (B, 1 + N, D)."""
        x, seen = self.embed_image(patches)
        for block in self.transformer.blocks:
            x = block(x, seen[:, None, None])
        return self.transformer.norm(x)

    def pooled(self, image: tuple[Tensor, Tensor | None], token_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        """The text's [CLS] behind the transformer, pooled: (B, D).

        image: as `embed_image` gives it; None in place of its mask where neither patches nor words are padded, in any batch.
        """
        if token_ids.shape[1] > self.config.max_text_length:
            raise ValueError(f"{token_ids.shape[1]} tokens; there are positions for {self.config.max_text_length}")
        text = self.text_embeddings(token_ids) + self.token_type_embeddings.weight[0]
        x, seen = torch.cat([text, image[0]], dim=1), None
        if image[1] is not None:
            words = torch.ones_like(token_ids, dtype=torch.bool) if padding_mask is None else ~padding_mask.bool()
            # A mask is there even where nothing is padded: other kernels would move the last bits.
            seen = torch.cat([words, image[1]], dim=1)[:, None, None]
        *blocks, last = self.transformer.blocks
        for block in blocks:
            x = block(x, seen)
        x = last(x, seen, first=True)
        return exact(self.pooler, exact(self.transformer.norm, x[:, 0]))


def classifier(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs))


class VisualQuestionAnswering(ViLT):
    """Official `vqa_classifier`."""

    output_layer = "vqa_classifier.3.weight"

    def __init__(self, config: ViLTConfig, outputs: int):
        super().__init__(config)
        self.vqa_classifier = classifier(config.width, 2 * config.width, outputs)

    def forward(
        self,
        images: Tensor,
        token_ids: Tensor,
        padding_mask: Tensor | None = None,
        image_index: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """(B, outputs) logits.

        Args:
            images: float32 (B, 3, H, W), normalised.  sizes: see `patches_of`.
            image_index: int64 (B,), where several questions share a row of ``images``.
        """
        return self.answer(self.cut(images, sizes), token_ids, padding_mask, image_index)

    def answer(
        self, patches: Patches, token_ids: Tensor, padding_mask: Tensor | None, image_index: Tensor | None
    ) -> Tensor:
        image, seen = self.embed_image(patches)
        shared = (image, seen) if image_index is None else (image[image_index], seen[image_index])
        return exact(self.vqa_classifier, self.pooled(shared, token_ids, padding_mask))


class VisualReasoning(ViLT):
    """NLVR2: the sentence with each image, of token types 1 and 2; a classifier of both pooled [CLS] (official `compute_nlvr2`)."""

    output_layer = "nlvr2_classifier.3.weight"

    def __init__(self, config: ViLTConfig, outputs: int):
        super().__init__(config)
        self.nlvr2_classifier = classifier(2 * config.width, 2 * config.width, outputs)

    def forward(
        self,
        left: Tensor,
        right: Tensor,
        token_ids: Tensor,
        padding_mask: Tensor | None = None,
        sizes: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """left, right float32 (B, 3, H, W), normalised, of sizes as `patches_of` takes them; (B, outputs) logits, index 1 is True."""
        left_sizes, right_sizes = sizes or (None, None)
        return self.judge(self.cut(left, left_sizes), self.cut(right, right_sizes), token_ids, padding_mask)

    def judge(self, left: Patches, right: Patches, token_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        pooled = [
            self.pooled(self.embed_image(patches, number), token_ids, padding_mask)
            for number, patches in ((1, left), (2, right))
        ]
        return exact(self.nlvr2_classifier, torch.cat(pooled, dim=-1))


class Ranking(ViLT):
    """Official `rank_output`: how well a text fits an image (`compute_irtr_recall`)."""

    output_layer = "rank_output.weight"

    def __init__(self, config: ViLTConfig, outputs: int = 1):
        super().__init__(config)
        self.rank_output = nn.Linear(config.width, outputs)

    def match(
        self,
        images: Tensor,
        token_ids: Tensor,
        padding_mask: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """Score (B,) of each text with its image; higher = better.

        Args:
            images: float32 (B, 3, H, W), normalised.  sizes: see `patches_of`.
        """
        return self.rank(self.embed_image(self.cut(images, sizes)), token_ids, padding_mask)

    def rank(
        self, image: tuple[Tensor, Tensor | None], token_ids: Tensor, padding_mask: Tensor | None = None
    ) -> Tensor:
        """The same of images as `embed_image` gives them; one alone (1, 1 + N, D) is looked at by all texts."""
        states, seen = image
        texts = len(token_ids)
        shared = states.expand(texts, -1, -1), None if seen is None else seen.expand(texts, -1)
        return exact(self.rank_output, self.pooled(shared, token_ids, padding_mask))[:, 0]
