"""The COCO folder: pictures under their 2014 and 2017 names, Karpathy split, instances and captions.

Tree below ``coco/``::

    train2014/COCO_train2014_000000000009.jpg        val2014/COCO_val2014_000000000042.jpg
    test2015/COCO_test2015_000000000001.jpg
    train2017/000000000009.jpg                       val2017/000000000042.jpg       test2017/000000000001.jpg
    dataset_coco.json                                (Karpathy: train = train2014; restval, val, test: val2014)
    annotations/instances_train2017.json             annotations/instances_val2017.json
    annotations/image_info_test-dev2017.json         annotations/captions_val2014.json
    vqa/v2_*.json                                    (see `vqa`)

val2017 holds the pictures of Karpathy's val and test, train2017 all others, so that no protocol trains on the pictures
that another one tests on. Files of 2014 and 2017 names are hard links of each other.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from beit3_bench.tasks.tinyworld import geometry, render, text
from beit3_bench.tasks.tinyworld.karpathy import KarpathyFile
from beit3_bench.tasks.tinyworld.plan import CocoPicture, Workshop, link, write_json
from beit3_bench.tasks.tinyworld.scenes import BACKGROUNDS, Scene, sample_scene

CATEGORY_IDS = {"circle": 1, "square": 3, "triangle": 7, "star": 16, "ring": 37, "cross": 90}
"""With gaps, as COCO's 80 categories of 1..90."""

_SUPERCATEGORIES = {
    "circle": "round",
    "ring": "round",
    "square": "cornered",
    "triangle": "cornered",
    "star": "spiky",
    "cross": "spiky",
}

_LICENSES = [{"url": "https://creativecommons.org/publicdomain/zero/1.0/", "id": 1, "name": "CC0 1.0"}]


def _info(what: str) -> dict[str, Any]:
    return {
        "description": f"Tiny world: {what}",
        "url": "",
        "version": "1.0",
        "year": 2017,
        "contributor": "beit3-bench",
        "date_created": "2017/09/01",
    }


def write_coco(shop: Workshop) -> dict[str, int]:
    """Write everything but the VQA files; leaves the pictures in ``shop.coco`` for `vqa.write_vqa`."""
    rng = shop.rng("coco")
    _draw_pictures(shop, rng)
    for picture in shop.coco:
        subset_2017 = _subset_2017(picture)
        path = shop.folder("coco", picture.subset) / picture.filename
        gray = not picture.scene.things and picture.scene.background == "gray" and picture.split == "train"
        shop.painter.save_jpeg(picture.scene, path, "L" if gray else "RGB")
        link(path, shop.folder("coco", subset_2017) / picture.filename_2017)
    karpathy = _write_captions(shop, shop.rng("coco captions"))
    counts: dict[str, int] = {}
    for picture in shop.coco:
        counts[picture.split or picture.subset] = counts.get(picture.split or picture.subset, 0) + 1
    counts["captions"] = karpathy
    for subset in ("train2017", "val2017"):
        counts[f"{subset} instances"] = _write_instances(shop, subset)
    test_dev = [p for p in shop.coco if p.subset == "test2015"]
    write_json(
        shop.folder("coco", "annotations") / "image_info_test-dev2017.json",
        {
            "info": _info("test-dev2017"),
            "images": [_image_record(p, "test2017") for p in test_dev[: (len(test_dev) + 1) // 2]],
            "licenses": _LICENSES,
            "categories": _categories(),
        },
    )
    return counts


def _draw_pictures(shop: Workshop, rng: Random) -> None:
    counts = shop.counts
    parts = [
        ("train2014", "train", counts.coco_train, 3),
        ("val2014", "restval", counts.coco_restval, 2),
        ("val2014", "val", counts.coco_val, 1),
        ("val2014", "test", counts.coco_test, 1),
        ("test2015", None, counts.coco_unlabelled, 0),
    ]
    total = sum(number for _, _, number, _ in parts)
    ids = iter(rng.sample(range(9, 581930), total))
    # Galleries first: they need the rare scenes that captions tell apart.
    drawn: dict[str | None, list[Scene]] = {}
    for _, split, number, empty in sorted(parts, key=lambda part: part[1] not in ("val", "test")):
        gallery = split in ("val", "test")
        scenes = shop.source.draw(rng, number - empty, gallery, crowds=0.05, splits=0.06)
        scenes += [_empty(rng, background) for background in tuple(BACKGROUNDS)[:empty]]
        rng.shuffle(scenes)
        drawn[split] = scenes
    for subset, split, _, _ in parts:
        shop.coco += [CocoPicture(next(ids), scene, subset, split) for scene in drawn[split]]


def _empty(rng: Random, background: str) -> Scene:
    scene = sample_scene(rng, count=0)
    return replace(scene, background=background, rgb=BACKGROUNDS[background])


def _subset_2017(picture: CocoPicture) -> str:
    if picture.split is None:
        return "test2017"
    return "val2017" if picture.split in ("val", "test") else "train2017"


def _write_captions(shop: Workshop, rng: Random) -> int:
    karpathy = KarpathyFile("coco")
    official: list[dict[str, Any]] = []
    total = 0
    for picture in shop.coco:
        if picture.split is None:
            continue
        number = rng.choices((5, 6, 7), weights=(88, 9, 3))[0]
        raw = text.captions(rng, picture.scene, number)
        shop.text += raw
        sentids = karpathy.add(picture.filename, picture.split, raw, filepath=picture.subset, cocoid=picture.id)
        total += number
        if picture.subset == "val2014":
            official += [
                {"image_id": picture.id, "id": i, "caption": words} for i, words in zip(sentids, raw, strict=True)
            ]
    write_json(shop.folder("coco") / "dataset_coco.json", karpathy.content())
    rng.shuffle(official)
    val = [p for p in shop.coco if p.subset == "val2014"]
    write_json(
        shop.folder("coco", "annotations") / "captions_val2014.json",
        {
            "info": _info("captions_val2014"),
            "images": [_image_record(p, "val2014") for p in val],
            "licenses": _LICENSES,
            "annotations": official,
        },
    )
    return total


def _image_record(picture: CocoPicture, subset: str) -> dict[str, Any]:
    return {
        "license": 1,
        "file_name": picture.filename_2017 if subset.endswith("2017") else picture.filename,
        "coco_url": "",
        "height": picture.scene.height,
        "width": picture.scene.width,
        "date_captured": "2017-09-01 00:00:00",
        "flickr_url": "",
        "id": picture.id,
    }


def _categories() -> list[dict[str, Any]]:
    return [{"supercategory": _SUPERCATEGORIES[name], "id": i, "name": name} for name, i in CATEGORY_IDS.items()]


def _write_instances(shop: Workshop, subset: str) -> int:
    pictures = [p for p in shop.coco if _subset_2017(p) == subset]
    annotations: list[dict[str, Any]] = []
    next_id = 1000 if subset == "train2017" else 900000
    for picture in pictures:
        for record in _objects(picture.scene):
            annotations.append({**record, "image_id": picture.id, "id": next_id})
            next_id += 7
    write_json(
        shop.folder("coco", "annotations") / f"instances_{subset}.json",
        {
            "info": _info(f"instances_{subset}"),
            "licenses": _LICENSES,
            "images": [_image_record(p, subset) for p in pictures],
            "annotations": annotations,
            "categories": _categories(),
        },
    )
    return len(annotations)


def _objects(scene: Scene) -> list[dict[str, Any]]:
    records = [
        {
            "segmentation": geometry.coco_polygons(thing),
            "area": round(geometry.area(thing), 4),
            "iscrowd": 0,
            "bbox": geometry.box(thing),
            "category_id": CATEGORY_IDS[thing.shape],
        }
        for thing in scene.things
    ]
    if scene.crowd:
        mask = render.stamp((scene.width, scene.height), [(thing, 1) for thing in scene.crowd]) > 0
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]  # type: ignore[misc]
        left, top = int(columns[0]), int(rows[0])
        records.append(
            {
                "segmentation": {"counts": render.run_lengths(mask), "size": [scene.height, scene.width]},
                "area": int(mask.sum()),
                "iscrowd": 1,
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "category_id": CATEGORY_IDS[scene.crowd[0].shape],
            }
        )
    return records
