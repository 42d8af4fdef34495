"""Re-ranking and answer ranking of BLIP and ALBEF at base size on a CPU in float32, against the official way.

    python tests/benchmarks/fusion_benchmark.py [--family blip] [--images 50] [--texts 250] [--answers 3128] [--questions 2] [--repeats 3]

The official way (`train_retrieval.py`, `Retrieval.py`, `rank_answer`): texts padded to 35 (ALBEF: 30) tokens, an image's states
repeated for every text and projected to keys and values anew; the 128 candidates of a question as sequences of their own, padded to
the longest answer of the list, the states of the question repeated for each. Both have the same random weights, their outputs are
compared, and they take turns; the ratio is the median over repeats. With 50 images and 250 texts the official way takes
hours: give fewer of them, every image costs the same.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
import torch.nn.functional as F

import beit3_bench  # noqa: F401  (before torch: it sets how products are made)
from beit3_bench.backbones.albef import heads as albef
from beit3_bench.backbones.blip import heads as blip
from beit3_bench.backbones.fusion.answers import rank_answers
from beit3_bench.backbones.fusion.config import FusionConfig, TextConfig, VisionConfig
from beit3_bench.backbones.fusion.native import Matcher
from beit3_bench.backbones.packing import pack_weights
from beit3_bench.backbones.strict_loading import initialise
from beit3_bench.backbones.word_cache import Cache

WORDS = 30522
LENGTHS = (9, 12, 11, 10, 14, 13, 11, 12)
"""Tokens of typical captions, special ones included."""


def text_config(family: str, decodes: bool = False) -> TextConfig:
    own = {"blip": (12, WORDS + 2, 0, 0), "albef": (12, WORDS, 2, 6)}[family]
    depth, words, types, first = (6, WORDS, 2, 0) if decodes and family == "albef" else own
    return TextConfig(768, depth, 12, 3072, words, 512, types, first, 768)


def made(module, *arguments):
    torch.manual_seed(0)
    net = module(*arguments)
    initialise(net)
    return net.eval()


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str, ours, theirs, repeats: int) -> None:
    apart = (ours() - theirs()).abs().max().item()
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(repeats)]
    ratio = statistics.median(a / b for a, b in pairs)
    official, own = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{name}: {ratio:.2f} times as fast ({official:.2f} s -> {own:.2f} s), outputs {apart:.1e} apart")


def reranking(family: str, images: int, texts: int, repeats: int) -> None:
    vision = VisionConfig(384, 16, 768, 12, 12, 3072)
    heads = {"blip": blip, "albef": albef}[family]
    net = made(heads.Retrieval, FusionConfig(vision, text_config(family), embed_dim=256))
    official = made(heads.Retrieval, net.config)
    pack_weights(net)
    pixels = torch.randn(images, 3, 384, 384)
    ids = [torch.randint(1000, WORDS, (LENGTHS[n % len(LENGTHS)],)).tolist() for n in range(texts)]
    longest = {"blip": 35, "albef": 30}[family]
    kept = torch.arange(longest) < torch.tensor([len(one) for one in ids])[:, None]
    padded = torch.zeros(kept.shape, dtype=torch.long)
    padded[kept] = torch.tensor([token for one in ids for token in one])
    states = official.visual_encoder(pixels)  # computed in the first pass, and kept
    read = official.unseen(padded, ~kept)  # of ALBEF kept, too; of BLIP the embedding alone

    def ours() -> torch.Tensor:
        matcher = Matcher(net, None, None)  # type: ignore[arg-type]
        contexts = (net.look(image.unsqueeze(0)) for image in pixels)
        return torch.stack([matcher._of_image(context, ids) for context in contexts])

    def theirs() -> torch.Tensor:
        encoder, scores = official.text_encoder, []
        for image in states:
            repeated = image.expand(texts, -1, -1).contiguous()
            scores.append(official.fuse(read, ~kept, encoder.keys_of(repeated)))
        return torch.stack(scores)

    compare(f"{family}, re-ranking {texts} texts of {images} images", ours, theirs, repeats)


def answering(family: str, answers: int, questions: int, repeats: int) -> None:
    vision = VisionConfig(32, 16, 768, 1, 12, 3072)  # what stands before the decoder is the same for both
    heads = {"blip": blip, "albef": albef}[family]
    config = FusionConfig(vision, text_config(family), text_config(family, decodes=True))
    net = made(heads.VisualQuestionAnswering, config, 128)
    official = made(heads.VisualQuestionAnswering, config, 128)
    pack_weights(net)
    chance = random.Random(0)
    # Of the released list about three quarters have one token, and the longest ten.
    sizes = chance.choices([1, 2, 3, 4, 10], [75, 17, 5, 2.7, 0.3], k=answers)
    listed = [[*chance.choices(range(1000, 4000), k=size), 102] for size in sizes]
    start = config.vocab_size - 2 if family == "blip" else 101
    net.rank(listed, start)
    tree = net.tree
    states = torch.randn(questions, 12, 768)
    longest = max(map(len, listed))
    ids = torch.tensor([one + [0] * (longest - len(one)) for one in listed])

    def ours() -> torch.Tensor:
        context = net.text_decoder.bert.keys_of(states)
        return rank_answers(net.text_decoder, tree, context, 128, net.smoothing, net.first_twice)

    def theirs() -> torch.Tensor:
        decoder = official.text_decoder
        begun = torch.full((questions, 1), start)
        logits = decoder.step(begun, decoder.bert.keys_of(states), Cache())
        chosen, first = tree.candidates(logits, 128)
        repeated = states.repeat_interleave(chosen.shape[1], dim=0)
        wanted = ids[chosen.flatten()]
        given = torch.cat([begun.repeat_interleave(chosen.shape[1], dim=0), wanted[:, :-1]], dim=1)
        logits = decoder.logits(decoder.states(given, decoder.bert.keys_of(repeated)))
        loss = F.cross_entropy(
            logits.flatten(0, 1),
            wanted.masked_fill(wanted == 0, -100).flatten(),
            reduction="none",
            label_smoothing=official.smoothing,
        )
        scores = -loss.view(*chosen.shape, -1).sum(dim=-1) + (first if official.first_twice else 0)
        return torch.full((questions, answers), float("-inf")).scatter(1, chosen, scores)

    compare(
        f"{family}, ranking {answers} answers of {questions} questions",
        lambda: ours().clamp(min=-1e4),
        lambda: theirs().clamp(min=-1e4),
        repeats,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=["blip", "albef"], default="blip")
    for name, default in (("images", 50), ("texts", 250), ("answers", 3128), ("questions", 2), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with torch.inference_mode():
        answering(given.family, given.answers, given.questions, given.repeats)
        reranking(given.family, given.images, given.texts, given.repeats)
