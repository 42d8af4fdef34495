"""Models that know the truth and are wrong now and then: runs of every task, in a second and without a network."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from native import ALL_ROOTS

from beit3_bench import evaluate
from beit3_bench.tasks.contract import Example, Split
from beit3_bench.tasks.label_maps import CLASSES, IGNORE, read_label
from beit3_bench.tasks.registry import get_task


class Noisy:
    """wrong: share of answers that are not the truth."""

    def __init__(self, split: Split, seed: int = 0, wrong: float = 0.3):
        self.split, self.seed, self.wrong = split, seed, wrong
        self.of: dict[Any, Example] = {}
        for example in split.examples:
            key = example.images if example.images else None
            self.of[key, example.text] = example
        self.pools = [e.target for e in split.examples]

    def example(self, image: Any, text: str | None = None) -> tuple[Example, Random]:
        files = None if image is None else image if isinstance(image, tuple) else (image,)
        example = self.of[files, text]
        return example, Random(f"{self.seed}/{example.id}")

    def answer(self, *, images: Any, questions: Any) -> list[str]:
        said = []
        for image, question in zip(images, questions, strict=True):
            example, random = self.example(image, question)
            truth = example.target["multiple_choice_answer"]
            said.append(random.choice(self.pools)["multiple_choice_answer"] if random.random() < self.wrong else truth)
        return said

    def classify(self, *, images: Any, texts: Any = None) -> np.ndarray:
        scores = []
        for image, text in zip(images, texts or [None] * len(images), strict=True):
            example, random = self.example(image, text)
            row = np.array([random.gauss(0, 1) for _ in self.split.labels or ()])
            row[self.label(example.target)] += random.gauss(3 - 6 * self.wrong, 1)
            scores.append(row)
        return np.stack(scores)

    def label(self, target: Any) -> int:
        return list(self.split.labels or ()).index(target) if isinstance(target, str) else int(target)

    def caption(self, *, images: Any) -> list[str]:
        said = []
        for image in images:
            example, random = self.example(image)
            said.append(random.choice(random.choice(self.pools) if random.random() < self.wrong else example.target))
        return said

    def embed(self, *, images: Any = None, texts: Any = None) -> np.ndarray:
        vectors = []
        for thing in images if images is not None else texts:
            example, _ = self.example(thing) if images is not None else self.example(None, thing)
            own, noise = Random(str(example.target)), Random(f"{self.seed}/{example.id}")
            vectors.append([own.gauss(0, 1) + 4 * self.wrong * noise.gauss(0, 1) for _ in range(16)])
        array = np.array(vectors)
        return array / np.linalg.norm(array, axis=1, keepdims=True)

    def detect(self, *, images: Any) -> list[dict[str, np.ndarray]]:
        from pycocotools import mask

        from beit3_bench.tasks.metrics.coco_truth import compressed, polygons_rle

        answers = []
        ids = [c["id"] for c in self.split.truth]
        for image in images:
            example, random = self.example(image)
            width, height = example.meta["width"], example.meta["height"]
            found = []
            for record in example.target:
                if random.random() < self.wrong / 2:
                    continue
                x, y, w, h = (part + random.uniform(-2, 2) for part in record["bbox"])
                kind = (
                    random.randrange(len(ids)) if random.random() < self.wrong / 2 else ids.index(record["category_id"])
                )
                shape = record["segmentation"]
                rle = (
                    polygons_rle(shape, (height, width))
                    if isinstance(shape, list)
                    else compressed(shape, (height, width))
                )
                found.append((random.uniform(0.3, 1), kind, [x, y, x + w, y + h], mask.decode(rle).astype(bool)))
            for _ in range(random.randrange(3)):
                x, y = random.uniform(0, width / 2), random.uniform(0, height / 2)
                bitmap = np.zeros((height, width), dtype=bool)
                bitmap[int(y) : int(y + height / 4), int(x) : int(x + width / 4)] = True
                box = [x, y, x + width / 4, y + height / 4]
                found.append((random.uniform(0.05, 0.8), random.randrange(len(ids)), box, bitmap))
            found.sort(key=lambda one: -one[0])
            scores, classes, boxes, masks = zip(*found, strict=True) if found else ((), (), (), ())
            answers.append(
                {
                    "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
                    "scores": np.array(scores, dtype=np.float32),
                    "classes": np.array(classes, dtype=np.int64),
                    "masks": np.stack(masks) if masks else np.zeros((0, height, width), dtype=bool),
                }
            )
        return answers

    def segment(self, *, images: Any) -> list[np.ndarray]:
        maps = []
        for image in images:
            example, random = self.example(image)
            label = read_label(example.truth_files[0]).astype(np.int64)
            label[label == IGNORE] = random.randrange(CLASSES)
            for kind in np.unique(label).tolist():
                if random.random() < self.wrong / 2:
                    label[label == kind] = random.randrange(CLASSES)
            maps.append(np.roll(label, random.randrange(4), axis=1).astype(np.uint8))
        return maps


def make_run(world: Path, task: str, folder: Path, seed: int = 0, wrong: float = 0.3, **options: Any) -> Path:
    """A finished run of a noisy model."""
    root = world / ALL_ROOTS[task]
    cls = get_task(task)
    name = options.pop("split", None) or ("minival" if task == "vqav2" else cls.default_split)
    split = cls(root).read(name)
    evaluate(Noisy(split, seed, wrong), task, root, split=name, output=folder, **options)
    return folder
