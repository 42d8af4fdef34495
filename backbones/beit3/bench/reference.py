"""The reference path: the same weights, the work done as the official code does it.

One stream with a split position, every module applied to both parts and concatenated again (torchscale `MultiwayNetwork`);
q, k and v as three projections; attention by two batched products with a materialised float32 softmax; text padded to 64; an
image encoded once per caption (retrieval) or per beam (captioning), and beams that copy the image's keys and values.
It exists to be measured; `cases` checks that its outputs equal those of the real path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones.beit3.models import Captioning
from beit3_bench.backbones.beit3.multiway import BEiT3, FeedForward, Layer

TEXT_TOKENS = 64  # the official num_max_bpe_tokens: every text is padded to it
ALPHA = 1.0  # `residual_connection` multiplies by it, DeepNorm or not
NOT_ALLOWED = -1e8  # what the official code adds where its attention mask forbids


def _multiway(
    split: int, x: Tensor, vision: Callable[[Tensor], Tensor], language: Callable[[Tensor], Tensor]
) -> Tensor:
    """Branch A before the split position, branch B behind it; -1: A everywhere, 0: B everywhere."""
    if split == -1:
        return vision(x)
    if split == 0:
        return language(x)
    first, second = x.split([split, x.shape[1] - split], dim=1)
    return torch.cat([vision(first), language(second)], dim=1)


def _linear(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A linear layer as a plain product, also where the real path keeps packed weights."""
    linear = cast(nn.Linear, module)
    return lambda x: F.linear(x, linear.weight, linear.bias)


def _feed_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    ffn = cast(FeedForward, module)
    return lambda x: _linear(ffn.fc2)(ffn.ffn_layernorm(F.gelu(_linear(ffn.fc1)(x))))


def _attention(
    layer: Layer, x: Tensor, split: int, padding_mask: Tensor | None, bias: Tensor | None, cache: list[Tensor] | None
) -> Tensor:
    attn = layer.self_attn
    batch, length, dim = x.shape

    def project(part: int) -> Tensor:
        rows = slice(part * dim, (part + 1) * dim)
        a, b = attn.qkv.of("A"), attn.qkv.of("B")
        return _multiway(
            split,
            x,
            lambda t: F.linear(t, a.weight[rows], a.bias[rows]),
            lambda t: F.linear(t, b.weight[rows], b.bias[rows]),
        )

    def heads(t: Tensor) -> Tensor:
        return (
            t.view(batch, -1, attn.num_heads, dim // attn.num_heads)
            .transpose(1, 2)
            .reshape(batch * attn.num_heads, -1, dim // attn.num_heads)
        )

    q, k, v = heads(project(0)), heads(project(1)), heads(project(2))
    if cache is not None:
        if cache:
            k, v = torch.cat([cache[0], k], dim=1), torch.cat([cache[1], v], dim=1)
        cache[:] = [k, v]
    q *= (dim // attn.num_heads) ** -0.5
    weights = torch.bmm(q, k.transpose(1, 2))
    if bias is not None:
        weights = torch.nan_to_num(weights)
        weights += bias.unsqueeze(0)
    if padding_mask is not None:
        weights = weights.view(batch, attn.num_heads, length, -1)
        weights = weights.masked_fill(padding_mask[:, None, None, :], float("-inf")).view(
            batch * attn.num_heads, length, -1
        )
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).type_as(weights)
    out = torch.bmm(weights, v).view(batch, attn.num_heads, length, -1).transpose(1, 2).reshape(batch, length, dim)
    out = _multiway(split, out, attn.inner_attn_ln.of("A"), attn.inner_attn_ln.of("B"))
    return _multiway(split, out, _linear(attn.out_proj.of("A")), _linear(attn.out_proj.of("B")))


def encode(
    beit3: BEiT3,
    images: Tensor | None = None,
    token_ids: Tensor | None = None,
    padding_mask: Tensor | None = None,
    bias: Tensor | None = None,
    caches: list[list[Tensor]] | None = None,
    start: int = 0,
) -> Tensor:
    """Hidden states (B, tokens, D) of image, text, or both, all of them, as torchscale's `BEiT3.forward`."""
    parts = [] if images is None else [beit3.embed_image(images)]
    if token_ids is not None:
        parts.append(beit3.embed_text(token_ids, padding_mask, start))
    x = torch.cat(parts, dim=1)
    split = 0 if images is None else (-1 if token_ids is None else parts[0].shape[1])
    # `Encoder.forward` makes a mask of zeros where it is given none, and fills the scores by it in every layer; only the steps
    # of generation go without.
    padded = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    if padding_mask is not None:
        padded[:, x.shape[1] - padding_mask.shape[1] :] = padding_mask
    x = x * (1 - padded.unsqueeze(-1).type_as(x))
    mask = padded if caches is None else None
    for i, layer in enumerate(beit3.encoder.layers):
        norms, ffn = layer.final_layer_norm, layer.ffn
        h = _multiway(split, x, layer.self_attn_layer_norm.of("A"), layer.self_attn_layer_norm.of("B"))
        x = x * ALPHA + _attention(layer, h, split, mask, bias, None if caches is None else caches[i])
        h = _multiway(split, x, norms.of("A"), norms.of("B"))
        x = x * ALPHA + _multiway(split, h, _feed_forward(ffn.of("A")), _feed_forward(ffn.of("B")))
    final = beit3.encoder.layer_norm
    return x if final is None else _multiway(split, x, final["A"], final["B"])


def pad_to_64(token_ids: Tensor, padding_mask: Tensor | None, pad_id: int) -> tuple[Tensor, Tensor]:
    """Every text padded to the official length."""
    extra = TEXT_TOKENS - token_ids.shape[1]
    if padding_mask is None:
        padding_mask = torch.zeros_like(token_ids, dtype=torch.bool)
    return F.pad(token_ids, (0, extra), value=pad_id), F.pad(padding_mask.bool(), (0, extra), value=True)


def generate(
    model: Captioning, images: Tensor, num_beams: int, max_length: int, length_penalty: float
) -> list[list[int]]:
    """`CaptioningHandler.eval_batch`: images repeated per beam, caches of image and text copied whenever beams move."""
    config, beit3 = model.config, model.beit3
    batch, vocabulary = len(images), config.vocab_size
    assert config.mask_token_id is not None
    text = torch.full((batch * num_beams, max_length), config.mask_token_id, device=images.device)
    text[:, 0] = config.cls_token_id
    scores = torch.zeros(batch, num_beams, device=images.device)
    scores[:, 1:] = -1e9
    scores = scores.view(-1)
    best: list[tuple[float, list[int]]] = [(float("-inf"), [])] * batch
    done = [False] * batch
    caches: list[list[Tensor]] = [[] for _ in beit3.encoder.layers]
    repeated = images.repeat_interleave(num_beams, dim=0)
    tokens = config.num_patches + 1
    for length in range(2, max_length + 1):
        new = text[:, max(length - 2, 0) : length]
        total = tokens + length
        mask = torch.zeros(total, total, device=images.device)
        mask[:tokens, tokens:] = 1
        mask[tokens:, tokens:] = torch.ones(length, length, device=images.device).triu(1)
        bias = mask * NOT_ALLOWED
        hidden = encode(
            beit3,
            repeated if length == 2 else None,
            new,
            None,
            bias if length == 2 else bias[-2:],
            caches,
            0 if length == 2 else length - 2,
        )
        for cache in caches:  # the [MASK]'s own keys and values are dropped again
            cache[:] = [t[:, :-1] for t in cache]
        if length == max_length:
            break
        log_p = F.log_softmax(_linear(model.mlm_head)(hidden[:, -1]), dim=-1)
        if config.num_pieces < vocabulary:
            log_p[:, config.num_pieces :] = float("-inf")
        joint = (log_p + scores[:, None]).view(batch, num_beams * vocabulary)
        top, index = joint.topk(3 * num_beams, dim=1)
        chosen: list[tuple[float, int, int]] = []
        for i in range(batch):
            done[i] = done[i] or best[i][0] >= top[i].max().item() / (max_length - 1) ** length_penalty
            if done[i]:
                chosen += [(0.0, config.pad_token_id, 0)] * num_beams
                continue
            kept: list[tuple[float, int, int]] = []
            for score, place in zip(top[i].tolist(), index[i].tolist(), strict=True):
                beam, word = i * num_beams + place // vocabulary, place % vocabulary
                if word == config.sep_token_id or length + 1 == max_length:
                    if score / length**length_penalty > best[i][0]:
                        best[i] = (score / length**length_penalty, text[beam, :length].tolist())
                else:
                    kept.append((score, word, beam))
                if len(kept) == num_beams:
                    break
            chosen += kept or [(0.0, config.pad_token_id, 0)] * num_beams
        if all(done):
            break
        scores = torch.tensor([c[0] for c in chosen], device=images.device)
        parents = torch.tensor([c[2] for c in chosen], device=images.device)
        text = text[parents]
        text[:, length - 1] = torch.tensor([c[1] for c in chosen], device=images.device)
        for cache in caches:
            h = beit3.encoder.layers[0].self_attn.num_heads
            cache[:] = [t.unflatten(0, (-1, h))[parents].flatten(0, 1) for t in cache]
    return [[*ids, config.sep_token_id] for _, ids in best]
