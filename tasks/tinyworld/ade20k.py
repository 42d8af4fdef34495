"""The ADE20K folder (ADEChallengeData2016): pictures and label maps.

Tree below ``ADEChallengeData2016/``::

    images/training/ADE_train_00000001.jpg         annotations/training/ADE_train_00000001.png
    images/validation/ADE_val_00000001.jpg         annotations/validation/ADE_val_00000001.png
    objectInfo150.txt

Label maps are uint8 grey: 0 = not labelled, 1..150 = classes. A scene stands before two kinds of stuff, above and below
a horizon; every labelled shape has its own usual colour here, as grass is usually green. Hearts are objects without a
class: 0.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from random import Random

import numpy as np
from PIL import Image

from beit3_bench.tasks.tinyworld.plan import Workshop
from beit3_bench.tasks.tinyworld.render import encode, label_map
from beit3_bench.tasks.tinyworld.scenes import COLORS, Scene, Thing, add_ground, sample_scene, sample_thing, shade

STUFF = {"gray": 1, "white": 3, "tan": 47, "black": 7}
"""Background -> class: wall, sky, sand, road."""

OBJECTS = {"circle": 120, "square": 42, "triangle": 115, "star": 67, "ring": 143, "cross": 140}
"""Shape -> class: ball, box, tent, flower, plate, fan."""

USUAL_COLORS = {
    "circle": "red",
    "square": "orange",
    "triangle": "green",
    "star": "yellow",
    "ring": "blue",
    "cross": "purple",
}
UNLABELLED_SHAPE = "heart"


def _scene(rng: Random) -> Scene:
    scene = sample_scene(rng, count=rng.choice((1, 2, 3)))
    things = tuple(_usual(rng, thing) for thing in scene.things)
    if rng.random() < 0.15:
        free = rng.choice([cell for cell in range(4) if cell not in {t.cell for t in things}])
        heart = sample_thing(rng, (scene.width, scene.height), free, UNLABELLED_SHAPE, rng.choice(tuple(COLORS)))
        things = (*things, heart)
    above, below = rng.choice(("gray", "white")), rng.choice(("tan", "black"))
    return add_ground(rng, replace(scene, things=things), above, below)


def _usual(rng: Random, thing: Thing) -> Thing:
    color = USUAL_COLORS[thing.shape]
    return replace(thing, color=color, rgb=shade(rng, COLORS[color], 12))


def write_ade20k(shop: Workshop) -> dict[str, int]:
    sizes = {"training": shop.counts.ade20k_training, "validation": shop.counts.ade20k_validation}
    pixels = np.zeros(151, dtype=np.int64)
    present = {split: np.zeros(151, dtype=np.int64) for split in sizes}
    for split, number in sizes.items():
        rng = shop.rng(f"ade20k {split}")
        images, labels = (
            shop.folder("ADEChallengeData2016", "images", split),
            shop.folder("ADEChallengeData2016", "annotations", split),
        )
        for i in range(1, number + 1):
            name = f"ADE_{'train' if split == 'training' else 'val'}_{i:08d}"
            scene = _scene(rng)
            shop.painter.save_jpeg(scene, images / f"{name}.jpg")
            truth = label_map(scene, STUFF, OBJECTS)
            encode(Image.fromarray(truth), labels / f"{name}.png", "PNG")
            histogram = np.bincount(truth.ravel(), minlength=151)
            pixels += histogram
            present[split] += histogram > 0
    names = json.loads(resources.files(__package__).joinpath("ade150.json").read_text(encoding="utf-8"))
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    for i, name in enumerate(names, 1):
        share = pixels[i] / pixels[1:].sum()
        lines.append(f"{i}\t{share:.4f}\t{present['training'][i]}\t{present['validation'][i]}\t{name}")
    (shop.folder("ADEChallengeData2016") / "objectInfo150.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sizes
