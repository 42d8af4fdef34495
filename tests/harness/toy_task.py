"""A task and a family without BEiT-3: labels are the sign of a number, so that the harness can be tested in milliseconds.

Run as a program, it evaluates itself like `beit3-bench run` does (for tests that kill or multiply processes).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.backbones.abilities import Batch, Classifies, Item, Reader
from beit3_bench.backbones.family import Asked, Family, Identity, LoadOptions, Model, ModelCard, digest
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError, requires
from beit3_bench.tasks.contract import Example, Row, ScoreInputs, Split, Task
from beit3_bench.tasks.files import read_json
from beit3_bench.tasks.scores import ClusterTable, Metric, Scores, ratio_of

# ---- the family ---------------------------------------------------------------------------------------------------------


class ToyReader(Reader):
    """Numbers are written in the texts."""

    def __init__(self, fail: str = ""):
        self.fail = fail

    def collate(self, items: Sequence[Item]) -> Batch:
        import torch

        for item in items:
            if item.id == self.fail:
                raise BenchError(f"{item.id}.jpg: image does not decode; download it again")
        return {
            "values": torch.tensor([float(item.text) for item in items]),
            "images": torch.zeros(len(items), 3, 2, 2, dtype=torch.uint8),
            "token_ids": torch.ones(len(items), 4, dtype=torch.long),
            "padding_mask": torch.tensor([[False, False, False, True]] * len(items)),
        }


class ToyAbility(Classifies):
    """The number, cut to -1..1."""

    bias, slow = 0.0, 0.0

    def predict(self, batch: Batch) -> list[Any]:
        time.sleep(self.slow)
        return list(self.module((batch["values"] + self.bias).unsqueeze(1)).cpu().numpy())


def toy_ability(values: Mapping[str, Any] | None = None) -> ToyAbility:
    import torch

    values = values or {}
    ability = ToyAbility(torch.nn.Hardtanh(), ToyReader(values.get("fail", "")))
    ability.bias, ability.slow = values.get("bias", 0.0), values.get("slow", 0.0)
    return ability


class ToyFamily(Family):
    """A task that needs a framework of nobody is refused as tasks with optional stacks are."""

    name, title = "toy", "Toy"
    abilities = (Classifies,)

    def claims(self, source: Source) -> bool:
        return source.path.name.startswith("toy")

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        if asked.task == "needs-stack":
            requires("framework_of_nobody", "task needs-stack")
        sha256 = hashlib.sha256(source.path.read_bytes()).hexdigest()
        card = ModelCard("toy", source.path.name, sha256, preset="tiny", image_size=8)
        return Model(toy_ability(asked.values), card, Identity(sha256, digest({}), digest("pixels")))


# ---- the task -----------------------------------------------------------------------------------------------------------


def estimate(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"accuracy": sums["right"] / sums["n"]}


class ToyTask(Task):
    name = "toy"
    title = "Sign of a number"
    ability = Classifies
    splits = ("test", "hidden", "empty")
    default_split = "test"
    metrics = (
        Metric("accuracy", "fraction", headline=True, formula=estimate, ratio=ratio_of("right", "n")),
        Metric("accuracy/kind", "fraction", decimals=2),
    )

    @dataclass
    class Options:
        """bias: added to every number.
        fail: id whose image does not decode.
        slow: seconds per batch.
        """

        bias: float = 0.0
        fail: str = ""
        slow: float = 0.0

    def read(self, split: str) -> Split:
        path = self.data_root / "toy.json"
        records = [] if split == "empty" else read_json(path, "toy numbers")
        examples = [
            Example(
                record["id"],
                images=(str(self.data_root / record["image"]),) if "image" in record else (),
                text=str(record["value"]),
                cluster=record["id"][:2],
                target=None if split == "hidden" else record["value"] > 0,
            )
            for record in records
        ]
        return Split(split, tuple(examples))

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        return [{"id": e.id, "positive": bool(v[0] > 0), "embedding": v} for e, v in zip(examples, values, strict=True)]

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        examples = split.examples
        right = np.array([rows[e.id]["positive"] == e.target for e in examples], dtype=float)
        table = ClusterTable.collect([e.cluster for e in examples], {"right": right, "n": np.ones(len(right))})
        accuracy = float(right.mean())
        samples = {"right": {e.id: float(r) for e, r in zip(examples, right, strict=True)}}
        metrics = {"accuracy": accuracy, "accuracy/kind/x": accuracy, "undefined": float("nan")}
        return Scores(metrics, {"numbers": len(examples)}, table, ["a toy"], samples, chance=0.5)

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        values = read_json(inputs.predictions, "toy predictions")
        return Scores({"accuracy": 1 / 3, "undefined": float("nan")}, {"numbers": len(values)}, notes=["scored a file"])

    def submission(self, rows: Mapping[str, Row], split: Split, folder: Path) -> list[Path]:
        if any(e.target is not None for e in split.examples):
            return []
        path = folder / "answers.json"
        path.write_text(json.dumps({i: row["positive"] for i, row in rows.items()}))
        return [path]


class NeedsStack(ToyTask):
    name = "needs-stack"
    title = "A task whose framework is missing"


TASKS = {"toy": ToyTask, "needs-stack": NeedsStack}


def register(setattr_: Any = setattr) -> None:
    """Make the registries know these tasks and no others, and this family beside the built-in ones."""
    from beit3_bench.backbones import registry as families
    from beit3_bench.tasks import registry

    setattr_(registry, "get_task", lambda name: TASKS[name])
    setattr_(registry, "task_names", lambda: list(TASKS))
    locations = {"toy": "toy_task:ToyFamily", **families.family_locations()}
    setattr_(families, "family_locations", lambda: locations)


def write_toy_data(root: Path, count: int = 40, images: bool = False) -> Path:
    """Numbers 1, -2, 3, -4, ... each its own example; clusters of ten."""
    root.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for i in range(count):
        record: dict[str, Any] = {"id": f"{i:03d}", "value": (i + 1) / 100 * (-1) ** i}
        if images:
            record["image"] = f"{i:03d}.jpg"
            (root / f"{i:03d}.jpg").write_bytes(b"x" * (i + 1))
        records.append(record)
    (root / "toy.json").write_text(json.dumps(records))
    (root / "toy.pth").write_bytes(b"weights")
    return root


if __name__ == "__main__":
    from beit3_bench.harness.cli import main

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    register()
    main(sys.argv[1:])
