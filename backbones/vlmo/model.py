"""VLMo (Bao et al., 2022; official code: microsoft/unilm, folder `vlmo`): one attention for all tokens, and a feed-forward
expert for each modality. Heads: see `heads`.

A sequence here is an image and then a text, the other way round than in the official code: the position biases of a shorter
text are then the upper left corner of those of the longest, and padding stands at the end, where it is left out of the keys
instead of being masked. No value depends on the order, as positions are told apart by their biases or embeddings alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones.packing import linear_part
from beit3_bench.backbones.patches import embed_patches
from beit3_bench.backbones.vlmo.config import VLMoConfig, image_rows
from beit3_bench.errors import BenchError

EPS, TEXT_EPS = 1e-6, 1e-12
"""Of the LayerNorms of the transformer, and of the text embedding (BERT's)."""
_ALIGNED = 16  # elements to which rows of biases are laid out, for the attention kernels of CUDA


class Group(NamedTuple):
    """Rows ``start`` to ``stop`` of a batch have ``keys`` tokens that are no padding."""

    start: int
    stop: int
    keys: int


class Attention(nn.Module):
    """Attention with biases of queries and values, none of keys (their third of ``qkv.bias`` is zero)."""

    def __init__(self, config: VLMoConfig):
        super().__init__()
        self.num_heads, self.dim = config.num_heads, config.embed_dim
        self.qkv = nn.Linear(self.dim, 3 * self.dim)
        self.proj = nn.Linear(self.dim, self.dim)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, T, n * D) -> n of (B, heads, T, head width)."""
        split = x.unflatten(-1, (-1, self.num_heads, self.dim // self.num_heads))
        return split.permute(2, 0, 3, 1, 4).unbind(0)

    def project(self, x: Tensor, only: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v; with ``only`` the query of that token alone."""
        if only is None:
            q, k, v = self.heads(self.qkv(x))
            return q, k, v
        (q,) = self.heads(linear_part(self.qkv, x[:, only : only + 1], 0, self.dim))
        k, v = self.heads(linear_part(self.qkv, x, self.dim, 3 * self.dim))
        return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, groups: list[Group]) -> Tensor:
    """softmax(q k^T / sqrt(width) + bias) v over the keys that are no padding; bias (heads, queries, keys)."""
    parts = []
    for start, stop, keys in groups:
        # A mask of one batch entry is broadcast, so that biases are never copied for every image.
        mask = None if bias is None else bias[None, :, :, :keys]
        rows = slice(start, stop)
        parts.append(F.scaled_dot_product_attention(q[rows], k[rows, :, :keys], v[rows, :, :keys], attn_mask=mask))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Expert(nn.Module):
    """fc2(gelu(fc1(x))), erf GELU."""

    def __init__(self, config: VLMoConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """One layer; ``gamma_1`` and ``gamma_2`` are None without layer scale, ``mlp_vl`` below the first vision-language layer."""

    def __init__(self, config: VLMoConfig, index: int):
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(config)
        for name in ("gamma_1", "gamma_2"):
            self.register_parameter(name, nn.Parameter(torch.empty(dim)) if config.layer_scale else None)
        self.has_vl = index >= config.vl_start
        for expert in ("text", "imag", "vl") if self.has_vl else ("text", "imag"):
            self.add_module(f"norm2_{expert}", nn.LayerNorm(dim, eps=EPS))
            self.add_module(f"mlp_{expert}", Expert(config))

    def project(self, x: Tensor, only: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised, and projected to q, k and v."""
        return self.attn.project(self.norm1(x), only)

    def finish(self, x: Tensor, heads: Tensor, image_tokens: int, vl: bool) -> Tensor:
        """What follows attention: (B, T, D) and (B, heads, T, head width) -> (B, T, D)."""
        x = _add(x, self.attn.proj(heads.transpose(1, 2).flatten(2)), self.gamma_1)
        if vl and self.has_vl:
            return self._expert(x, self.norm2_vl, self.mlp_vl)
        if image_tokens == x.shape[1]:
            return self._expert(x, self.norm2_imag, self.mlp_imag)
        if image_tokens == 0:
            return self._expert(x, self.norm2_text, self.mlp_text)
        image = self._expert(x[:, :image_tokens], self.norm2_imag, self.mlp_imag)
        return torch.cat([image, self._expert(x[:, image_tokens:], self.norm2_text, self.mlp_text)], dim=1)

    def _expert(self, x: Tensor, norm: nn.Module, mlp: nn.Module) -> Tensor:
        return _add(x, mlp(norm(x)), self.gamma_2)

    def forward(
        self, x: Tensor, bias: Tensor | None, groups: list[Group], image_tokens: int, vl: bool, only: int | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D), of which the first ``image_tokens`` tokens are the image's.

        Args:
            bias: (heads, T, T).  groups: see `Group`.
            vl: use the vision-language expert, where this layer has it.
            only: position of the token whose state alone is computed: (B, 1, D).
        """
        q, k, v = self.project(x, only)
        if only is not None:
            x, bias = x[:, only : only + 1], None if bias is None else bias[:, only : only + 1]
            image_tokens = int(only < image_tokens)
        return self.finish(x, attend(q, k, v, bias, groups), image_tokens, vl)


def _add(x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
    return x + branch if gamma is None else torch.addcmul(x, branch.to(x.dtype), gamma)


class TextEmbeddings(nn.Module):
    """Words, a token type and, without relative positions, positions; one LayerNorm over their sum (BERT)."""

    def __init__(self, config: VLMoConfig):
        super().__init__()
        dim, self.relative = config.embed_dim, config.relative
        self.word_embeddings = _table(config.vocab_size, dim)
        self.position_embeddings = _table(config.text_rows, dim)
        self.token_type_embeddings = _table(2, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=TEXT_EPS)

    def forward(self, token_ids: Tensor) -> Tensor:
        x = self.word_embeddings(token_ids) + self.token_type_embeddings.weight[0]
        if not self.relative:
            x = x + self.position_embeddings.weight[: token_ids.shape[1]]
        return self.LayerNorm(x)


def _table(rows: int, dim: int) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.empty(rows, dim), freeze=False)


class PatchEmbedding(nn.Module):
    """Official name of the patch convolution."""

    def __init__(self, config: VLMoConfig):
        super().__init__()
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)


class Transformer(nn.Module):
    """CLS, patches, absolute image positions where there are no relative ones, layers and the final norm."""

    def __init__(self, config: VLMoConfig):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        self.patch_embed = PatchEmbedding(config)
        positions = None if config.relative else nn.Parameter(torch.empty(1, config.image_tokens, config.embed_dim))
        self.register_parameter("pos_embed", positions)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, eps=EPS)


class Pooler(nn.Module):
    """tanh(dense(first token of the text))."""

    def __init__(self, dim: int):
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, first: Tensor) -> Tensor:
        return torch.tanh(self.dense(first))


def relative_positions(grid: int, text_length: int, initial_text_length: int) -> Tensor:
    """Row of the bias table for every pair (query, key) of an image and a text behind it: int64 (T, T).

    Distances of patches are query minus key, those of words key minus query.
    """
    patches, first_text = grid**2, image_rows(grid)
    length, size = 1 + patches, 1 + patches + text_length
    index = torch.empty(size, size, dtype=torch.long)
    y, x = (p.flatten() for p in torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij"))
    vertical, horizontal = y[:, None] - y[None, :] + grid - 1, x[:, None] - x[None, :] + grid - 1
    index[1:length, 1:length] = vertical * (2 * grid - 1) + horizontal
    words = torch.arange(text_length)
    index[length:, length:] = first_text + 2 + (words[None, :] - words[:, None]) + initial_text_length - 2
    last = first_text + 2 * initial_text_length + 2
    index[length:, :length] = first_text
    index[:length, length:] = first_text + 1
    for start, stop, end in ((0, length, first_text), (length, size, last)):
        if start < stop:
            index[start, start:stop] = end - 3
            index[start:stop, start] = end - 2
            index[start, start] = end - 1
    return index


class VLMo(nn.Module):
    """The encoder; heads are subclasses.

    output_layer: official name of the weights whose rows are the outputs of a classifier; empty for heads that are none.
    """

    output_layer = ""

    def __init__(self, config: VLMoConfig):
        super().__init__()
        self.config = config
        self.text_embeddings = TextEmbeddings(config)
        self.token_type_embeddings = _table(config.token_types, config.embed_dim)
        self.transformer = Transformer(config)
        self.pooler = Pooler(config.embed_dim)
        table = torch.empty(config.bias_rows, config.num_heads * config.depth) if config.relative else None
        self.register_parameter("relative_position_bias_table", None if table is None else nn.Parameter(table))
        self._biases: dict[str, tuple[object, Tensor]] = {}

    # ---- embeddings -----------------------------------------------------------------------------------------------

    def embed_image(self, images: Tensor, token_type: int = 1) -> Tensor:
        """float32 (B, 3, S, S), normalised -> (B, 1 + patches, D)."""
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            raise BenchError(
                f"the model takes images of {size}x{size} pixels, got {images.shape[-2]}x{images.shape[-1]}; load the checkpoint with "
                f"--image-size {images.shape[-1]}"
            )
        patches = embed_patches(self.transformer.patch_embed.proj, images)
        x = torch.cat([self.transformer.cls_token.expand(len(images), -1, -1), patches], dim=1)
        if self.transformer.pos_embed is not None:
            x = x + self.transformer.pos_embed
        return x + self.token_type_embeddings.weight[token_type]

    def embed_text(self, token_ids: Tensor) -> Tensor:
        """int64 (B, L) -> (B, L, D)."""
        if token_ids.shape[1] > self.config.max_text_length:
            raise BenchError(
                f"a text of {token_ids.shape[1]} tokens is longer than the {self.config.max_text_length} of this model; "
                "load it with another max_text_length, or cut the text"
            )
        return self.text_embeddings(token_ids) + self.token_type_embeddings.weight[0]

    # ---- position biases ------------------------------------------------------------------------------------------

    def biases(self, image: bool, text_length: int) -> list[Tensor | None]:
        """Per layer (heads, T, T) of an image, a text, or both; None without relative positions.

        Kept from one call to the next, for the longest text, while nothing is trained: as much memory as the official forward
        pass takes for them each time.
        """
        table, config = self.relative_position_bias_table, self.config
        if table is None:
            return [None] * config.depth
        kind = ("image" if text_length == 0 else "both") if image else "text"
        device = table.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else table.dtype
        key = (table.device, dtype, table.data_ptr(), 0 if table.is_inference() else table._version)
        held, layers = self._biases.get(kind, (None, None))
        if layers is None or held != key:
            layers = self._all_biases(kind).to(dtype)
            if not torch.is_grad_enabled():
                self._biases[kind] = (key, layers)
        tokens = (config.image_tokens if image else 0) + text_length
        return [layer[:, :tokens, :tokens] for layer in layers]

    def _all_biases(self, kind: str) -> Tensor:
        """(layers, heads, T, T) with rows laid out to a multiple of `_ALIGNED`."""
        config, table = self.config, self.relative_position_bias_table
        index = relative_positions(
            config.grid, 0 if kind == "image" else config.max_text_length, config.initial_text_length
        )
        if kind == "text":
            index = index[config.image_tokens :, config.image_tokens :]
        size = len(index)
        index = F.pad(index, (0, -size % _ALIGNED)).flatten().to(table.device)
        return table.t().contiguous()[:, index].unflatten(1, (size, -1)).unflatten(0, (config.depth, -1))

    # ---- encoding -------------------------------------------------------------------------------------------------

    def encode(
        self, image: Tensor | None, text: Tensor | None, lengths: list[int] | None, vl: bool, only: int | None = None
    ) -> Tensor:
        """Embeddings through all layers: (B, N, D) and (B, L, D) -> (B, N + L, D), before the final norm.

        Args:
            lengths: tokens of each text without padding; None = no padding.
            vl: use vision-language experts: with an image and a text (and in pre-training beside the other experts).
            only: position of the token whose last state alone is needed: (B, 1, D).
        """
        parts = [x for x in (image, text) if x is not None]
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        image_tokens = 0 if image is None else image.shape[1]
        order, groups = _groups(lengths, len(x), image_tokens, x.shape[1])
        x = x if order is None else x[order]
        biases = self.biases(image is not None, 0 if text is None else text.shape[1])
        for block, bias in zip(self.transformer.blocks, biases, strict=True):
            last = block is self.transformer.blocks[-1]
            x = block(x, bias, groups, image_tokens, vl, only if last else None)
        if order is None:
            return x
        return x[torch.argsort(torch.tensor(order)).to(x.device)]

    def image_state(self, images: Tensor) -> Tensor:
        """CLS behind the final norm: (B, 3, S, S) -> (B, D)."""
        return self.transformer.norm(self.encode(self.embed_image(images), None, None, vl=False, only=0))[:, 0]

    def text_state(self, token_ids: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """[CLS] behind the final norm: (N, L) -> (N, D)."""
        states = self.encode(None, self.embed_text(token_ids), lengths_of(padding_mask), vl=False, only=0)
        return self.transformer.norm(states)[:, 0]

    def fused_state(self, image: Tensor, token_ids: Tensor, padding_mask: Tensor | None) -> Tensor:
        """[CLS] of texts about images, behind the final norm; image: embeddings (B, N, D)."""
        text = self.embed_text(token_ids)
        states = self.encode(image, text, lengths_of(padding_mask), vl=True, only=image.shape[1])
        return self.transformer.norm(states)[:, 0]


def lengths_of(padding_mask: Tensor | None) -> list[int] | None:
    """Tokens of each text that are no padding.

    Raises:
        BenchError: padding before a token.
    """
    if padding_mask is None:
        return None
    kept = ~padding_mask.bool()
    lengths = kept.sum(dim=1)
    if not torch.equal(kept, torch.arange(kept.shape[1], device=kept.device) < lengths[:, None]):
        raise BenchError("padding stands before a token; give texts that are padded at their end")
    return lengths.tolist()


def _groups(
    lengths: list[int] | None, batch: int, image_tokens: int, size: int
) -> tuple[list[int] | None, list[Group]]:
    """An order that puts texts of one length side by side (None = as they are), and the groups in it."""
    if lengths is None or len(set(lengths)) <= 1:
        return None, [Group(0, batch, size if not lengths else image_tokens + lengths[0])]
    order = sorted(range(batch), key=lambda n: lengths[n])
    groups: list[Group] = []
    for place, n in enumerate(order):
        keys = image_tokens + lengths[n]
        if groups and groups[-1].keys == keys:
            groups[-1] = groups[-1]._replace(stop=place + 1)
        else:
            groups.append(Group(place, place + 1, keys))
    return order, groups
