"""Masked conditional generation: beam search that equals the official decoder and encodes each image once.

A caption grows by putting [MASK] behind the words so far and reading the prediction there (BEiT-3 paper, section 3.1.2;
official `CaptioningHandler.eval_batch`). Image states never depend on the text and word states never on later words,
so the image's keys and values are computed once and shared by all beams of the image (never copied), and each step
adds the keys and values of one word per beam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_bench.backbones.beit3.config import MAX_TEXT_ROWS, POSITION_OFFSET
from beit3_bench.backbones.beit3.fused_norms import layer_norm
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from beit3_bench.backbones.beit3.models import Captioning
    from beit3_bench.backbones.beit3.multiway import BEiT3

CANDIDATES_PER_BEAM = 3  # the official decoder looks at the best 3 x beams continuations of an image


@dataclass(frozen=True)
class Decoding:
    """How captions are searched.

    num_beams: hypotheses kept per image.
    max_length: longest token sequence, counting CLS, the trailing [MASK] and SEP as the official decoder does (so at
        most max_length - 3 words).
    length_penalty: a hypothesis scores (sum of log-probabilities) / length ** length_penalty.
    decoder: ``"official"`` keeps its quirks: ids are [CLS] words [MASK] [SEP], and at the length limit the last chosen word is
        scored but lost. ``"clean"``: [CLS] words [SEP], the last word is kept.
    """

    num_beams: int = 3
    max_length: int = 64
    length_penalty: float = 0.6
    decoder: str = "official"

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise BenchError(f"num_beams is {self.num_beams}; give 1 or more")
        if self.max_length < 3:
            raise BenchError(f"max_length is {self.max_length}; the shortest caption, CLS [MASK] SEP, needs 3")
        if self.max_length > MAX_TEXT_ROWS - POSITION_OFFSET:
            raise BenchError(
                f"max_length is {self.max_length}; BEiT-3 has positions for {MAX_TEXT_ROWS - POSITION_OFFSET} tokens"
            )
        if self.decoder not in ("official", "clean"):
            raise BenchError(f"decoder {self.decoder!r} is not known; give 'official' or 'clean'")


class Cache:
    """Keys and values per layer: the image's (B, heads, N, d), and the words' (B, beams, heads, t, d), which follow the beams."""

    def __init__(self, image_keys: list[Tensor], image_values: list[Tensor]):
        self.image_keys, self.image_values = image_keys, image_values
        self.word_keys: list[Tensor] = []
        self.word_values: list[Tensor] = []

    def append(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all words so far and of the two new tokens; the first new one (the word) is stored."""
        if len(self.word_keys) > index:
            keys = torch.cat([self.word_keys[index], keys], dim=3)
            values = torch.cat([self.word_values[index], values], dim=3)
            self.word_keys[index], self.word_values[index] = keys[:, :, :, :-1], values[:, :, :, :-1]
        else:
            self.word_keys.append(keys[:, :, :, :-1])
            self.word_values.append(values[:, :, :, :-1])
        return keys, values

    def reorder(self, parents: Tensor) -> None:
        """parents (B, beams): the beam that each beam continues."""
        rows = torch.arange(len(parents), device=parents.device).unsqueeze(1)
        self.word_keys = [k[rows, parents] for k in self.word_keys]
        self.word_values = [v[rows, parents] for v in self.word_values]

    def select(self, rows: Tensor) -> None:
        """Keep some images only."""
        self.image_keys = [k[rows] for k in self.image_keys]
        self.image_values = [v[rows] for v in self.image_values]
        self.word_keys = [k[rows] for k in self.word_keys]
        self.word_values = [v[rows] for v in self.word_values]


def encode_images(beit3: BEiT3, images: Tensor) -> Cache:
    """Run the image stream alone and keep its keys and values."""
    x = beit3.embed_image(images)
    keys, values = [], []
    last = len(beit3.encoder.layers) - 1
    for i, layer in enumerate(beit3.encoder.layers):
        if i < last:
            x, k, v = layer.image_states(x)
        else:  # nothing reads the image behind the last layer's keys and values
            _, k, v = layer.self_attn.project(
                "A", layer_norm(layer.self_attn_layer_norm.norm("A"), x), first_query=True
            )
        keys.append(exact_precision(k).contiguous())
        values.append(v.contiguous())
    return Cache(keys, values)


def exact_precision(x: Tensor) -> Tensor:
    """In float32, or more where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def decode_step(beit3: BEiT3, cache: Cache, words: Tensor, mask_id: int, start: int) -> Tensor:
    """Feed each beam's newest word and a [MASK] behind it; hidden state of the [MASK], (B, beams, D).

    words: int64 (B, beams), at text position ``start``.
    """
    images, beams = words.shape
    tokens = torch.stack([words, torch.full_like(words, mask_id)], dim=-1).flatten(0, 1)
    x = beit3.embed_text(tokens, start=start)  # (B * beams, 2, D)
    for i, layer in enumerate(beit3.encoder.layers):
        attn = layer.self_attn
        q, k, v = attn.project("B", layer_norm(layer.self_attn_layer_norm.norm("B"), x))
        q, k, v = (t.unflatten(0, (images, beams)) for t in (q, k, v))  # (B, beams, heads, 2, d)
        keys, values = cache.append(i, k, v)
        heads = _attend(q, cache.image_keys[i], cache.image_values[i], keys, values)
        x = layer.after_attention(x, attn.merge("B", heads.flatten(0, 1)), "VL" if layer.has_vl else "B")
    return beit3.encoder.finish("B", x[:, 1]).unflatten(0, (images, beams))


def _attend(q: Tensor, image_keys: Tensor, image_values: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One softmax over image and words; the beams of an image read the same image keys.

    Scores are float32, also under autocast, as within a fused kernel: a score of 8 bits moves a weight by percents.

    q (B, beams, heads, 2, d); image keys float32 (B, heads, N, d); keys (B, beams, heads, t + 2, d) -> (B, beams, heads, 2, d).
    """
    images, beams, heads, two, dim = q.shape
    with torch.autocast(q.device.type, enabled=False):
        q = exact_precision(q) * dim**-0.5
        folded = q.transpose(1, 2).reshape(images, heads, beams * two, dim)
        on_image = (folded @ image_keys.transpose(-1, -2)).view(images, heads, beams, two, -1).transpose(1, 2)
        on_words = q @ exact_precision(keys).transpose(-1, -2)
    # The word does not see the [MASK] behind it.
    on_words[..., 0, -1] = float("-inf")
    p = torch.cat([on_image, on_words], dim=-1).softmax(dim=-1, dtype=torch.float32).to(values.dtype)
    split = image_keys.shape[2]
    p_image = p[..., :split].transpose(1, 2).reshape(images, heads, beams * two, split)
    from_image = (p_image @ image_values).view(images, heads, beams, two, dim).transpose(1, 2)
    return from_image + p[..., split:] @ values


@dataclass(frozen=True)
class Hypothesis:
    """A finished caption: its ids, CLS and SEP included, and (sum of log-probabilities) / length ** length_penalty."""

    ids: list[int]
    score: float


@torch.no_grad()
def search(model: Captioning, images: Tensor, decoding: Decoding) -> list[Hypothesis]:
    """Best captions of a batch of images, float32 (B, 3, S, S), normalised.

    Equal to `CaptioningHandler.eval_batch` of the official code: scores start at [0, -1e9, ...]; the best
    3 x beams continuations are visited in order; SEP (or any word at the length limit) ends a hypothesis of which only the
    best is kept; others become beams until all are filled; an image stops when its best hypothesis can no longer be
    beaten. Finished images leave the batch. Ids without a piece are never chosen.

    Returns:
        One hypothesis per image; its ids begin with CLS and end with SEP (see `Decoding.decoder`).
    """
    config, beit3 = model.config, model.beit3
    beams, limit, penalty = decoding.num_beams, decoding.max_length, decoding.length_penalty
    device, total = images.device, len(images)
    if total == 0:
        return []
    vocabulary, width = config.vocab_size, CANDIDATES_PER_BEAM * beams
    cache = encode_images(beit3, images)
    mask_id = config.mask_token_id
    assert mask_id is not None

    text = torch.full((total, beams, limit), config.pad_token_id, dtype=torch.long, device=device)
    text[:, :, 0] = config.cls_token_id
    scores = torch.full((total, beams), -1e9, device=device)
    scores[:, 0] = 0.0
    best_score = torch.full((total,), float("-inf"), device=device)
    best_text = torch.full((total, limit), config.pad_token_id, dtype=torch.long, device=device)
    best_words = torch.zeros(total, dtype=torch.long, device=device)
    alive = torch.arange(total, device=device)

    for length in range(2, limit):  # tokens so far, counting CLS and the [MASK] that is being predicted
        hidden = decode_step(beit3, cache, text[:, :, length - 2], mask_id, length - 2)
        log_p = F.log_softmax(model.exact(model.mlm_head, hidden).float(), dim=-1)
        if config.num_pieces < vocabulary:  # type: ignore[operator]
            log_p[..., config.num_pieces :] = float("-inf")
        candidates, index = (scores.unsqueeze(-1) + log_p).flatten(1).topk(min(width, beams * vocabulary), dim=1)
        parent, word = index // vocabulary, index % vocabulary

        stopped = best_score[alive] >= candidates[:, 0] / (limit - 1) ** penalty
        at_limit = length + 1 == limit
        ends = torch.ones_like(word, dtype=torch.bool) if at_limit else word == config.sep_token_id
        open_before = (~ends).cumsum(1) - (~ends).long()  # beams filled before this candidate is visited
        may_end = ends & (open_before < beams) & ~stopped.unsqueeze(1)
        # Candidates come in falling order and all have the same length: the first that may end is the best of them.
        first = may_end.long().argmax(dim=1, keepdim=True)
        end_score = torch.where(may_end.any(1), candidates.gather(1, first).squeeze(1) / length**penalty, float("-inf"))
        better = end_score > best_score[alive]
        ended = text.gather(1, parent.gather(1, first).unsqueeze(-1).expand(-1, -1, limit)).squeeze(1)
        words = torch.full_like(alive, length - 2)
        if decoding.decoder == "clean":
            last = word.gather(1, first).squeeze(1)
            keep = last != config.sep_token_id
            ended[:, length - 1] = torch.where(keep, last, ended[:, length - 1])
            words = words + keep.long()
        best_score[alive] = torch.where(better, end_score, best_score[alive])
        best_text[alive] = torch.where(better.unsqueeze(1), ended, best_text[alive])
        best_words[alive] = torch.where(better, words, best_words[alive])
        if at_limit:
            break

        going = (~stopped).nonzero().squeeze(1)
        if len(going) == 0:
            break
        # The first `beams` candidates that do not end: their places, in order.
        place = torch.where(ends, width, torch.arange(ends.shape[1], device=device)).sort(dim=1).values[:, :beams]
        scores = candidates.gather(1, place)
        parents = parent.gather(1, place)
        text = text.gather(1, parents.unsqueeze(-1).expand(-1, -1, limit))
        text[:, :, length - 1] = word.gather(1, place)
        cache.reorder(parents)
        if len(going) < len(alive):
            alive, scores, text = alive[going], scores[going], text[going]
            cache.select(going)

    tail = [mask_id, config.sep_token_id] if decoding.decoder == "official" else [config.sep_token_id]
    best = zip(best_text.tolist(), best_words.tolist(), best_score.tolist(), strict=True)
    return [Hypothesis(ids[: words + 1] + tail, score) for ids, words, score in best]
