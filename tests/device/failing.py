"""A card that fails in the middle of a run, for real: one line, and the same command goes on from the rows that are there."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checks import Piece, Settings
from native import Native, make_native

CHILD = """
import torch
from beit3_bench.backbones.beit3.native import DualEncoder
from beit3_bench.harness.__main__ import main

predict, calls = DualEncoder.predict, []

def failing(self, batch):
    calls.append(batch)
    if len(calls) == 4:
        torch.zeros(3, device="cuda")[torch.tensor([7], device="cuda")].sum().item()  # beyond its end: the card asserts
    return predict(self, batch)

DualEncoder.predict = failing
main()
"""


def run(native: Native, settings: Settings, output: Path, *python: str) -> subprocess.CompletedProcess[str]:
    command = ["run", "--task", "flickr30k", "--checkpoint", native.checkpoint("flickr30k"), "--batch-size", "4"]
    places = [
        "--data-root",
        native.root("flickr30k"),
        "--output",
        output,
        "--device",
        settings.device,
        "--workers",
        "0",
    ]
    return subprocess.run(
        [sys.executable, *python, *map(str, (*command, *places))], capture_output=True, text=True, check=False
    )


def main() -> None:
    settings = Settings.parse()
    piece = Piece("failing")
    if not settings.device.startswith("cuda"):
        piece.skip("a failing card", f"{settings.device} is none")
        settings.write(piece)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        native = make_native(folder)
        failed = run(native, settings, folder / "run", "-c", CHILD)
        own = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
        piece.require(f"exit code 2: {failed.returncode}", failed.returncode == 2)
        piece.require(f"one line: {own}", len(own) == 1 and "the card failed" in own[0])
        piece.require("no traceback", "Traceback" not in failed.stderr)
        again = run(native, settings, folder / "run", "-m", "beit3_bench.harness")
        failure = again.stderr.strip()[-300:] if again.returncode else ""
        piece.require(f"the same command goes on {failure}".rstrip(), not failure)
        if not failure:
            resumed = json.loads((folder / "run" / "result.json").read_text())["timing"]["resumed_samples"]
            piece.require(f"rows from before the failure: {resumed}", resumed > 0)
            piece.figures = {"message": own, "resumed_samples": resumed}
    settings.write(piece)


if __name__ == "__main__":
    main()
