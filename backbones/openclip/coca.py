"""CoCa's captions (Yu et al., 2022), as LAION's models and open_clip make them.

The network is open_clip's; its words are read one by one here. The text tower's words see those before them, and so do the
decoder's, which look at the image between; keys and values of the words are kept, and those of an image's tokens are computed
once and shared by all of its beams. open_clip computes all of it anew for every beam and word.

The search is that of open_clip 2.16 with transformers 4.26, of the time when the models came out: it sums up the logits
themselves, not log-probabilities. Later versions of open_clip do it as well where transformers still has what they need, but
transformers then divided by another length, and newer versions hide the word behind an id 0 ("!") from the words after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beit3_bench.backbones import beam_search
from beit3_bench.backbones.beam_search import Hypothesis, Texts, Width, repeated, without
from beit3_bench.backbones.word_cache import Cache
from beit3_bench.errors import BenchError

Looked = tuple[tuple[Tensor, Tensor], ...]
"""Keys and values of the image's tokens per layer, (images, heads, N, head width)."""


@dataclass(frozen=True)
class GroupedBeams:
    """The defaults are those of open_clip's `CoCa.generate`, which CLIP_benchmark leaves as they are.

    num_beams: of all groups.  num_beam_groups: groups that search side by side; without a penalty of diversity, as in
        open_clip, all of them come to the same texts, and one is searched.
    max_length, min_length: tokens, start token included, the end token not (``seq_len``, ``min_seq_len``).
    length_penalty: a hypothesis scores (sum of logits) / length ** length_penalty.
    repetition_penalty: logits of tokens that a beam holds already are divided by it, negative ones multiplied.
    diversity_penalty: what a token's logit loses per beam of an earlier group that chose it in the same step.
    """

    num_beams: int = 6
    num_beam_groups: int = 3
    max_length: int = 30
    min_length: int = 5
    length_penalty: float = 1.0
    repetition_penalty: float = 1.0
    diversity_penalty: float = 0.0

    def with_values(self, **values: Any) -> GroupedBeams:
        """With those that are not None. Another number of beams without a number of groups is searched in as many groups as
        before where that divides it, else in one.
        """
        given = {name: value for name, value in values.items() if value is not None}
        beams = given.get("num_beams", self.num_beams)
        if "num_beam_groups" not in given and beams % self.num_beam_groups:
            given["num_beam_groups"] = 1
        return GroupedBeams(**{**vars(self), **given})

    def check(self, positions: int) -> None:
        """Raise for what no search can do with a decoder of so many positions.

        Raises:
            BenchError: names the option.
        """
        for name in ("num_beams", "num_beam_groups"):
            if vars(self)[name] < 1:
                raise BenchError(f"{name} is {vars(self)[name]}; give 1 or more")
        if self.num_beams % self.num_beam_groups:
            raise BenchError(
                f"num_beams is {self.num_beams}, which {self.num_beam_groups} groups do not divide evenly; give a "
                "num_beam_groups that does"
            )
        if not 1 < self.max_length <= positions:
            raise BenchError(
                f"max_length is {self.max_length}; it counts the start token, and the model has positions for {positions}: give 2 "
                f"to {positions}"
            )
        if not 0 <= self.min_length < self.max_length:
            raise BenchError(
                f"min_length is {self.min_length}; give 0 to {self.max_length - 1}, below max_length {self.max_length}"
            )
        if self.repetition_penalty <= 0:
            raise BenchError(f"repetition_penalty is {self.repetition_penalty}; give a number above 0")
        if self.diversity_penalty < 0:
            raise BenchError(f"diversity_penalty is {self.diversity_penalty}; give 0 or more")

    @property
    def words(self) -> str:
        """As results say it."""
        return f"{self.num_beams} beams" + (f" in {self.num_beam_groups} groups" if self.num_beam_groups > 1 else "")

    @property
    def searched(self) -> Width:
        """The beams that are computed."""
        if self.diversity_penalty:
            return Width(self.num_beams, self.num_beam_groups, self.diversity_penalty)
        return Width(self.num_beams // self.num_beam_groups)


class CoCaCaptioning(nn.Module):
    """An open_clip CoCa that captions.

    coca: ``open_clip.CoCa`` with plain text blocks.  start, end: token ids.  pieces: ids from there on are never chosen, since
        the tokenizer has no piece for them.
    beams: how captions are searched where nothing else is said.
    """

    def __init__(self, coca: nn.Module, start: int, end: int, pieces: int, beams: GroupedBeams):
        super().__init__()
        self.coca: Any = coca
        self.start, self.end, self.pieces, self.beams = start, end, pieces, beams

    @property
    def positions(self) -> int:
        """Longest text."""
        return min(self.coca.text.context_length, self.coca.text_decoder.context_length)

    def looked(self, images: Tensor) -> Looked:
        """images float32 (B, 3, S, S), normalised."""
        _, tokens = self.coca.visual(images)
        return tuple(self._keys(block, tokens) for block in self.coca.text_decoder.cross_attn)

    def logits(self, token_ids: Tensor, looked: Looked, cache: Cache) -> Tensor:
        """Logits (rows, t, vocabulary) behind each of the newest words (rows, t), whose keys and values join those of the words before.

        The rows of an image stand behind one another.
        """
        text, decoder = self.coca.text, self.coca.text_decoder
        before, length = cache.length, token_ids.shape[1]
        mask = None
        if length > 1:
            mask = torch.ones(length, before + length, dtype=torch.bool, device=token_ids.device).tril(before)
        x = text.token_embedding(token_ids) + text.positional_embedding[before : before + length]
        layer = 0
        for block in text.transformer.resblocks:
            x = _read(block, x, mask, cache, layer)
            layer += 1
        for block, cross, (keys, values) in zip(decoder.resblocks, decoder.cross_attn, looked, strict=True):
            x = _read(block, x, mask, cache, layer)
            x = _look(cross, x, keys, values)
            layer += 1
        with torch.autocast(x.device.type, enabled=False):  # eight bits of a logit make ties
            return decoder.ln_final(x.to(decoder.text_projection.dtype)) @ decoder.text_projection

    def hypotheses(self, images: Tensor, beams: GroupedBeams | None = None) -> list[Hypothesis]:
        """The best caption of each image, float32 (B, 3, S, S), normalised."""
        beams = beams or self.beams
        if len(images) == 0:
            return []
        with torch.no_grad():
            reader = _Reader(self, self.looked(images), beams)
        return beam_search.search(
            reader, [self.start], self.end, beams.searched, beams.max_length, beams.length_penalty, images.device
        )

    def generate(
        self,
        images: Tensor,
        num_beams: int | None = None,
        max_length: int | None = None,
        length_penalty: float | None = None,
        num_beam_groups: int | None = None,
        min_length: int | None = None,
        repetition_penalty: float | None = None,
        diversity_penalty: float | None = None,
    ) -> list[list[int]]:
        """Token ids of the best caption of each image: start token, words, and the end token where it was reached. None = `beams`.

        Raises:
            BenchError: a value that cannot be; see `GroupedBeams`.
        """
        asked = self.beams.with_values(
            num_beams=num_beams,
            max_length=max_length,
            length_penalty=length_penalty,
            num_beam_groups=num_beam_groups,
            min_length=min_length,
            repetition_penalty=repetition_penalty,
            diversity_penalty=diversity_penalty,
        )
        asked.check(self.positions)
        return [hypothesis.ids for hypothesis in self.hypotheses(images, asked)]

    def forward(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Logits (B, L, vocabulary) of the next word behind each of ``token_ids`` (B, L), start token first."""
        return self.logits(token_ids, self.looked(images), Cache())

    @staticmethod
    def _keys(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = _projected(block.attn, block.ln_1_kv(tokens), 1, 3)
        return keys, values


class _Reader(beam_search.Decoder):
    """Captions of a batch, half-way; words score logits."""

    def __init__(self, model: CoCaCaptioning, looked: Looked, beams: GroupedBeams):
        self.model, self.looked, self.beams = model, looked, beams
        self.cache = Cache()

    @property
    def samples(self) -> int:
        return len(self.looked[0][0])

    def step(self, words: Tensor, texts: Texts) -> Tensor:
        logits = self.model.logits(words, self.looked, self.cache)[:, -1].float()
        if self.model.pieces < logits.shape[-1]:
            logits[:, self.model.pieces :] = float("-inf")
        if len(texts[0]) < self.beams.min_length:
            logits = without(logits, self.model.end)
        return repeated(logits, texts, self.beams.repetition_penalty)

    def select(self, rows: Tensor, samples: Tensor | None) -> None:
        self.cache.select(rows)
        if samples is not None:
            self.looked = tuple((keys[samples], values[samples]) for keys, values in self.looked)


# ---- open_clip's `ResidualAttentionBlock`, on the newest words alone ------------------------------------------------------------


def _projected(attention: nn.MultiheadAttention, x: Tensor, first: int, last: int) -> list[Tensor]:
    """Of query, key and value those from ``first`` to before ``last``: (B, T, D) -> (B, heads, T, head width) each."""
    rows = slice(first * attention.embed_dim, last * attention.embed_dim)
    bias = attention.in_proj_bias
    parts = F.linear(x, attention.in_proj_weight[rows], None if bias is None else bias[rows])
    split = parts.unflatten(-1, (last - first, attention.num_heads, -1)).movedim(1, 3)
    return list(split.unbind(1))


def _read(block: Any, x: Tensor, mask: Tensor | None, cache: Cache, layer: int) -> Tensor:
    """Self-attention of words (rows, t, D); mask: bool (t, words so far), True = is seen."""
    q, keys, values = _projected(block.attn, block.ln_1(x), 0, 3)
    keys, values = cache.extend(layer, keys, values)
    heads = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return _finished(block, x, heads.transpose(1, 2).flatten(2))


def _look(block: Any, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of words (images x rows, t, D) to their image's keys: the rows of an image are queries of one attention."""
    (q,) = _projected(block.attn, block.ln_1(x).view(len(keys), -1, x.shape[-1]), 0, 1)
    heads = F.scaled_dot_product_attention(q, keys, values)
    return _finished(block, x, heads.transpose(1, 2).reshape(x.shape))


def _finished(block: Any, x: Tensor, heads: Tensor) -> Tensor:
    """Output projection, residual and feed-forward."""
    x = x + block.ls_1(block.attn.out_proj(heads))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def supports(coca: Any) -> bool:
    """Whether the text side of a CoCa is of the blocks that are read here."""
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer

    if not isinstance(coca.text, TextTransformer):
        return False
    decoder = coca.text_decoder
    blocks: Sequence[Any] = [*coca.text.transformer.resblocks, *decoder.resblocks, *decoder.cross_attn]
    causal = coca.text.attn_mask is not None and coca.text.cls_emb is not None
    return causal and all(type(block) is ResidualAttentionBlock for block in blocks)
