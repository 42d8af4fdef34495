"""`bench` of all tasks at one size in bfloat16, layer by layer as it is and compiled: ratios, and shares of the roof."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from checks import Piece, Settings

QUICK = [
    "--preset",
    "tiny",
    "--image-size",
    "32",
    "--repeats",
    "1",
    "--same-process",
    "--task",
    "imagenet,coco-caption",
]
WAYS = {"plain": (), "compiled": ("--compile", "--task", "coco-retrieval,nlvr2,vqav2")}
"""Compiled: an image alone, and both kinds of fusion."""
KEPT = ("ratio", "roof_share", "timm_roof_share", "samples", "seconds", "samples_per_second", "dtype_difference")


def bench(piece: Piece, settings: Settings, report: Path, *words: str) -> dict[str, Any]:
    """One `bench` in bfloat16: of each case what `KEPT` names and it measures; its report stays at ``report``."""
    command = [sys.executable, "-m", "beit3_bench.harness", "bench", "--dtype", "bf16", "--device", settings.device]
    finished = subprocess.run(
        [*command, *words, "--output", str(report), "--json"], capture_output=True, text=True, check=False
    )
    failure = "" if finished.returncode == 0 else finished.stderr.strip()[-300:]
    piece.require(f"{report.stem} {failure}".rstrip(), not failure)
    cases = json.loads(report.read_text())["cases"] if report.is_file() else []
    return {case["task"]: {name: case[name] for name in KEPT if name in case} for case in cases}


def main(preset: str = "base") -> None:
    settings = Settings.parse()
    piece = Piece(settings.out.stem)
    ways = WAYS
    if settings.quick or preset != "base":
        ways = {"plain": ()}
        piece.skip("compiled layers", "only at base size, since compiling takes its time")
    for way, words in ways.items():
        report = settings.out.with_name(f"bench-{preset}-bf16-{way}.json")
        size = QUICK if settings.quick else ("--preset", preset, "--repeats", "5" if preset == "base" else "3")
        piece.figures[way] = bench(piece, settings, report, *size, *words)
        settings.write(piece)


if __name__ == "__main__":
    main(preset="large" if Path(sys.argv[1]).stem.endswith("large") else "base")
