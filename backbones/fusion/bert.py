"""One BERT for ALBEF's and BLIP's text encoders and decoders, under the files' names (official `xbert.py`, `med.py`,
`nlvr_encoder.py`).

Post-norm, erf GELU, LayerNorm eps 1e-12. Some layers look at an image (a decoder: at the states of a question) between their
self-attention and their feed-forward. What is looked at is projected to keys and values once (`keys_of`) and shared by as many
rows of texts as there are for it: candidates, answers, beams. Official masks add -10,000 to scores; that weight is 0 in float32,
and so is it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones.fusion.config import TextConfig
from beit3_bench.backbones.fusion.layout import TextLayout
from beit3_bench.backbones.word_cache import Cache

EPS = 1e-12


@dataclass(frozen=True)
class Context:
    """What a text looks at: per layer with cross-attention, keys and values of each source, (groups, heads, N, head width).

    layers: by number of layer; an image is one source, a pair of images two where a layer looks at both.
    padding: bool (groups, N), True = padding; None = nothing is padded.
    """

    layers: dict[int, tuple[tuple[Tensor, Tensor], ...]]
    padding: Tensor | None = None

    @property
    def groups(self) -> int:
        """Images, pairs of images or questions."""
        return len(next(iter(self.layers.values()))[0][0])

    @property
    def device(self) -> torch.device:
        return next(iter(self.layers.values()))[0][0].device

    def select(self, rows: Tensor) -> Context:
        """Some groups only, in the order of ``rows``."""
        layers = {n: tuple((k[rows], v[rows]) for k, v in sources) for n, sources in self.layers.items()}
        return Context(layers, None if self.padding is None else self.padding[rows])


class Projections(nn.Module):
    """Official name (`self`) of query, key and value."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context_width, width)
        self.value = nn.Linear(context_width, width)

    def split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, heads, T, head width)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.key(x)), self.split(self.value(x))


class Output(nn.Module):
    """dense, residual, LayerNorm."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class SelfAttention(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.self = Projections(config.width, config.heads, config.width)
        self.output = Output(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor | TextLayout | None, cache: Cache | None, layer: int) -> Tensor:
        """mask: bool, broadcast to (rows, heads, queries, keys), True = is seen; or which tokens of ``x`` are a text."""
        if isinstance(mask, TextLayout):
            return self.output(mask.by_group(self._within_texts(x, mask)), x)
        q, (k, v) = self.self.split(self.self.query(x)), self.self.keys(x)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(heads.transpose(1, 2).flatten(2), x)

    def _within_texts(self, x: Tensor, layout: TextLayout) -> Tensor:
        """(groups, tokens, D) -> (texts, L, D)."""
        q, k, v = (
            self.self.split(layout.by_text(part(x))) for part in (self.self.query, self.self.key, self.self.value)
        )
        heads = F.scaled_dot_product_attention(q, k, v, attn_mask=layout.seen)
        return heads.transpose(1, 2).flatten(2)


def look(projections: Projections, x: Tensor, keys: Tensor, values: Tensor, padding: Tensor | None) -> Tensor:
    """Attention of texts (groups x rows, T, D) to keys (groups, heads, N, head width): the rows of a group share its keys."""
    groups, tokens = len(keys), x.shape[1]
    q = projections.split(projections.query(x).view(groups, -1, x.shape[-1]))  # the rows of a group behind one another
    mask = None if padding is None else ~padding[:, None, None, :]
    heads = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return heads.transpose(1, 2).flatten(2).view(-1, tokens, x.shape[-1])


class CrossAttention(nn.Module):
    """Attention to one source."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.self = Projections(config.width, config.heads, config.context_width)
        self.output = Output(config.width, config.width)

    def keys(self, states: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        return (self.self.keys(states[0]),)

    def forward(self, x: Tensor, sources: Sequence[tuple[Tensor, Tensor]], padding: Tensor | None) -> Tensor:
        return self.output(look(self.self, x, *sources[0], padding), x)


class TwinOutput(nn.Module):
    """Two sources: their mean, or a learned layer of both without activation; then residual and LayerNorm."""

    def __init__(self, width: int, merges: bool):
        super().__init__()
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.merge_layer = nn.Linear(2 * width, width) if merges else None

    def forward(self, first: Tensor, second: Tensor, residual: Tensor) -> Tensor:
        first, second = self.dense0(first), self.dense1(second)
        if self.merge_layer is None:
            return self.LayerNorm((first + second) / 2 + residual)
        return self.LayerNorm(self.merge_layer(torch.cat([first, second], dim=-1)) + residual)


class TwinCrossAttention(nn.Module):
    """Attention to two sources, each with projections of its own (official `nlvr_encoder.py`)."""

    def __init__(self, config: TextConfig, merges: bool):
        super().__init__()
        self.self0 = Projections(config.width, config.heads, config.context_width)
        self.self1 = Projections(config.width, config.heads, config.context_width)
        self.output = TwinOutput(config.width, merges)

    def keys(self, states: Sequence[Tensor]) -> tuple[tuple[Tensor, Tensor], ...]:
        return self.self0.keys(states[0]), self.self1.keys(states[1])

    def forward(self, x: Tensor, sources: Sequence[tuple[Tensor, Tensor]], padding: Tensor | None) -> Tensor:
        first, second = (
            look(projections, x, *source, padding)
            for projections, source in zip((self.self0, self.self1), sources, strict=True)
        )
        return self.output(first, second, x)


class Intermediate(nn.Module):
    """Official name of a feed-forward's first half."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.ffn)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    def __init__(self, config: TextConfig, number: int):
        super().__init__()
        self.number = number
        self.attention = SelfAttention(config)
        self.crossattention: CrossAttention | TwinCrossAttention | None = None
        if number >= config.first_cross:
            if config.first_merge is None:
                self.crossattention = CrossAttention(config)
            else:
                self.crossattention = TwinCrossAttention(config, number >= config.first_merge)
        self.intermediate = Intermediate(config)
        self.output = Output(config.ffn, config.width)

    def forward(
        self, x: Tensor, mask: Tensor | TextLayout | None, context: Context | None, cache: Cache | None
    ) -> Tensor:
        x = self.attention(x, mask, cache, self.number)
        if context is not None and self.crossattention is not None:
            x = self.crossattention(x, context.layers[self.number], context.padding)
        return self.output(self.intermediate(x), x)


class Embeddings(nn.Module):
    """LayerNorm of words, positions and, where the file has any, token type 0."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.word_embeddings = _table(config.vocab_size, config.width)
        self.position_embeddings = _table(config.positions, config.width)
        self.token_type_embeddings = _table(config.token_types, config.width) if config.token_types else None
        self.LayerNorm = nn.LayerNorm(config.width, eps=EPS)

    def forward(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        x = self.word_embeddings(token_ids)
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings.weight[0]
        return self.LayerNorm(x + self.position_embeddings(positions))


def _table(rows: int, width: int) -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


class Layers(nn.Module):
    """Official name (`encoder`) of the layers."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, number) for number in range(config.depth))


class Bert(nn.Module):
    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)

    def embed(self, token_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """int64 (B, L) -> (B, L, D); positions: int64, broadcast to (B, L), else 0, 1, 2, ..."""
        if positions is None:
            positions = torch.arange(token_ids.shape[1], device=token_ids.device)
        return self.embeddings(token_ids, positions)

    def keys_of(self, *states: Tensor, padding: Tensor | None = None, alternate: bool = False) -> Context:
        """Keys and values of what texts look at.

        Args:
            states: (groups, N, context width) of each source.  padding: bool (groups, N), True = padding.
            alternate: of several sources, layers look at one after the other (official ALBEF: ``(layer - fusion_layer) % sources``).
        """
        layers = {}
        for layer in self.encoder.layer:
            if layer.crossattention is not None:
                turn = (layer.number - self.config.first_cross) % len(states)
                layers[layer.number] = layer.crossattention.keys([states[turn]] if alternate else list(states))
        return Context(layers, padding)

    def run(
        self,
        x: Tensor,
        mask: Tensor | TextLayout | None = None,
        context: Context | None = None,
        cache: Cache | None = None,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Layers ``start`` to ``stop`` over (rows, T, D).

        Args:
            mask: bool, broadcast to (rows, heads, queries, keys), True = is seen; or, where a row holds many texts, which.
            context: of as many groups as divide the rows, whose rows stand together; None = no layer looks at anything.
        """
        for layer in self.encoder.layer[start:stop]:
            x = layer(x, mask, context, cache)
        return x

    def forward(self, token_ids: Tensor, padding_mask: Tensor | None = None, context: Context | None = None) -> Tensor:
        """int64 (rows, L), padding_mask (rows, L), 1 or True = padding -> states (rows, L, D)."""
        return self.run(self.embed(token_ids), seen(padding_mask), context)


def seen(padding_mask: Tensor | None) -> Tensor | None:
    """padding_mask (rows, L), 1 or True = padding -> mask of attention (rows, 1, 1, L)."""
    return None if padding_mask is None else ~padding_mask.bool()[:, None, None, :]


class Transform(nn.Module):
    """dense, GELU, LayerNorm."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """Scores of the next word. Its weights are those of the word embeddings, and its bias has two names in a file."""

    def __init__(self, config: TextConfig, words: nn.Embedding):
        super().__init__()
        self.transform = Transform(config.width)
        self.bias = nn.Parameter(torch.empty(config.vocab_size))
        self.decoder = nn.Linear(config.width, config.vocab_size)
        self.decoder.weight, self.decoder.bias = words.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


class Heads(nn.Module):
    """Official name (`cls`)."""

    def __init__(self, config: TextConfig, words: nn.Embedding):
        super().__init__()
        self.predictions = Predictions(config, words)


class BertDecoder(nn.Module):
    """A BERT whose words see those before them, and predict the next."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.bert = Bert(config)
        self.cls = Heads(config, self.bert.embeddings.word_embeddings)

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) -> (..., vocabulary), in the precision of the weights, also under autocast: eight bits of a logit make ties."""
        predictions = self.cls.predictions
        with torch.autocast(states.device.type, enabled=False):
            return predictions(states.to(predictions.transform.dense.weight.dtype))

    def states(
        self, token_ids: Tensor, context: Context, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """States of whole sequences; mask: as of `Bert.run`, None = causal."""
        if mask is None:
            length = token_ids.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool, device=token_ids.device).tril()
        return self.bert.run(self.bert.embed(token_ids, positions), mask, context)

    def step(self, token_ids: Tensor, context: Context, cache: Cache) -> Tensor:
        """Logits (rows, vocabulary) behind the newest words (rows, t), whose keys and values join those of the words before."""
        before, length = cache.length, token_ids.shape[1]
        positions = torch.arange(before, before + length, device=token_ids.device)
        mask = None
        if length > 1:
            mask = torch.ones(length, before + length, dtype=torch.bool, device=token_ids.device).tril(before)
        x = self.bert.run(self.bert.embed(token_ids, positions), mask, context, cache)
        return self.logits(x[:, -1])
