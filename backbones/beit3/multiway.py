"""The Multiway Transformer: shared attention over all tokens, experts of their own for each modality.

Image and text tokens stay in two streams; they meet only in the keys and values of attention. Branch ``A`` holds the
vision weights and branch ``B`` the language weights, as in the official state dicts. Normalisation is Magneto's
(pre-LN plus a LayerNorm before ``out_proj`` and one before ``fc2``), all with eps 1e-5 (torchscale ``EncoderConfig``).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from beit3_bench.backbones.beit3.config import MAX_TEXT_ROWS, POSITION_OFFSET, BEiT3Config
from beit3_bench.backbones.beit3.fused_norms import add_layer_norm, gelu_layer_norm, layer_norm
from beit3_bench.backbones.packing import linear_part
from beit3_bench.backbones.patches import embed_patches
from beit3_bench.errors import BenchError

Read = Literal["all", "first"]


class Streams(NamedTuple):
    """Hidden states of the two modalities: image (B, 1 + patches, D) and text (B, L, D); None where absent."""

    image: Tensor | None
    text: Tensor | None


class Multiway(nn.ModuleDict):
    """One module per branch: ``A`` and ``B`` (decoupled), or ``shared``; ``VL`` beside them where an expert is.

    `of` picks the module that serves a branch.
    """

    def of(self, branch: str) -> nn.Module:
        return self["shared"] if "shared" in self else self[branch]

    def norm(self, branch: str) -> nn.LayerNorm:
        """`of`, where the modules are LayerNorms."""
        return cast(nn.LayerNorm, self.of(branch))


class Attention(nn.Module):
    """Projections of multi-head attention: fused q, k, v (with biases), sub-LayerNorm, output."""

    def __init__(self, config: BEiT3Config):
        super().__init__()
        branches = ("shared",) if config.shared_attention else ("A", "B")
        dim = config.embed_dim
        self.num_heads, self.dim = config.num_heads, dim
        self.qkv = Multiway({b: nn.Linear(dim, 3 * dim) for b in branches})
        self.inner_attn_ln = Multiway({b: nn.LayerNorm(dim, eps=config.layer_norm_eps) for b in branches})
        self.out_proj = Multiway({b: nn.Linear(dim, dim) for b in branches})

    def heads(self, x: Tensor) -> Tensor:
        """(B, T, n * D) -> (n, B, heads, T, head_dim)."""
        batch, length, width = x.shape
        return x.view(batch, length, width // self.dim, self.num_heads, self.dim // self.num_heads).permute(
            2, 0, 3, 1, 4
        )

    def project(self, branch: str, x: Tensor, first_query: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each (B, heads, T, head_dim); with ``first_query`` the query of the first token only."""
        qkv = cast(nn.Linear, self.qkv.of(branch))
        if not first_query:
            q, k, v = self.heads(qkv(x)).unbind(0)
            return q, k, v
        (q,) = self.heads(linear_part(qkv, x[:, :1], 0, self.dim)).unbind(0)
        k, v = self.heads(linear_part(qkv, x, self.dim, 3 * self.dim)).unbind(0)
        return q, k, v

    def merge(self, branch: str, heads: Tensor) -> Tensor:
        """(B, heads, T, head_dim) -> sub-LayerNorm -> out_proj -> (B, T, D)."""
        x = heads.transpose(1, 2).flatten(2)
        return self.out_proj.of(branch)(layer_norm(self.inner_attn_ln.norm(branch), x))


class FeedForward(nn.Module):
    """fc2(LayerNorm(gelu(fc1(x)))) with the exact (erf) GELU."""

    def __init__(self, config: BEiT3Config):
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.ffn_dim)
        self.ffn_layernorm = nn.LayerNorm(config.ffn_dim, eps=config.layer_norm_eps)
        self.fc2 = nn.Linear(config.ffn_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu_layer_norm(self.ffn_layernorm, self.fc1(x)))


class Layer(nn.Module):
    """One block: joint attention, then the feed-forward expert of each stream."""

    def __init__(self, config: BEiT3Config, index: int):
        super().__init__()
        attention_branches = ("shared",) if config.shared_attention else ("A", "B")
        self.has_vl = index >= config.depth - config.vl_layers
        experts = ("A", "B", "VL") if self.has_vl else ("A", "B")
        norm = lambda: nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)  # noqa: E731
        self.self_attn = Attention(config)
        self.self_attn_layer_norm = Multiway({b: norm() for b in attention_branches})
        self.ffn = Multiway({b: FeedForward(config) for b in experts})
        self.final_layer_norm = Multiway({b: norm() for b in experts})
        # torchscale: linspace(0, rate, layers)[depth]
        self.drop_path_rate = config.drop_path_rate * index / max(config.depth - 1, 1)

    def keep(self, like: Tensor) -> Tensor | None:
        """Stochastic depth: a (B, 1, 1) factor, one draw per sample for both streams; None when nothing is dropped."""
        if not self.training or self.drop_path_rate == 0.0:
            return None
        kept = 1.0 - self.drop_path_rate
        return like.new_empty(like.shape[0], 1, 1).bernoulli_(kept).div_(kept)

    def feed_forward(self, x: Tensor, branch: str, factor: Tensor | None) -> Tensor:
        out = self.ffn.of(branch)(layer_norm(self.final_layer_norm.norm(branch), x))
        return x + (out if factor is None else out * factor)

    def after_attention(self, x: Tensor, out: Tensor, branch: str) -> Tensor:
        """x + out, and `feed_forward` behind it, where nothing is dropped."""
        x, normed = add_layer_norm(self.final_layer_norm.norm(branch), x, out)
        return x + self.ffn.of(branch)(normed)

    def forward(
        self,
        image: Tensor | None,
        text: Tensor | None,
        mask: Tensor | None,
        image_alone: bool = False,
        first: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """One layer on two streams.

        Args:
            image: (B, N, D) or None.  text: (B, L, D) or None.
            mask: bool, broadcastable to (B, heads, queries, N + L), True = may attend; applied to text queries, and to image
                queries too unless ``image_alone``.
            image_alone: image queries see image keys only (captioning).
            first: compute the first token of each stream only (the last layer of tasks that read nothing else).
        """
        attn, norm = self.self_attn, self.self_attn_layer_norm
        if first and mask is not None:
            mask = mask[:, :, :1]
        parts = {b: x for b, x in (("A", image), ("B", text)) if x is not None}
        q, k, v = {}, {}, {}
        for b, x in parts.items():
            q[b], k[b], v[b] = attn.project(b, layer_norm(norm.norm(b), x), first)
        keys = torch.cat(list(k.values()), dim=2) if len(k) > 1 else next(iter(k.values()))
        values = torch.cat(list(v.values()), dim=2) if len(v) > 1 else next(iter(v.values()))
        attention_factor = self.keep(next(iter(parts.values())))
        ffn_factor = self.keep(next(iter(parts.values())))
        for b, x in parts.items():
            if b == "A" and image_alone:
                heads = F.scaled_dot_product_attention(q[b], k[b], v[b])
            else:
                heads = F.scaled_dot_product_attention(q[b], keys, values, attn_mask=mask)
            out = attn.merge(b, heads)
            x = x[:, :1] if first else x
            expert = "VL" if self.has_vl and len(parts) == 2 else b
            if attention_factor is None and ffn_factor is None:
                parts[b] = self.after_attention(x, out, expert)
            else:
                x = x + (out if attention_factor is None else out * attention_factor)
                parts[b] = self.feed_forward(x, expert, ffn_factor)
        return parts.get("A"), parts.get("B")

    def image_states(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One layer on an image stream that sees itself alone: (B, N, D) -> the next states, and the keys and values
        (B, heads, N, head_dim) that texts attend to.
        """
        q, k, v = self.self_attn.project("A", layer_norm(self.self_attn_layer_norm.norm("A"), x))
        out = self.self_attn.merge("A", F.scaled_dot_product_attention(q, k, v))
        return self.after_attention(x, out, "VL" if self.has_vl else "A"), k, v


class VisionEmbedding(nn.Module):
    """Patches in row-major order behind a CLS token; positions are added by the encoder."""

    def __init__(self, config: BEiT3Config):
        super().__init__()
        self.image_size = config.image_size
        self.proj = nn.Conv2d(3, config.embed_dim, config.patch_size, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))

    def forward(self, images: Tensor, masked_patches: Tensor | None = None) -> Tensor:
        """images float (B, 3, S, S); masked_patches bool (B, patches), True = replaced by the mask token."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise BenchError(
                f"the model takes images of {self.image_size}x{self.image_size} pixels, got "
                f"{images.shape[-2]}x{images.shape[-1]}; load the checkpoint with --image-size {images.shape[-1]}"
            )
        x = embed_patches(self.proj, images)
        if masked_patches is not None:
            w = masked_patches.unsqueeze(-1).to(x.dtype)
            x = x * (1 - w) + self.mask_token * w
        # Under autocast the patches are half precision; CLS is not rounded with them, the concatenation promotes.
        return torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)


def table(rows: int, dim: int) -> nn.Embedding:
    """An embedding, N(0, 1); on the meta device no numbers are drawn (PyTorch would import its compiler, a second, to do so)."""
    weight = torch.empty(rows, dim)
    return nn.Embedding.from_pretrained(weight if weight.is_meta else weight.normal_(), freeze=False)


class Encoder(nn.Module):
    """Positions, layers and the final LayerNorm (absent for heads that bring their own norm)."""

    def __init__(self, config: BEiT3Config, final_norm: bool):
        super().__init__()
        self.embed_positions = nn.ModuleDict(
            {
                "A": table(config.num_patches + 1 + POSITION_OFFSET, config.embed_dim),
                "B": table(MAX_TEXT_ROWS, config.embed_dim),
            }
        )
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.depth))
        self.layer_norm = (
            nn.ModuleDict({b: nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) for b in "AB"})
            if final_norm
            else None
        )

    def positions(self, branch: str) -> Tensor:
        """Rows of the position table from the first that is used, CLS or BOS."""
        return cast(nn.Embedding, self.embed_positions[branch]).weight[POSITION_OFFSET:]

    def finish(self, branch: str, x: Tensor) -> Tensor:
        """The final LayerNorm of a stream, where the model has one."""
        return x if self.layer_norm is None else self.layer_norm[branch](x)


class BEiT3(nn.Module):
    """Embeddings and encoder; what the official code calls ``beit3``.

    Args of `forward`:
        images: float32 (B, 3, S, S), normalised.  token_ids: int64 (B, L).
        padding_mask: (B, L), 1 or True = padding; None = no padding (saves the mask altogether).
        masked_patches: bool (B, patches).
        causal: captioning's mask: image rows see the image only; text row t sees the image and text <= t.
        read: ``"first"`` returns only the first token of each stream and skips the rest of the last layer's work.
    """

    def __init__(self, config: BEiT3Config, final_norm: bool = True):
        super().__init__()
        self.config = config
        self.text_embed = table(config.vocab_size, config.embed_dim)
        self.vision_embed = VisionEmbedding(config)
        self.encoder = Encoder(config, final_norm)

    def embed_image(self, images: Tensor, masked_patches: Tensor | None = None) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + patches, D), positions added."""
        x = self.vision_embed(images, masked_patches)
        return x + self.encoder.positions("A")

    def embed_text(self, token_ids: Tensor, padding_mask: Tensor | None = None, start: int = 0) -> Tensor:
        """(B, L) -> (B, L, D); positions start at ``start``; padded positions are zeroed once, before the first layer."""
        length = token_ids.shape[1]
        if start + length > MAX_TEXT_ROWS - POSITION_OFFSET:
            raise BenchError(
                f"a text of {start + length} tokens is longer than the {MAX_TEXT_ROWS - POSITION_OFFSET} positions of BEiT-3"
            )
        x = self.text_embed(token_ids) + self.encoder.positions("B")[start : start + length]
        return x if padding_mask is None else x.masked_fill(padding_mask.bool().unsqueeze(-1), 0.0)

    def attention_mask(
        self, padding_mask: Tensor | None, image_tokens: int, length: int, causal: bool, device: torch.device
    ) -> Tensor | None:
        """bool (B or 1, 1, L or 1, N + L), True = may attend; None when everything may."""
        if padding_mask is None and not causal:
            return None
        mask = torch.ones(1, 1, 1, image_tokens + length, dtype=torch.bool, device=device)
        if causal:
            see = torch.ones(length, image_tokens + length, dtype=torch.bool, device=device)
            see[:, image_tokens:] = see[:, image_tokens:].tril()
            mask = see[None, None]
        if padding_mask is not None:
            visible = F.pad(~padding_mask.bool(), (image_tokens, 0), value=True)
            mask = mask & visible[:, None, None, :]
        return mask

    def forward(
        self,
        images: Tensor | None = None,
        token_ids: Tensor | None = None,
        padding_mask: Tensor | None = None,
        masked_patches: Tensor | None = None,
        causal: bool = False,
        read: Read = "all",
        image_index: Tensor | None = None,
    ) -> Streams:
        """Encode images, texts, or image-text pairs; see the class for shapes.

        image_index: int64 (B,) maps each text to a row of ``images`` when several texts share an image, so that
            its patches are embedded once.
        """
        image = None if images is None else self.embed_image(images, masked_patches)
        if image is not None and image_index is not None:
            image = image[image_index]
        text = None if token_ids is None else self.embed_text(token_ids, padding_mask)
        mask = None
        if text is not None:
            mask = self.attention_mask(
                padding_mask, 0 if image is None else image.shape[1], text.shape[1], causal, text.device
            )
        last = len(self.encoder.layers) - 1
        for i, layer in enumerate(self.encoder.layers):
            # In training everything is computed: weights that no loss reads still get a (zero) gradient, as in the
            # official code, where AdamW then decays them.
            first = read == "first" and i == last and not self.training
            if self.config.checkpoint_activations and self.training:
                image, text = checkpoint(layer, image, text, mask, causal, first, use_reentrant=False)
            else:
                image, text = layer(image, text, mask, causal, first)
        image = None if image is None else self.encoder.finish("A", image)
        text = None if text is None else self.encoder.finish("B", text)
        if self.training and image is not None and text is not None:
            # One tensor for a moment: the stream that a loss does not read then has zero gradients and not none.
            image, text = torch.cat([image, text], dim=1).split([image.shape[1], text.shape[1]], dim=1)
        return Streams(image, text)
