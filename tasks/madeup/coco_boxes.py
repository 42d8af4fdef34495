"""A made-up instances file of COCO val2017's size and the detections of a made-up strong detector on it."""

from __future__ import annotations

from typing import Any

import numpy as np

IMAGES, OBJECTS, CROWDS, CATEGORIES, DETECTIONS = 5_000, 36_781, 446, 80, 100
PERSONS = 11_004


def made_up_coco(images: int = IMAGES, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes with COCO's counts, class frequencies and shares of small, medium and large objects (41, 34 and 24 %).

    Every object is found with a quality that decides its score and overlap, mostly of its own class; every image is
    filled up with duplicates and background of low score to 100 detections. Box AP is about 0.45 to 0.55.
    """
    random = np.random.default_rng(seed)
    share = images / IMAGES
    objects, crowds = round(OBJECTS * share), round(CROWDS * share)
    frequency = np.geomspace(1.0, 0.01, CATEGORIES - 1)
    frequency = np.concatenate([[PERSONS / OBJECTS], (1 - PERSONS / OBJECTS) * frequency / frequency.sum()])
    category = random.choice(CATEGORIES, objects, p=frequency) + 1
    image = np.sort(random.choice(images, objects, p=random.dirichlet(np.full(images, 1.1)))) + 1
    side = np.exp(random.choice([np.log(18), np.log(58), np.log(170)], objects, p=[0.42, 0.34, 0.24]))
    side = side * np.exp(random.normal(0, 0.3, objects))
    ratio = np.exp(random.normal(0, 0.35, objects))
    size = np.stack([side * ratio, side / ratio], axis=1).clip(3, 470)
    corner = random.random((objects, 2)) * (np.array([640, 480]) - size).clip(min=1)
    truth = np.concatenate([corner, size], axis=1)
    crowd = np.zeros(objects, dtype=int)
    crowd[random.choice(objects, crowds, replace=False)] = 1

    ease = random.beta(2.2, 1.2, objects) * (0.75 + 0.25 * (side > 32))
    kinds = []
    for copy, (kept, lower) in enumerate([(0.93, 1.0), (0.5, 0.25), (0.3, 0.12)]):
        of = np.flatnonzero(random.random(objects) < kept)
        noise = (0.012 + 0.14 * (1 - ease[of]) ** 1.5 + 0.1 * copy)[:, None] * random.normal(0, 1, (len(of), 4))
        box = truth[of].copy()
        box[:, :2] += noise[:, :2] * size[of]
        box[:, 2:] *= np.exp(noise[:, 2:])
        kind = np.where(random.random(len(of)) < 0.96, category[of], random.integers(1, CATEGORIES + 1, len(of)))
        score = (lower * ease[of] ** 1.3 * random.beta(9, 1.5, len(of))).clip(0.001, 0.999)
        kinds.append((image[of], kind, box, score))
    there = np.sum([np.bincount(k[0], minlength=images + 1) for k in kinds], axis=0)
    missing = (DETECTIONS - there[1:]).clip(min=0)
    n = int(missing.sum())
    size = np.exp(random.normal(3.8, 0.9, (n, 2))).clip(3, 470)
    corner = random.random((n, 2)) * (np.array([640, 480]) - size).clip(min=1)
    # background is mostly taken for what is in the image anyway
    first = np.searchsorted(image, np.repeat(np.arange(1, images + 1), missing)).clip(max=objects - 1)
    kind = np.where(random.random(n) < 0.5, category[first], random.choice(CATEGORIES, n, p=frequency) + 1)
    score = np.exp(random.normal(-4.2, 0.9, n)).clip(0.001, 0.95)
    kinds.append((np.repeat(np.arange(1, images + 1), missing), kind, np.concatenate([corner, size], axis=1), score))

    annotations = [
        {
            "id": i + 1,
            "image_id": int(image[i]),
            "category_id": int(category[i]),
            "bbox": truth[i].tolist(),
            "area": float(0.7 * truth[i, 2] * truth[i, 3]),
            "iscrowd": int(crowd[i]),
        }
        for i in range(objects)
    ]
    columns = [np.concatenate(part) for part in zip(*kinds, strict=True)]
    order = np.lexsort((-columns[3], columns[0]))
    detections = [
        {"image_id": i, "category_id": k, "bbox": b, "score": s}
        for i, k, b, s in zip(*(column[order].tolist() for column in columns), strict=True)
    ]
    names = [{"id": c, "name": f"class {c}"} for c in range(1, CATEGORIES + 1)]
    pictures = [{"id": i, "height": 480, "width": 640} for i in range(1, images + 1)]
    return {"images": pictures, "annotations": annotations, "categories": names}, detections
