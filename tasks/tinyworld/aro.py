"""The ARO folder: relations and attributes of two things in a rectangle of a picture, and shuffled captions of COCO and Flickr30K.

Tree below ``aro/``::

    visual_genome_relation.json  visual_genome_attribution.json  images/2300000.jpg
    coco_order_test.json  flickr30k_order_test.json          (pictures: in coco/ and flickr30k/ beside it)
"""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

from beit3_bench.tasks.tinyworld.plan import Workshop, write_json
from beit3_bench.tasks.tinyworld.scenes import BACKGROUNDS, COLORS, NOVEL_SHAPES, SHAPES, SIZES, Scene, sample_thing
from beit3_bench.tasks.tinyworld.text import relation, words

ATTRIBUTES = (("red", "blue"), ("green", "yellow"))
"""Few pairs, so that each has the 25 questions by which it counts."""
_NAMES = {*SHAPES, *NOVEL_SHAPES, *COLORS, *BACKGROUNDS, *SIZES, "picture", "background", "corner", "shapes"}


def write_aro(shop: Workshop) -> dict[str, int]:
    """After `coco.write_coco` and `flickr30k.write_flickr30k`, whose captions are shuffled."""
    rng, folder = shop.rng("aro"), shop.folder("aro", "images")
    relations: list[dict[str, Any]] = []
    attributes: list[dict[str, Any]] = []
    scenes = shop.source.draw(rng, shop.counts.aro, count=2)
    for number, scene in enumerate(scenes):
        scene = _colored(rng, scene, ATTRIBUTES[number % len(ATTRIBUTES)])
        name = 2_300_000 + number
        shop.painter.save_jpeg(scene, folder / f"{name}.jpg")
        first, second = scene.things
        place = {"image_id": name, "image_path": f"{name}.jpg", **_rectangle(rng, scene)}
        side = relation(first, second)
        relations.append(
            {
                **place,
                "true_caption": f"the {first.shape} is {side} the {second.shape}",
                "false_caption": f"the {second.shape} is {side} the {first.shape}",
                "relation_name": side,
            }
        )
        one, another = (
            (first, second) if rng.random() < 0.5 else (second, first)
        )  # no colour is mentioned first more often
        attributes.append(
            {
                **place,
                "true_caption": f"the {one.color} {one.shape} and the {another.color} {another.shape}",
                "false_caption": f"the {another.color} {one.shape} and the {one.color} {another.shape}",
                "attributes": [first.color, second.color],
            }
        )
    write_json(shop.folder("aro") / "visual_genome_relation.json", relations)
    write_json(shop.folder("aro") / "visual_genome_attribution.json", attributes)
    counts = {"vg-relation": len(relations), "vg-attribution": len(attributes)}
    for other in ("coco", "flickr30k"):
        content = json.loads((shop.folder(other) / f"dataset_{other}.json").read_text(encoding="utf-8"))
        cases = _shuffled(shop.rng(f"aro {other}"), content["images"])
        write_json(shop.folder("aro") / f"{other}_order_test.json", cases)
        counts[f"{other}-order"] = len(cases)
    return counts


def _colored(rng: Random, scene: Scene, colors: tuple[str, str]) -> Scene:
    """The scene with two things of these colours and of two shapes, in its cells."""
    frame, shapes = (scene.width, scene.height), rng.sample(SHAPES, 2)
    things = tuple(
        sample_thing(rng, frame, thing.cell, shape, color, thing.size)
        for thing, shape, color in zip(scene.things, shapes, colors, strict=True)
    )
    return replace(scene, things=things)


def _rectangle(rng: Random, scene: Scene) -> dict[str, int]:
    """Around both things, a little larger, inside the picture."""
    left = max(0, int(min(t.x - t.radius for t in scene.things)) - rng.randint(1, 4))
    top = max(0, int(min(t.y - t.radius for t in scene.things)) - rng.randint(1, 4))
    right = min(scene.width, int(max(t.x + t.radius for t in scene.things)) + rng.randint(2, 5))
    bottom = min(scene.height, int(max(t.y + t.radius for t in scene.things)) + rng.randint(2, 5))
    return {"bbox_x": left, "bbox_y": top, "bbox_w": right - left, "bbox_h": bottom - top}


def _shuffled(rng: Random, images: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every test caption what the official `TextShuffler` does: names among each other, all but names, within threes, whole threes."""
    cases = []
    for image in images:
        if image["split"] != "test":
            continue
        path = f"{image.get('filepath', 'flickr30k-images')}/{image['filename']}"
        for sentence in image["sentences"]:
            caption = words(sentence["raw"])
            threes = [caption[n : n + 3] for n in range(0, len(caption), 3)]
            within = [rng.sample(three, len(three)) for three in threes]
            options = [
                caption,
                _permuted(rng, caption, names=True),
                _permuted(rng, caption, names=False),
                [word for three in within for word in three],
                [word for three in rng.sample(threes, len(threes)) for word in three],
            ]
            cases.append({"image": path, "caption_options": [" ".join(option) for option in options]})
    return cases


def _permuted(rng: Random, caption: list[str], names: bool) -> list[str]:
    """With the names (nouns and adjectives) in another order, or all other words."""
    chosen = [n for n, word in enumerate(caption) if (word in _NAMES) == names]
    moved = list(caption)
    for n, source in zip(chosen, rng.sample(chosen, len(chosen)), strict=True):
        moved[n] = caption[source]
    return moved
