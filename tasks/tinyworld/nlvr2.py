"""The NLVR2 folder: sets of four picture pairs, several sentences per set, each true for two pairs.

Tree below ``nlvr2/``::

    data/{train,dev,test1}.json                           (JSON lines)
    images/train/<directory>/train-<set>-<pair>-img{0,1}.png
    dev/dev-<set>-<pair>-img{0,1}.png                     test1/test1-<set>-<pair>-img{0,1}.png

Neither sentence nor pictures alone say anything about the label, so a network learns nothing before it relates the two.
Hence the mix: most sentences are about backgrounds, which are found out first, then colours, counts, shapes.

An identifier is ``<split>-<set>-<pair>-<sentence>``; the examples that differ in the pair alone share their sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from beit3_bench.tasks.tinyworld.plan import Workshop
from beit3_bench.tasks.tinyworld.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, sample_scene
from beit3_bench.tasks.tinyworld.text import NUMBERS, with_article

SENTENCES_PER_SET = 4
Pair = tuple[Scene, Scene]
Claim = Callable[[Scene], bool]


def _has(color: str | None, shape: str | None) -> Claim:
    def claim(scene: Scene) -> bool:
        return any((color is None or t.color == color) and (shape is None or t.shape == shape) for t in scene.things)

    return claim


def _contents() -> list[tuple[str, Claim, float]]:
    """(what an image may contain, whether a scene does, weight)."""
    claims: list[tuple[str, Claim, float]] = [(f"{with_article(c)} shape", _has(c, None), 16) for c in COLORS]
    claims += [(with_article(s), _has(None, s), 3) for s in SHAPES]
    claims += [(with_article(f"{c} {s}"), _has(c, s), 0.3) for c in COLORS for s in SHAPES]
    return claims


def _number(count: int) -> Claim:
    return lambda scene: len(scene.things) == count


def _ground(name: str) -> Claim:
    return lambda scene: scene.background == name


def _sides(
    left: str, right: str, both: str, some: str, claim: Claim, weight: float
) -> list[tuple[str, Callable[[Pair], bool], float]]:
    return [
        (left, lambda pair: claim(pair[0]), 2 * weight),
        (right, lambda pair: claim(pair[1]), 2 * weight),
        (both, lambda pair: claim(pair[0]) and claim(pair[1]), 3 * weight),
        (some, lambda pair: claim(pair[0]) or claim(pair[1]), 3 * weight),
    ]


def statements() -> list[tuple[str, Callable[[Pair], bool], float]]:
    """All sentences: (text, whether it is true of a pair, weight)."""
    claims = []
    for what, claim, weight in _contents():
        claims += _sides(
            f"The left image contains {what}.",
            f"The right image contains {what}.",
            f"Both images contain {what}.",
            f"There is {what} in at least one image.",
            claim,
            weight,
        )
    for count in (1, 2, 3):
        shapes = f"exactly {NUMBERS[count]} shape{'s' if count > 1 else ''}"
        claims += _sides(
            f"The left image shows {shapes}.",
            f"The right image shows {shapes}.",
            f"Each image shows {shapes}.",
            f"At least one image shows {shapes}.",
            _number(count),
            8,
        )
    for name in BACKGROUNDS:
        claims += _sides(
            f"The left image has {with_article(name)} background.",
            f"The right image has {with_article(name)} background.",
            f"Both images have {with_article(name)} background.",
            f"One image or the other has {with_article(name)} background.",
            _ground(name),
            400,
        )
    return claims


def _scene(rng: Random) -> Scene:
    return sample_scene(rng, count=rng.choices((1, 2, 3), weights=(55, 30, 15))[0])


def _draw_set(
    rng: Random, claims: list[tuple[str, Callable[[Pair], bool], float]]
) -> tuple[list[Pair], list[str], list[list[bool]]]:
    """Four pairs and sentences of which each is true for exactly two of them."""
    while True:
        pairs = [(_scene(rng), _scene(rng)) for _ in range(4)]
        # Keys random ** (1 / weight): the largest are a weighted choice without repetition.
        order = sorted(claims, key=lambda claim: rng.random() ** (1 / claim[2]), reverse=True)
        sentences: list[str] = []
        truths: list[list[bool]] = []
        for sentence, claim, _ in order:
            truth = [claim(pair) for pair in pairs]
            if sum(truth) == 2:
                sentences.append(sentence)
                truths.append(truth)
                if len(sentences) == SENTENCES_PER_SET:
                    return pairs, sentences, truths


def write_nlvr2(shop: Workshop) -> dict[str, int]:
    claims = statements()
    counts = {}
    for split in ("train", "dev", "test1"):
        rng = shop.rng(f"nlvr2 {split}")
        number = getattr(shop.counts, f"nlvr2_{split}")
        lines: list[str] = []
        for set_id in sorted(rng.sample(range(10 * number), number)):
            directory = rng.randrange(100)
            pairs, sentences, truths = _draw_set(rng, claims)
            folder = (
                shop.folder("nlvr2", "images", "train", str(directory))
                if split == "train"
                else shop.folder("nlvr2", split)
            )
            for i, pair in enumerate(pairs):
                for side, scene in enumerate(pair):
                    shop.painter.save_png(scene, folder / f"{split}-{set_id}-{i}-img{side}.png")
            for j, (sentence, truth) in enumerate(zip(sentences, truths, strict=True)):
                shop.text.append(sentence)
                for i, true in enumerate(truth):
                    lines.append(json.dumps(_record(rng, split, directory, f"{split}-{set_id}-{i}", j, sentence, true)))
        rng.shuffle(lines)
        (shop.folder("nlvr2", "data") / f"{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
        counts[split] = len(lines)
    return counts


def _record(
    rng: Random, split: str, directory: int, pair: str, sentence_id: int, sentence: str, true: bool
) -> dict[str, Any]:
    label = str(true)
    record: dict[str, Any] = {
        "validation": {str(rng.randrange(300)): label},
        "sentence": sentence,
        "left_url": f"https://tiny-world.invalid/{pair}-img0.png",
        "writer": str(rng.randrange(300)),
        "label": label,
        "right_url": f"https://tiny-world.invalid/{pair}-img1.png",
        "synset": "shape",
        "query": "coloured shapes0",
        "identifier": f"{pair}-{sentence_id}",
    }
    if split == "train":
        record["directory"] = directory
    else:
        record["extra_validations"] = {str(rng.randrange(300)): label for _ in range(4)}
    return record
