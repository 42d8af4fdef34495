"""What measured runs cost, beside each other and never ranked: speed and energy belong to the device that they were measured on."""

from __future__ import annotations

from collections.abc import Sequence

from beit3_bench.harness.leaderboard.pareto import device_of
from beit3_bench.harness.leaderboard.text import csv_grid, markdown_grid
from beit3_bench.harness.record.report import gflop_as_text
from beit3_bench.harness.record.results import Run, model_name

HEADER = (
    *("task", "model", "params", "GFLOP per sample", "samples/s", "J per sample", "device", "dtype", "headline", "run"),
)
LEGEND = (
    "GFLOP: matrix products, convolutions and attention of one sample, from their shapes; a multiplication and an addition are two; "
    "a match is an image with all the texts that re-ranking compares it with. "
    "Samples/s: of the whole pass, decoding included, on the device named; rows of different devices say nothing about each other. "
    "J: of the card alone, or of all processor packages of the machine. An empty cell: not measured."
)


def cost_table(runs: Sequence[Run], form: str) -> str:
    """Every scored run with what it says of its cost, ordered by task and name. form: ``"markdown"`` or ``"csv"``."""
    rows = [_row(run) for run in sorted(runs, key=lambda run: (run.result["task"], run.name)) if run.result["metrics"]]
    if form == "csv":
        return csv_grid(HEADER, rows)
    if not rows:
        return "# Cost\n\nNothing to show: no run has a score.\n"
    return f"# Cost\n\n{LEGEND}\n\n{markdown_grid(HEADER, rows, right=[2, 4, 5, 8])}\n"


def _row(run: Run) -> list[str]:
    result = run.result
    timing, made_with, model = result["timing"], result["provenance"], result["model"]
    counted = timing.get("gflop_per_sample") or {}
    speed, joules = timing.get("samples_per_second"), timing.get("joules_per_sample")
    world = {"tiny": "tiny world, ", "real": ""}[result["world"]]
    corrupted = f"corrupted {result['corrupt']}, " if result.get("corrupt") else ""
    name, metric = next((n, m) for n, m in result["metrics"].items() if m["headline"])
    value = metric["value"] * (100 if metric["unit"] == "fraction" else 1)
    return [
        result["task"],
        model_name(model),
        f"{model['params'] / 1e6:,.1f}M" if model["params"] else "",
        ", ".join(f"{kind} {gflop_as_text(number)}" for kind, number in counted.items()),
        f"{speed:,.1f}" if speed else "",
        f"{joules:.3g}" if joules is not None else "",
        device_of(made_with),
        made_with.get("dtype", ""),
        f"{world}{corrupted}{name} {value:.1f}",
        run.name,
    ]
