"""A task from another package: which colour is the swatch? It brings its data's form, a recipe, and facts (outside-task.toml)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from beit3_bench.backbones.abilities import Classifies
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import ClusterTable, Example, Metric, Row, Scores, Split, Task
from beit3_bench.tasks.files import read_json

COLOURS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (40, 70, 200)}


def write_swatches(root: Path, count: int = 24, names: Sequence[str] = tuple(COLOURS), size: int = 32) -> Path:
    """``classes.json``, and ``count`` images each of train and test with ``train.json`` and ``test.json``."""
    random = Random(0)
    (root / "images").mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps(list(names)))
    for split in ("train", "test"):
        records = []
        for n in range(count):
            name = names[n % len(names)]
            colour = tuple(channel + random.randint(-30, 30) for channel in COLOURS[name])
            file = f"images/{split}-{n:02d}.png"
            Image.new("RGB", (size, size), colour).save(root / file)
            records.append({"id": f"{split}-{n:02d}", "image": file, "class": name})
        (root / f"{split}.json").write_text(json.dumps(records))
    return root


def estimate(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"accuracy": sums["right"] / sums["images"]}


class Swatches(Task):
    """Swatches of a few colours."""

    name = "outside-task"
    ability = Classifies
    uses_text = False
    outputs = "colours"
    splits = ("test", "train")
    default_split = "test"
    metrics = (Metric("accuracy", "fraction", headline=True, formula=estimate),)
    row_shape: ClassVar[Mapping[str, Any]] = {"colour": str}
    layout = "DATA_ROOT/classes.json, train.json, test.json, images/*.png"

    @dataclass
    class Options:
        """only: colour that alone is evaluated; default: all."""

        only: str | None = None

    def read(self, split: str) -> Split:
        path = self.data_root / "classes.json"
        labels = read_json(path, "colours")
        examples = [
            Example(r["id"], (str(self.data_root / r["image"]),), None, r["id"], labels.index(r["class"]), "image")
            for r in read_json(self.data_root / f"{split}.json", "swatches")
            if self.options.only in (None, r["class"])
        ]
        if not examples:
            raise BenchError(f"{path}: no swatch is {self.options.only!r}; choose one of: {', '.join(labels)}")
        return Split(split, tuple(examples), tuple(labels), path)

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        labels = split.labels or ()
        return [{"id": e.id, "colour": labels[int(v.argmax())]} for e, v in zip(examples, values, strict=True)]

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        labels = split.labels or ()
        right = [float(rows[e.id]["colour"] == labels[e.target]) for e in split.examples]
        table = ClusterTable.collect(
            [e.cluster for e in split.examples], {"right": right, "images": [1.0] * len(right)}
        )
        samples = {"accuracy": {e.id: value for e, value in zip(split.examples, right, strict=True)}}
        return Scores.of(self.metrics, table, {"images": len(right)}, samples=samples, chance=1 / len(labels))

    @classmethod
    def recipes(cls) -> Mapping[str, Mapping[str, Any]]:
        shared = {"image_size": 32, "batch": 12, "lr": 2e-3, "layer_decay": 1.0, "drop_path": 0.0, "flip": 0.5}
        return {
            "tiny": {**shared, "steps": 40, "warmup_steps": 4, "glorot": True, "validation_split": "test"},
            "short": {"inherits": "tiny", "steps": 2, "warmup_steps": 1},
        }
