"""A tiny world on the device: fine-tuned for some steps per task, evaluated there and on the CPU, row by row the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import native
from checks import Piece, Settings

from beit3_bench.harness.evidence.replay import differences
from beit3_bench.harness.record.provenance import cores
from beit3_bench.harness.record.store import RunStore

ROOTS = {**native.ROOTS, "coco-det": "coco", "ade20k-seg": "ADEChallengeData2016"}
TRAINED_AS = {
    **dict.fromkeys(("coco-retrieval", "imagenet", "sugarcrepe", "winoground"), "flickr30k"),
    "nocaps": "coco-caption",
}
"""Tasks that are evaluated with the checkpoint of another one here, so that fewer are trained."""
STEPS = 60
MORE_STEPS = {"coco-det": 250}
"""A detector finds nothing after sixty."""
TOLERANCE = 2e-3
"""Largest difference of a number in a row, card against CPU, both in float32; scores and embeddings are at most 1, boxes pixels."""
WAYS = ("cpu", "device", "bf16")
"""Both in float32, and the device in bfloat16."""
TOGETHER = 5
"""Commands at a time: each is one small model, for which a card has room."""


@dataclass(frozen=True)
class World:
    folder: Path
    device: str
    steps: int

    def command(self, *words: object) -> str:
        """Run the command line; its last error line where it fails, else nothing."""
        finished = subprocess.run(
            [sys.executable, "-m", "beit3_bench.harness", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": str(max(cores() // TOGETHER, 1))},
        )
        lines = finished.stderr.strip().splitlines()
        return "" if finished.returncode == 0 else (lines[-1] if lines else f"exit code {finished.returncode}")

    def root(self, task: str) -> Path:
        return self.folder / "world" / ROOTS[task]

    def model(self, task: str) -> Path:
        return self.folder / "models" / TRAINED_AS.get(task, task)

    def run(self, task: str, way: str) -> Path:
        return self.folder / "runs" / f"{task}-{way}"

    def train(self, task: str) -> str:
        steps = MORE_STEPS.get(task, self.steps) if self.steps == STEPS else self.steps
        return self.command(
            *("finetune", "--task", task, "--preset", "tiny", "--data-root", self.root(task)),
            *(
                "--tokenizer",
                self.folder / "world" / "beit3.spm",
                "--output",
                self.model(task),
                "--device",
                self.device,
            ),
            *("-o", f"steps={steps}", "-o", f"warmup_steps={max(steps // 10, 1)}", "-o", "validate_epochs=0"),
        )

    def evaluate(self, task: str, way: str) -> str:
        device, dtype = {"cpu": ("cpu", "fp32"), "device": (self.device, "fp32"), "bf16": (self.device, "bf16")}[way]
        split = ("--split", "minival") if task == "vqav2" else ()
        return self.command(
            *("run", "--task", task, "--checkpoint", self.model(task) / "last.pth", "--data-root", self.root(task)),
            *("--tokenizer", self.folder / "world" / "beit3.spm", "--device", device, "--dtype", dtype, *split),
            *("--output", self.run(task, way)),
        )


def main() -> None:
    settings = Settings.parse()
    piece = Piece("tinyworld")
    tasks = ["flickr30k", "imagenet"] if settings.quick else [*ROOTS]
    if find_spec("mmseg") is None and "ade20k-seg" in tasks:
        tasks.remove("ade20k-seg")
        piece.skip("ade20k-seg", "mmsegmentation is not installed")
    if settings.quick:
        piece.skip("other tasks than " + " and ".join(tasks), "asked for the quick form")
    settings.write(piece)
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), settings.device, 3 if settings.quick else STEPS)
        size = "mini" if settings.quick else "tiny"
        failure = world.command("data", "tiny", "--output", world.folder / "world", "--size", size)
        piece.require(f"the tiny world is written {failure}".rstrip(), not failure)
        trained = [task for task in tasks if task not in TRAINED_AS]
        with ThreadPoolExecutor(TOGETHER) as pool:
            started = time.perf_counter()
            for task, failure in zip(trained, pool.map(world.train, trained), strict=True):
                piece.require(f"{task}: fine-tuning {failure}".rstrip(), not failure)
            piece.figures["training_seconds"] = time.perf_counter() - started
            settings.write(piece)
            jobs = [(task, way) for way in WAYS for task in tasks]
            started = time.perf_counter()
            for job, failure in zip(jobs, pool.map(lambda job: world.evaluate(*job), jobs), strict=True):
                piece.require(f"{job[0]} evaluated ({job[1]}) {failure}".rstrip(), not failure)
            piece.figures["evaluation_seconds"] = time.perf_counter() - started
        piece.figures["tasks"] = {}
        for task in tasks:
            compare(piece, world, task)
            settings.write(piece)


def compare(piece: Piece, world: World, task: str) -> None:
    """Rows and metrics of the device against those of the CPU; and what bfloat16 changes, for the reader."""
    folders = [world.run(task, way) for way in WAYS]
    if not all((folder / "result.json").is_file() for folder in folders):
        return
    cpu, device, rounded = (RunStore.read(folder) for folder in folders)
    apart = differences(cpu, device, TOLERANCE)
    piece.check(f"{task}: rows that differ between CPU and device", apart.differing_rows / max(apart.rows, 1), 0.01)
    values = [json.loads((folder / "result.json").read_text())["metrics"] for folder in folders]
    for name, metric in values[0].items():
        unit = 1.0 if metric["unit"] == "fraction" else 100.0
        piece.check(f"{task}: {name}, device against CPU", abs(values[1][name]["value"] - metric["value"]) / unit, 0.01)
    timing = device.result()["timing"]
    piece.figures["tasks"][task] = {
        "rows": apart.rows,
        "differing_rows": apart.differing_rows,
        "largest_differences": apart.largest,
        "metrics": {
            name: {"cpu": metric["value"], "device": values[1][name]["value"], "device_bf16": values[2][name]["value"]}
            for name, metric in values[0].items()
        },
        "device_seconds": timing.get("wall_seconds"),
        "peak_device_memory_bytes": timing.get("peak_device_memory_bytes"),
        "rows_bf16_changes": differences(device, rounded, TOLERANCE).differing_rows,
    }


if __name__ == "__main__":
    main()
