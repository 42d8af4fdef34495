"""A task without BEiT-3: labels are the sign of a number, so that the harness can be tested in milliseconds.

Run as a program, it evaluates itself like `beit3-bench run` does (for tests that kill or multiply processes).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, ScoreInputs, Task
from beit3_bench.tasks.files import read_json
from beit3_bench.tasks.scores import ClusterTable, Metric, Scores


class ToyTask(Task):
    name = "toy"
    title = "Sign of a number"
    head = "toy"
    splits = ("test", "hidden", "empty")
    default_split = "test"
    metrics = (Metric("accuracy", "fraction", headline=True), Metric("accuracy/kind", "fraction", decimals=2))
    uses_text = False

    @dataclass
    class Options:
        """bias: added to every number.  fail: id whose image does not decode.  slow: seconds per batch."""

        bias: float = 0.0
        fail: str = ""
        slow: float = 0.0

    def examples(self, split: str) -> list[Example]:
        path = self.data_root / "toy.json"
        records = [] if split == "empty" else read_json(path, "toy numbers")
        return [
            Example(
                record["id"],
                images=(str(self.data_root / record["image"]),) if "image" in record else (),
                cluster=record["id"][:2],
                target=None if split == "hidden" else record["value"] > 0,
                meta={"value": record["value"]},
            )
            for record in records
        ]

    def load_model(
        self, checkpoint: Path, preset: str | None, image_size: int | None, allow_missing: Sequence[str]
    ) -> Any:
        import torch

        from beit3_bench.backbones.beit3.checkpoint import LoadedModel, LoadReport, file_sha256
        from beit3_bench.backbones.beit3.config import BEiT3Config
        from beit3_bench.backbones.preprocess import Preprocessing

        config = BEiT3Config.preset("tiny")
        return LoadedModel(
            torch.nn.Hardtanh(), config, LoadReport(), Preprocessing(8), {}, file_sha256(checkpoint), "tiny", checkpoint
        )

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        import torch

        for example in examples:
            if example.id == self.options.fail:
                raise BenchError(f"{example.id}.jpg: image does not decode; download it again")
        return {
            "ids": [e.id for e in examples],
            "values": torch.tensor([e.meta["value"] for e in examples]),
            "images": torch.zeros(len(examples), 3, 2, 2, dtype=torch.uint8),
            "token_ids": torch.ones(len(examples), 4, dtype=torch.long),
            "padding_mask": torch.tensor([[False, False, False, True]] * len(examples)),
        }

    def predict(self, model: Any, batch: dict[str, Any]) -> list[Row]:
        time.sleep(self.options.slow)
        values = model((batch["values"] + self.options.bias).unsqueeze(1)).cpu().numpy()
        return [
            {"id": i, "positive": bool(v[0] > 0), "embedding": v} for i, v in zip(batch["ids"], values, strict=True)
        ]

    def score(self, rows: Mapping[str, Row], examples: Sequence[Example]) -> Scores:
        right = np.array([rows[e.id]["positive"] == e.target for e in examples], dtype=float)
        table = ClusterTable.collect([e.cluster for e in examples], {"right": right, "n": np.ones(len(right))})
        accuracy = float(right.mean())
        samples = {"right": {e.id: float(r) for e, r in zip(examples, right, strict=True)}}
        metrics = {"accuracy": accuracy, "accuracy/kind/x": accuracy, "undefined": float("nan")}
        return Scores(metrics, {"numbers": len(examples)}, table, ["a toy"], samples)

    def estimate(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"accuracy": sums["right"] / sums["n"]}

    def chance(self, examples: Sequence[Example]) -> float:
        return 0.5

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        values = read_json(inputs.predictions, "toy predictions")
        return Scores({"accuracy": 1 / 3, "undefined": float("nan")}, {"numbers": len(values)}, notes=["scored a file"])

    def submission(self, rows: Mapping[str, Row], examples: Sequence[Example], folder: Path) -> list[Path]:
        if any(e.target is not None for e in examples):
            return []
        path = folder / "answers.json"
        path.write_text(json.dumps({i: row["positive"] for i, row in rows.items()}))
        return [path]


class NeedsStack(ToyTask):
    name = "needs-stack"
    title = "A task whose framework is missing"

    def load_model(self, *arguments: Any) -> Any:
        from beit3_bench.errors import requires

        return requires("framework_of_nobody", "task needs-stack")


TASKS = {"toy": ToyTask, "needs-stack": NeedsStack}


def register(setattr_: Any = setattr) -> None:
    """Make the registry know these tasks and no others."""
    from beit3_bench.tasks import registry

    setattr_(registry, "get_task", lambda name: TASKS[name])
    setattr_(registry, "task_names", lambda: list(TASKS))


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
