"""The nocaps folder: ten captions per picture, by domain.

Tree below ``nocaps/``::

    val/0a1b2c3d4e5f6071.jpg            test/...
    nocaps_val_4500_captions.json       (images with domain and width, height; annotations {image_id, id, caption})
    nocaps_test_image_info.json         (images alone)

in-domain: shapes that COCO has; out-domain: only shapes that COCO lacks; near-domain: both.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from beit3_bench.tasks.tinyworld import text
from beit3_bench.tasks.tinyworld.plan import Workshop, write_json
from beit3_bench.tasks.tinyworld.scenes import NOVEL_SHAPES, SHAPES, Scene, sample_scene

DOMAINS = ("in-domain", "near-domain", "out-domain")


def _scene(rng: Random, domain: str) -> Scene:
    if domain == "in-domain":
        return sample_scene(rng)
    if domain == "out-domain":
        return sample_scene(rng, shapes=NOVEL_SHAPES)
    scene = sample_scene(rng, count=rng.choice((2, 3)), shapes=SHAPES)
    things = list(scene.things)
    place = rng.randrange(len(things))
    things[place] = replace(things[place], shape=rng.choice(NOVEL_SHAPES))
    return replace(scene, things=tuple(things))


def write_nocaps(shop: Workshop) -> dict[str, int]:
    counts = {}
    for split, number in (("val", shop.counts.nocaps_val), ("test", shop.counts.nocaps_test)):
        rng = shop.rng(f"nocaps {split}")
        folder = shop.folder("nocaps", split)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(number):
            domain = DOMAINS[i % 3]
            scene = _scene(rng, domain)
            name = f"{rng.getrandbits(64):016x}"
            shop.painter.save_jpeg(scene, folder / f"{name}.jpg")
            image: dict[str, Any] = {
                "license": 0,
                "open_images_id": name,
                "file_name": f"{name}.jpg",
                "id": i,
                "width": scene.width,
                "height": scene.height,
                "coco_url": "",
                "date_captured": "2018-11-06 11:04:33",
            }
            if split == "val":
                image["domain"] = domain
                raw = text.captions(rng, scene, 10)
                shop.text += raw
                annotations += [{"image_id": i, "id": 10 * i + j, "caption": words} for j, words in enumerate(raw)]
            images.append(image)
        content: dict[str, Any] = {
            "info": {"description": "Tiny world in the layout of nocaps", "url": "", "version": "1.0", "year": 2018},
            "licenses": [{"url": "https://creativecommons.org/publicdomain/zero/1.0/", "id": 0, "name": "CC0 1.0"}],
            "images": images,
        }
        if split == "val":
            content["annotations"] = annotations
        name = "nocaps_val_4500_captions.json" if split == "val" else "nocaps_test_image_info.json"
        write_json(shop.folder("nocaps") / name, content)
        counts[split] = number
    return counts
