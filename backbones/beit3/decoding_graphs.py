"""Beam search on a CUDA card without waiting for the host: one captured graph per step and batch size.

A decoding step of a few beams is hundreds of small kernels; launched one by one they take several times as long as they
compute. Here everything that a step reads or writes has a place of its own that never moves (words are written into slots and
masked, and finished images stay until they are half of the batch), so that a step is one launch. The arithmetic is that of
`generation.search`, whose captions come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_bench.backbones.beit3.fused_norms import layer_norm
from beit3_bench.backbones.beit3.generation import (
    CANDIDATES_PER_BEAM,
    Cache,
    Decoding,
    Hypothesis,
    encode_images,
    exact_precision,
)

if TYPE_CHECKING:
    from beit3_bench.backbones.beit3.models import Captioning

LAG = 2
"""Steps that may be under way while the host looks at what an earlier one found: the card never waits for the host."""


class Beams:
    """All that a step reads and writes, for a fixed number of images.

    image_keys float32, image_values: per layer (B, heads, N, d).  word_keys, word_values: per layer (B, beams, heads, limit, d); slot t
    holds the word at text position t.  text int64 (B, beams, limit).  scores float32 (B, beams).  best_score (B,), best_text
    (B, limit), best_words (B,): the best finished hypothesis.  done bool (B,).  position int64 (): text position of the newest words.
    """

    def __init__(self, model: Captioning, cache: Cache, decoding: Decoding):
        config = model.config
        total, heads, _, dim = cache.image_keys[0].shape
        beams, limit, device = decoding.num_beams, decoding.max_length, cache.image_keys[0].device
        shape = (total, beams, heads, limit, dim)
        self.image_keys, self.image_values = cache.image_keys, cache.image_values
        self.word_keys = [torch.zeros(shape, dtype=v.dtype, device=device) for v in cache.image_values]
        self.word_values = [torch.zeros_like(k) for k in self.word_keys]
        self.text = torch.empty(total, beams, limit, dtype=torch.long, device=device)
        self.scores = torch.empty(total, beams, device=device)
        self.best_score = torch.empty(total, device=device)
        self.best_text = torch.empty(total, limit, dtype=torch.long, device=device)
        self.best_words = torch.empty(total, dtype=torch.long, device=device)
        self.done = torch.empty(total, dtype=torch.bool, device=device)
        self.position = torch.empty((), dtype=torch.long, device=device)
        self.start = (config.pad_token_id, config.cls_token_id)
        self.reset()

    def tensors(self) -> list[Tensor]:
        """Everything, in one order."""
        lists = (self.image_keys, self.image_values, self.word_keys, self.word_values)
        alone = [self.text, self.scores, self.best_score, self.best_text, self.best_words, self.done, self.position]
        return [t for several in lists for t in several] + alone

    def reset(self) -> None:
        """The state before the first word."""
        pad, cls = self.start
        self.text.fill_(pad)
        self.text[:, :, 0] = cls
        self.scores.fill_(-1e9)
        self.scores[:, 0] = 0.0
        self.best_score.fill_(float("-inf"))
        self.best_text.fill_(pad)
        self.best_words.zero_()
        self.done.zero_()
        self.position.zero_()

    def load(self, cache: Cache) -> None:
        """Begin with other images; where they are fewer, the places behind them count as finished."""
        count = len(cache.image_keys[0])
        for ours, theirs in zip(
            [*self.image_keys, *self.image_values], [*cache.image_keys, *cache.image_values], strict=True
        ):
            ours[:count] = theirs
        self.reset()
        self.done[count:] = True

    def take(self, other: Beams, rows: Tensor) -> None:
        """Go on with some of another's images; rows int64 (n,), n at most as many as there are places here."""
        count = len(rows)
        for ours, theirs in zip(self.tensors(), other.tensors(), strict=True):
            if ours.ndim:
                ours[:count] = theirs[rows]
            else:
                ours.copy_(theirs)
        self.done[count:] = True


def step(model: Captioning, beams: Beams, decoding: Decoding) -> None:
    """One word for every beam, as in one turn of `generation.search`, in place and without a look at any value."""
    config, beit3 = model.config, model.beit3
    limit, penalty, width = decoding.max_length, decoding.length_penalty, CANDIDATES_PER_BEAM * decoding.num_beams
    device, vocabulary = beams.text.device, config.vocab_size
    total = len(beams.text)
    position = beams.position
    length = position + 2  # tokens so far, counting CLS and the [MASK] that is being predicted

    words = beams.text.index_select(2, position.view(1)).squeeze(2)
    tokens = torch.stack([words, torch.full_like(words, config.mask_token_id)], dim=-1).flatten(0, 1)
    rows = position + torch.arange(2, device=device)
    x = beit3.text_embed(tokens) + beit3.encoder.positions("B").index_select(0, rows)
    # Slots of words so far, the new one among them; behind them the [MASK], which only it sees itself.
    seen = torch.arange(limit + 1, device=device) <= position
    seen = torch.stack([seen, seen | (torch.arange(limit + 1, device=device) == limit)])
    for i, layer in enumerate(beit3.encoder.layers):
        attn = layer.self_attn
        q, k, v = attn.project("B", layer_norm(layer.self_attn_layer_norm.norm("B"), x))
        q, k, v = (t.unflatten(0, (total, decoding.num_beams)) for t in (q, k, v))  # (B, beams, heads, 2, d)
        beams.word_keys[i].index_copy_(3, position.view(1), k[:, :, :, :1].to(beams.word_keys[i].dtype))
        beams.word_values[i].index_copy_(3, position.view(1), v[:, :, :, :1].to(beams.word_values[i].dtype))
        keys = torch.cat([beams.word_keys[i], k[:, :, :, 1:]], dim=3)
        values = torch.cat([beams.word_values[i], v[:, :, :, 1:]], dim=3)
        heads = _attend(q, beams.image_keys[i], beams.image_values[i], keys, values, seen)
        x = layer.after_attention(x, attn.merge("B", heads.flatten(0, 1)), "VL" if layer.has_vl else "B")
    hidden = beit3.encoder.finish("B", x[:, 1]).unflatten(0, (total, decoding.num_beams))

    log_p = F.log_softmax(model.exact(model.mlm_head, hidden).float(), dim=-1)
    if config.num_pieces < vocabulary:  # type: ignore[operator]
        log_p[..., config.num_pieces :] = float("-inf")
    candidates, index = (
        (beams.scores.unsqueeze(-1) + log_p).flatten(1).topk(min(width, decoding.num_beams * vocabulary), dim=1)
    )
    parent, word = index // vocabulary, index % vocabulary
    beams.done |= beams.best_score >= candidates[:, 0] / (limit - 1) ** penalty
    at_limit = length + 1 == limit
    ends = (word == config.sep_token_id) | at_limit
    open_before = (~ends).cumsum(1) - (~ends).long()  # beams filled before this candidate is visited
    may_end = ends & (open_before < decoding.num_beams) & ~beams.done.unsqueeze(1)
    first = may_end.long().argmax(dim=1, keepdim=True)
    end_score = torch.where(may_end.any(1), candidates.gather(1, first).squeeze(1) / length**penalty, float("-inf"))
    better = end_score > beams.best_score
    ended = beams.text.gather(1, parent.gather(1, first).unsqueeze(-1).expand(-1, -1, limit)).squeeze(1)
    count = (length - 2).expand(total)
    if decoding.decoder == "clean":
        last = word.gather(1, first)
        keep = last != config.sep_token_id
        place = (length - 1).expand(total, 1)
        ended = ended.scatter(1, place, torch.where(keep, last, ended.gather(1, place)))
        count = count + keep.squeeze(1).long()
    beams.best_score.copy_(torch.where(better, end_score, beams.best_score))
    beams.best_text.copy_(torch.where(better.unsqueeze(1), ended, beams.best_text))
    beams.best_words.copy_(torch.where(better, count, beams.best_words))
    beams.done |= at_limit

    # The first `num_beams` candidates that do not end, in order; at the limit there are none, and nothing reads them.
    order = torch.where(ends, ends.shape[1] - 1, torch.arange(ends.shape[1], device=device))
    place = order.sort(dim=1).values[:, : decoding.num_beams]
    parents = parent.gather(1, place)
    beams.scores.copy_(candidates.gather(1, place))
    text = beams.text.gather(1, parents.unsqueeze(-1).expand(-1, -1, limit))
    beams.text.copy_(
        text.scatter(2, (length - 1).expand(total, decoding.num_beams, 1), word.gather(1, place).unsqueeze(-1))
    )
    images = torch.arange(total, device=device).unsqueeze(1)
    for several in (beams.word_keys, beams.word_values):
        for tensor in several:
            tensor.copy_(tensor[images, parents])
    beams.position += 1


def _attend(q: Tensor, image_keys: Tensor, image_values: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """One softmax over image and word slots, scores in float32; see `generation`.

    q (B, beams, heads, 2, d); image keys float32 (B, heads, N, d); keys (B, beams, heads, limit + 1, d); seen bool (2, limit + 1)
    -> (B, beams, heads, 2, d).
    """
    images, beams, heads, two, dim = q.shape
    with torch.autocast(q.device.type, enabled=False):
        q = exact_precision(q) * dim**-0.5
        folded = q.transpose(1, 2).reshape(images, heads, beams * two, dim)
        on_image = (folded @ image_keys.transpose(-1, -2)).view(images, heads, beams, two, -1).transpose(1, 2)
        on_words = (q @ exact_precision(keys).transpose(-1, -2)).masked_fill(~seen, float("-inf"))
    p = torch.cat([on_image, on_words], dim=-1).softmax(dim=-1, dtype=torch.float32).to(values.dtype)
    split = image_keys.shape[2]
    p_image = p[..., :split].transpose(1, 2).reshape(images, heads, beams * two, split)
    from_image = (p_image @ image_values).view(images, heads, beams, two, dim).transpose(1, 2)
    return from_image + p[..., split:] @ values


class StepGraph:
    """A step for a fixed number of images: captured on a card, called as it is elsewhere."""

    def __init__(self, model: Captioning, cache: Cache, decoding: Decoding, pool: Any = None):
        self.beams = Beams(model, cache, decoding)
        self.call: Callable[[], None] = lambda: step(model, self.beams, decoding)
        if self.beams.text.is_cuda:
            with _uncached_autocast():
                self.call = self._capture(pool)

    def _capture(self, pool: Any) -> Callable[[], None]:
        """Warm up beside the other work, as capturing asks for, and record one step."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self.call()
        self.beams.reset()
        return graph.replay


@contextmanager
def _uncached_autocast() -> Iterator[None]:
    """Autocast as it is, without its cache: what a graph rounds must not outlive the graph, nor the other way round."""
    rounded: AbstractContextManager = nullcontext()
    if torch.is_autocast_enabled("cuda"):
        rounded = torch.autocast("cuda", dtype=torch.get_autocast_dtype("cuda"), cache_enabled=False)
    with rounded:
        yield


class GraphSearches:
    """The searches of a model, one per decoding and precision, with the graphs that they captured."""

    def __init__(self) -> None:
        self.searches: dict[Any, GraphSearch] = {}

    def search(self, model: Captioning, images: Tensor, decoding: Decoding) -> list[Hypothesis]:
        """As `generation.search`."""
        kind = images.device.type
        rounded = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (decoding, rounded, images.device)
        if key not in self.searches:
            self.searches[key] = GraphSearch(model, decoding)
        try:
            return self.searches[key].search(images)
        except RuntimeError:
            self.searches.clear()  # most likely memory is out, and captured steps hold a good part of it
            raise


def keep_graphs(model: Captioning) -> None:
    """Let a captioner, whose weights will neither move nor be replaced any more, decode by captured graphs."""
    model.graphs = GraphSearches()


class GraphSearch:
    """Beam search with a fixed model; graphs are kept for the batches to come.

    A batch of another size than one that was captured uses the next larger one. When half of the images are finished, the search
    goes on in a graph of half the size.
    """

    def __init__(self, model: Captioning, decoding: Decoding):
        self.model, self.decoding = model, decoding
        self.graphs: dict[int, StepGraph] = {}
        # Results of a step are copied out within it, so that graphs, which run one after another, can share their memory.
        self.pool = torch.cuda.graph_pool_handle() if next(model.parameters()).is_cuda else None

    def _graph(self, count: int, like: Cache) -> StepGraph:
        """The smallest graph with at least ``count`` places that is less than twice too large, captured where there is none."""
        fitting = [size for size in self.graphs if count <= size < 2 * count]
        if not fitting:
            grown = Cache(
                [k.new_zeros(count, *k.shape[1:]) for k in like.image_keys],
                [v.new_zeros(count, *v.shape[1:]) for v in like.image_values],
            )
            self.graphs[count] = StepGraph(self.model, grown, self.decoding, self.pool)
            fitting = [count]
        return self.graphs[min(fitting)]

    @torch.inference_mode()
    def search(self, images: Tensor) -> list[Hypothesis]:
        """As `generation.search`."""
        limit, total = self.decoding.max_length, len(images)
        if total == 0:
            return []
        cache = encode_images(self.model.beit3, images)
        graph = self._graph(total, cache)
        graph.beams.load(cache)
        del cache
        places = torch.arange(total, device=images.device)  # of the graph's images in the batch
        text = torch.empty(total, limit, dtype=torch.long, device=images.device)
        words = torch.empty(total, dtype=torch.long, device=images.device)
        scores = torch.empty(total, device=images.device)

        def keep() -> None:
            count = len(places)
            text[places] = graph.beams.best_text[:count]
            words[places] = graph.beams.best_words[:count]
            scores[places] = graph.beams.best_score[:count]

        counted = _Counts(images.device)
        for _ in range(limit - 2):
            graph.call()
            counted.put((~graph.beams.done).sum())
            alive = counted.newest()
            if alive == 0:
                break
            if alive is not None and len(places) > 1 and 2 * alive <= len(graph.beams.done):
                keep()
                rows = (~graph.beams.done).nonzero().squeeze(1)
                if len(rows) == 0:
                    break
                smaller = self._graph(len(rows), Cache(graph.beams.image_keys, graph.beams.image_values))
                smaller.beams.take(graph.beams, rows)
                graph, places = smaller, places[rows]
                counted = _Counts(images.device)
        keep()
        mask_id, sep = self.model.config.mask_token_id, self.model.config.sep_token_id
        tail: list[int] = [mask_id, sep] if self.decoding.decoder == "official" else [sep]  # type: ignore[list-item]
        finished = zip(text.tolist(), words.tolist(), scores.tolist(), strict=True)
        return [Hypothesis(ids[: count + 1] + tail, score) for ids, count, score in finished]


class _Counts:
    """Numbers on their way from the card, read ``LAG`` puts after they were sent."""

    def __init__(self, device: torch.device):
        self.device = device
        self.sent: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def put(self, count: Tensor) -> None:
        if self.device.type != "cuda":
            self.sent.append((count, None))
            return
        host = torch.empty((), dtype=count.dtype, pin_memory=True)
        host.copy_(count, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self.sent.append((host, event))

    def newest(self) -> int | None:
        """The number sent ``LAG`` puts ago; None where there is none yet."""
        if len(self.sent) <= LAG:
            return None
        host, event = self.sent.pop(0)
        if event is not None:
            event.synchronize()
        return int(host)
