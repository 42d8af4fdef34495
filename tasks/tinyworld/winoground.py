"""The Winoground folder: ``examples.jsonl`` and ``images/ex_0_img_0.png``, two scenes each that the same words tell apart.

Either two things change places (Relation), or their colours (Object), or both (Both): the two captions of a question have the same words,
and each is true of its own picture alone.
"""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random
from typing import Any

from beit3_bench.tasks.tinyworld.plan import Workshop
from beit3_bench.tasks.tinyworld.scenes import COLORS, SHAPES, Scene, Thing, sample_scene, sample_thing
from beit3_bench.tasks.tinyworld.text import relation, with_article

TAGS = ("Relation", "Object", "Both")


def _said(scene: Scene, tag: str) -> str:
    first, second = (with_article(f"{thing.color} {thing.shape}") for thing in scene.things)
    if tag == "Object":
        return f"{first} and {second}"
    return f"{first} {relation(*scene.things)} {second}"


def _shown(rng: Random, scene: Scene, kinds: tuple[tuple[str, str], tuple[str, str]]) -> Scene:
    """The scene with things of other kinds in the same cells."""
    frame = scene.width, scene.height
    things: list[Thing] = [
        sample_thing(rng, frame, thing.cell, shape, color, thing.size)
        for thing, (color, shape) in zip(scene.things, kinds, strict=True)
    ]
    return replace(scene, things=tuple(things))


def _pair(rng: Random, tag: str) -> tuple[Scene, Scene]:
    scene = sample_scene(rng, count=2)
    colors, shapes = rng.sample(tuple(COLORS), 2), rng.sample(SHAPES, 2)
    kinds = (colors[0], shapes[0]), (colors[1], shapes[1])
    swapped = (colors[1], shapes[0]), (colors[0], shapes[1])
    other = {"Relation": kinds[::-1], "Object": swapped, "Both": swapped[::-1]}[tag]
    return _shown(rng, scene, kinds), _shown(rng, scene, other)


def write_winoground(shop: Workshop) -> dict[str, int]:
    rng, folder = shop.rng("winoground"), shop.folder("winoground", "images")
    records: list[dict[str, Any]] = []
    for number in range(shop.counts.winoground):
        tag = TAGS[number % len(TAGS)]
        scenes = _pair(rng, tag)
        stems = [f"ex_{number}_img_{side}" for side in (0, 1)]
        for scene, stem in zip(scenes, stems, strict=True):
            shop.painter.save_png(scene, folder / f"{stem}.png")
        captions = [_said(scene, tag) for scene in scenes]
        records.append(
            {
                "id": number,
                **{f"image_{side}": stem for side, stem in enumerate(stems)},
                **{f"caption_{side}": caption for side, caption in enumerate(captions)},
                "tag": f"{tag}-Shape",
                "secondary_tag": "",
                "num_main_preds": 1,
                "collapsed_tag": tag,
            }
        )
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (shop.folder("winoground") / "examples.jsonl").write_text(lines, encoding="utf-8")
    return {"test": len(records)}
