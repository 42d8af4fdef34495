"""How fast ALBEF and BLIP re-rank and rank answers, against the official way of working, with the same random weights.

Re-ranking (official `evaluation` of `Retrieval.py` and `train_retrieval.py`): an image's states are repeated for every text that it is
compared with, and each layer projects them to keys and values anew, pair by pair; texts are padded to 30 (ALBEF) or 35 tokens (BLIP). The
states of images, and those of ALBEF's texts that no image has joined, are kept from the first pass and not measured; our way computes both
within what is measured.

Answer ranking (official `rank_answer`): the candidates of a question are decoded as sequences of their own, padded to the longest answer of
the list, with the states of the question repeated for each. What stands before the decoder is the same for both and not measured.

Attention itself is PyTorch's in both ways, which is faster than the products that the official code writes out.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beit3_bench.backbones.allocation import allocate
from beit3_bench.backbones.benchmark import Benchmark, Measuring
from beit3_bench.backbones.fusion.answers import AnswerTree, rank_answers
from beit3_bench.backbones.fusion.bert import Bert, Context, seen
from beit3_bench.backbones.fusion.config import FusionConfig, TextConfig, VisionConfig
from beit3_bench.backbones.fusion.heads import FusionModel, Retrieval, VisualQuestionAnswering
from beit3_bench.backbones.fusion.native import Matcher
from beit3_bench.backbones.official_process import OfficialProcess
from beit3_bench.backbones.packing import pack_weights
from beit3_bench.backbones.strict_loading import initialise
from beit3_bench.backbones.timing import TOLERANCE, in_turn, precision, seconds_of
from beit3_bench.backbones.word_cache import Cache
from beit3_bench.errors import BenchError


@dataclass(frozen=True)
class Size:
    """vision: of the transformer, at the size of re-ranking.  width, ffn, heads: of the text side.  words: of the vocabulary.
    depth: layers of the text side, of which ALBEF's second half looks at images.  texts: that an image is compared with.
    answers: of the list.  k: of them, candidates of a question.
    """

    vision: VisionConfig
    width: int
    ffn: int
    heads: int
    depth: int
    words: int
    texts: int
    answers: int
    k: int


SIZES = {
    "base": Size(VisionConfig(384, 16, 768, 12, 12, 3072), 768, 3072, 12, 12, 30522, 250, 3128, 128),
    "large": Size(VisionConfig(384, 16, 1024, 24, 16, 4096), 768, 3072, 12, 12, 30522, 250, 3128, 128),
    "tiny": Size(VisionConfig(64, 16, 64, 2, 2, 128), 64, 128, 2, 4, 1200, 12, 60, 16),
}
"""By preset: BERT-base in all released files, and what tests take."""
TEXT_LENGTHS = (9, 12, 11, 10, 14, 13, 11, 12)
"""Tokens of typical captions, special ones included."""
QUESTION_TOKENS = 12
ANSWER_TOKENS = ((1, 75), (2, 17), (3, 5), (4, 2.7), (10, 0.3))
"""Tokens of an answer, and how many percent of the released list have as many."""
CLS, SEP, FIRST_WORD = 101, 102, 1000


@dataclass(frozen=True)
class Kind:
    """What tells the families apart. heads: module of their classes.  padded: tokens of a text, officially.
    added: tokens behind the vocabulary.  token_types: rows of that table.  first_cross: of so many layers, the first that looks at images.
    decoder_depth: of so many layers of the encoder.
    """

    heads: Callable[[], ModuleType]
    padded: int
    added: int
    token_types: int
    first_cross: Callable[[int], int]
    decoder_depth: Callable[[int], int]

    def text(self, size: Size, context: int) -> TextConfig:
        first = self.first_cross(size.depth)
        words = size.words + self.added
        return TextConfig(size.width, size.depth, size.heads, size.ffn, words, 512, self.token_types, first, context)

    def decoder(self, size: Size) -> TextConfig:
        depth = self.decoder_depth(size.depth)
        words = size.words + self.added
        return TextConfig(size.width, depth, size.heads, size.ffn, words, 512, self.token_types, 0, size.width)


def _albef() -> ModuleType:
    from beit3_bench.backbones.albef import heads

    return heads


def _blip() -> ModuleType:
    from beit3_bench.backbones.blip import heads

    return heads


KINDS = {
    "albef": Kind(_albef, 30, 0, 2, lambda depth: depth // 2, lambda depth: depth // 2),
    "blip": Kind(_blip, 35, 2, 0, lambda depth: 0, lambda depth: depth),
}


@dataclass(frozen=True)
class Case:
    """ours, theirs: the two ways, each returning scores.  samples: that a call evaluates.  image_size: pixels; None = there is no image.
    change: how far scores (samples, candidates) of another precision are from these.
    """

    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    samples: int
    image_size: int | None
    description: str
    change: Callable[[Tensor, Tensor], float]


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _other_answers(a: Tensor, b: Tensor) -> float:
    """The share of questions whose best answer is another."""
    return float((a.argmax(dim=1) != b.argmax(dim=1)).float().mean())


def make_case(
    family: str, task: str, preset: str, device: torch.device, samples: int | None, image_size: int | None, packed: bool
) -> Case:
    """Networks, inputs and both ways of a task.

    Args:
        samples: images, or questions; None = `automatic_samples`.
        packed: let our way keep packed weights, as a run on a CPU does.

    Raises:
        BenchError: no such case or preset, or a size that is no multiple of the patches.
    """
    if task not in CASES:
        raise BenchError(f"bench has no case for task {task!r} of {family}; it has: {', '.join(CASES)}")
    if preset not in SIZES:
        raise BenchError(f"{family} has no preset {preset!r} to measure; it has: {', '.join(SIZES)}")
    return CASES[task](KINDS[family], SIZES[preset], device, samples, image_size, packed)


def reranking(
    kind: Kind, size: Size, device: torch.device, samples: int | None, image_size: int | None, packed: bool
) -> Case:
    """Every image with the same texts, whose states before they look at one are there, as either way reads the texts of a gallery once."""
    pixels = image_size or size.vision.image_size
    if pixels % size.vision.patch_size:
        raise BenchError(f"--image-size {pixels}: is no multiple of the patches of {size.vision.patch_size} pixels")
    vision = dataclasses.replace(size.vision, image_size=pixels)
    config = FusionConfig(vision, kind.text(size, vision.width), embed_dim=256)
    net, official = _twins(lambda: kind.heads().Retrieval(config), device, packed)
    count = samples or automatic_samples("coco-retrieval", device)
    generator = torch.Generator().manual_seed(1)
    images = (torch.rand(count, 3, pixels, pixels, generator=generator) * 2 - 1).to(device)
    ids = _texts(size.words, size.texts)
    padded, kept = _padded(ids, kind.padded)
    padded, kept = padded.to(device), kept.to(device)
    with torch.inference_mode():
        states = official.visual_encoder(images)
        read = official.unseen(padded, ~kept)

    matcher = Matcher(net, None, None)  # type: ignore[arg-type]  # keeps states of texts from the first call, which warms up

    def ours() -> Tensor:
        return torch.stack(matcher.scores(net.look(images), [ids] * count))

    def theirs() -> Tensor:
        return torch.stack([_pair_by_pair(official, image, read, kept) for image in states])

    what = f"{size.texts} texts per image; keys and values of the image per pair, texts padded to {kind.padded}"
    return Case(ours, theirs, count, pixels, what, _largest)


def _pair_by_pair(net: Retrieval, image: Tensor, read: Tensor, kept: Tensor) -> Tensor:
    """Match scores of texts with an image, whose states (N, D) are projected for each of them, as a layer needs them."""
    encoder: Bert = net.text_encoder
    repeated, mask, x = image.expand(len(read), -1, -1).contiguous(), seen(~kept), read
    for number in range(encoder.config.first_cross, encoder.config.depth):
        layer: Any = encoder.encoder.layer[number]
        context = Context({number: layer.crossattention.keys([repeated])}, None)
        x = layer(x, mask, context, None)
    return net.matched(x)


def answering(
    kind: Kind, size: Size, device: torch.device, samples: int | None, image_size: int | None, packed: bool
) -> Case:
    """Questions whose states are given."""
    vision = VisionConfig(32, 16, 64, 1, 1, 64)  # that nothing is asked of
    config = FusionConfig(vision, kind.text(size, vision.width), kind.decoder(size))
    net, official = _twins(lambda: kind.heads().VisualQuestionAnswering(config, size.k), device, packed)
    count = samples or automatic_samples("vqav2", device)
    start = config.vocab_size - 2 if kind.added else CLS
    answers = _answers(size.words, size.answers)
    net.rank(answers, start)
    tree = net.tree
    states = torch.randn(count, QUESTION_TOKENS, size.width, generator=torch.Generator().manual_seed(1)).to(device)
    padded, kept = _padded(answers, max(map(len, answers)))
    padded, kept = padded.to(device), kept.to(device)

    def ours() -> Tensor:
        context = net.text_decoder.bert.keys_of(states)
        return _finite(rank_answers(net.text_decoder, tree, context, size.k, net.smoothing, net.first_twice))

    def theirs() -> Tensor:
        return _finite(_one_by_one(official, tree, states, padded, kept, start, size.k))

    what = f"{size.answers:,} answers, {size.k} of them whole; each a sequence of its own, padded to {padded.shape[1]}"
    return Case(ours, theirs, count, None, what, _other_answers)


def _one_by_one(
    net: VisualQuestionAnswering, tree: AnswerTree, states: Tensor, answers: Tensor, kept: Tensor, start: int, k: int
) -> Tensor:
    """Scores of all answers for each question. answers: (answers, longest), padded; kept: of the same shape, False = padding."""
    decoder = net.text_decoder
    begun = torch.full((len(states), 1), start, device=states.device)
    chosen, first = tree.candidates(decoder.step(begun, decoder.bert.keys_of(states), Cache()), k)
    repeated = states.repeat_interleave(chosen.shape[1], dim=0)
    wanted, within = answers[chosen.flatten()], kept[chosen.flatten()]
    given = torch.cat([begun.repeat_interleave(chosen.shape[1], dim=0), wanted[:, :-1]], dim=1)
    logits = decoder.logits(decoder.states(given, decoder.bert.keys_of(repeated)))
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(),
        wanted.masked_fill(~within, -100).flatten(),
        reduction="none",
        label_smoothing=net.smoothing,
    )
    scores = -loss.view(*chosen.shape, -1).sum(dim=-1) + (first if net.first_twice else 0)
    return scores.new_full((len(states), len(answers)), float("-inf")).scatter(1, chosen, scores)


CASES: dict[str, Callable[..., Case]] = {"coco-retrieval": reranking, "vqav2": answering}


def automatic_samples(task: str, device: torch.device) -> int:
    """Images or questions of a call that a CPU is done with in a minute; each costs the same, so that more of them change no ratio."""
    if task == "coco-retrieval":
        return 1 if device.type == "cpu" else 50
    return 2 if device.type == "cpu" else 64


def _twins(make: Callable[[], FusionModel], device: torch.device, packed: bool) -> tuple[Any, Any]:
    """The same random network twice; the first with packed weights, if asked for."""
    both = []
    for _ in range(2):
        with torch.device("meta"):
            net = make()
        allocate(net)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            initialise(net)
        both.append(net.to(device).eval())
    if packed:
        pack_weights(both[0])
    return both[0], both[1]


def _texts(words: int, count: int) -> list[list[int]]:
    """Token ids of random captions."""
    chance = random.Random(0)
    lengths = [TEXT_LENGTHS[n % len(TEXT_LENGTHS)] for n in range(count)]
    return [[CLS, *chance.choices(range(FIRST_WORD, words), k=length - 2), SEP] for length in lengths]


def _answers(words: int, count: int) -> list[list[int]]:
    """Token ids of random answers, the end token included, that differ and begin alike as those of the released list do."""
    chance = random.Random(0)
    sizes, shares = zip(*ANSWER_TOKENS, strict=True)
    many = range(FIRST_WORD, min(words, FIRST_WORD + count))
    return [[*chance.choices(many, k=size), SEP] for size in chance.choices(sizes, shares, k=count)]


def _padded(texts: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    """int64 (n, length), and bool (n, length), False = padding."""
    kept = torch.arange(length) < torch.tensor([len(text) for text in texts])[:, None]
    ids = torch.zeros(kept.shape, dtype=torch.long)
    ids[kept] = torch.tensor([token for text in texts for token in text])
    return ids, kept


def _finite(scores: Tensor) -> Tensor:
    """Scores that can be subtracted: of answers that are no candidates, -10,000."""
    return scores.clamp(min=-1e4)


# ---- measuring ----------------------------------------------------------------------------------------------------------


class FusionBenchmark(Benchmark):
    """The cases of a family."""

    def __init__(self, family: str):
        self.family = family

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(CASES)

    def measure(self, task: str, how: Measuring) -> dict[str, Any]:
        if how.compiled:
            raise BenchError(f"--compile: the cases of {self.family} are measured as they are; leave it out")
        make = partial(make_case, self.family, task, how.preset, how.device)
        case = make(how.samples, how.image_size, packed=how.device.type == "cpu")
        again = partial(make, case.samples, how.image_size, packed=False)
        with OfficialProcess(again, how.dtype) if how.apart else nullcontext() as official:
            measured = _measured(case, how.device, how.dtype, how.repeats, official)
        return {"family": self.family, "task": task, **measured}


@torch.inference_mode()
def _measured(
    case: Case, device: torch.device, dtype: str, repeats: int, official: OfficialProcess | None
) -> dict[str, Any]:
    """Both ways in turn, after a call of each that warms up and compares the scores, in float32."""
    exact = case.ours().float().cpu()
    other = torch.as_tensor(official.output()) if official else case.theirs().float().cpu()
    difference = _largest(exact, other)
    rounded = 0.0
    if dtype != "fp32":
        with precision(device, dtype):
            rounded = case.change(case.ours().float().cpu(), exact)
    theirs_once = official.seconds if official else partial(seconds_of, case.theirs, device, dtype)
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(theirs_once())
        ours.append(seconds_of(case.ours, device, dtype))
    both = in_turn(ours, theirs, device)
    return {
        "image_size": case.image_size,
        "samples": case.samples,
        "reference": case.description,
        "reference_process": "its own, with default settings" if official else "this one",
        **both,
        "samples_per_second": case.samples / both["seconds"],
        "output_difference": difference,
        "outputs_equal": difference <= TOLERANCE,
        "dtype_difference": rounded,
    }
