"""SNLI-VE on the pictures of the Flickr30K folder: ``snli_ve_{train,dev,test}.jsonl`` beside them.

Of what a picture shows everything is known, so two kinds of sentence are written: one says that something is there
(entailment, contradiction), the other speaks of its age (neutral where it is there, for nobody sees that; contradiction where it is
not). The three labels are as common as each other, and a sentence alone tells at most two thirds.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from beit3_bench.tasks.tinyworld.plan import Workshop
from beit3_bench.tasks.tinyworld.scenes import BACKGROUNDS, COLORS, SHAPES, Scene
from beit3_bench.tasks.tinyworld.text import caption, with_article

PAIRS_PER_PICTURE = 3
ANNOTATORS = 5


def _topic(rng: Random) -> str:
    """What a sentence speaks of: mostly the background, which is found out first; else a colour, a shape or a thing."""
    color, shape, background = (rng.choice(tuple(names)) for names in (COLORS, SHAPES, BACKGROUNDS))
    topics = (f"{background} background", f"{color} shape", shape, f"{color} {shape}")
    return rng.choices(topics, weights=(12, 4, 1, 1))[0]


def _shown(scene: Scene, words: str) -> bool:
    """Whether the scene shows what ``words`` name."""
    names = {f"{scene.background} background"}
    for thing in (*scene.things, *scene.crowd):
        names |= {f"{thing.color} shape", thing.shape, f"{thing.color} {thing.shape}"}
    return words in names


def _sentence(rng: Random, scene: Scene) -> tuple[str, str]:
    """A sentence about the scene, and its label."""
    of_age, there = rng.random() < 0.5, rng.random() < 2 / 3
    words = _topic(rng)
    while _shown(scene, words) != there:
        words = _topic(rng)
    if of_age:
        return f"The {words} is old.", "neutral" if there else "contradiction"
    return f"There is {with_article(words)}.", "entailment" if there else "contradiction"


def write_snli_ve(shop: Workshop, pictures: dict[str, list[tuple[str, Scene]]]) -> dict[str, int]:
    """pictures: name of the image file and its scene, by Flickr30K split (``val`` becomes dev)."""
    counts = {}
    for split, source in (("train", "train"), ("dev", "val"), ("test", "test")):
        rng = shop.rng(f"snli-ve {split}")
        records: list[dict[str, Any]] = []
        for filename, scene in pictures[source]:
            said: set[str] = set()
            while len(said) < PAIRS_PER_PICTURE:
                sentence, label = _sentence(rng, scene)
                if sentence not in said:
                    said.add(sentence)
                    records.append(_record(rng, filename, len(said), caption(rng, scene), sentence, label))
        rng.shuffle(records)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (shop.folder("flickr30k") / f"snli_ve_{split}.jsonl").write_text(lines, encoding="utf-8")
        counts[split] = len(records)
    return counts


def _record(rng: Random, filename: str, number: int, premise: str, sentence: str, label: str) -> dict[str, Any]:
    """A line in the form of the released files."""
    caption_id = f"{filename}#{rng.randrange(5)}"
    return {
        "annotator_labels": [label] * ANNOTATORS,
        "captionID": caption_id,
        "gold_label": label,
        "pairID": f"{caption_id}r{number}{label[0]}",
        "sentence1": premise,
        "sentence2": sentence,
        "Flickr30K_ID": filename.removesuffix(".jpg"),
    }
