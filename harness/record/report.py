"""A result as text for the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beit3_bench.harness.record.released import other_data, part_of_split
from beit3_bench.harness.scoring import shown
from beit3_bench.text import visible

_TIMING = {
    *(
        "seconds",
        "peak_memory_bytes",
        "peak_device_memory_bytes",
        "samples_per_second",
        "images_per_second",
        "batch_size",
    ),
    *("resumed_samples", "images_decoded", "images_distinct", "text_tokens", "text_tokens_real"),
}
"""What `_speed` shows, of the run that made the result."""


def result_as_text(result: Mapping[str, Any], folder: Path | None = None, was_finished: bool = False) -> str:
    """Headline with interval, every metric, counts, notes, speed, where the time went, the run folder and how to look at it."""
    model, metrics = result["model"], result["metrics"]
    facts = [f"{model['preset']}, {model['image_size']} px", result["setting"]]
    facts += [part] if (part := part_of_split(result["subset"])) else []
    facts += ["tiny world"] if result["world"] == "tiny" else []
    facts += [f"corrupted {result['corrupt']}"] if result.get("corrupt") else []
    facts += [other] if (other := other_data(result)) else []
    lines = [f"{result['task']} {result['split']} · {model['checkpoint']} ({', '.join(facts)})"]
    if result["status"] != "scored":
        lines.append(f"  {result['status']}")
    width = max((len(name) for name in metrics), default=0)
    for name, metric in sorted(metrics.items(), key=lambda item: not item[1]["headline"]):
        value = shown(metric["value"], metric["unit"], metric["decimals"])
        line = f"{'> ' if metric['headline'] else '  '}{name:<{width}}  {value:>6}"
        if metric["ci95"]:
            low, high = (shown(bound, metric["unit"], metric["decimals"]) for bound in metric["ci95"])
            line += f"  [{low}, {high}]"
        if metric["headline"] and result["chance"] is not None:
            line += f"   chance {shown(result['chance'], metric['unit'], metric['decimals'])}"
        lines.append(line)
    if result["counts"]:
        lines.append("  counts: " + ", ".join(f"{count:,} {name}" for name, count in result["counts"].items()))
    lines += [f"  note: {note}" for note in result["notes"]]
    if result["timing"].keys() >= _TIMING:
        lines += _speed(result["timing"])
    if folder is not None:
        lines.append(
            f"  {'was finished already (--overwrite runs it again)' if was_finished else 'run folder'}: {folder}"
        )
        if result["status"] in ("scored", "submitted"):
            lines.append(f"  look at it: beit3-bench show {shlex.quote(str(folder))}")
    return "\n".join(map(visible, lines))


def _speed(timing: Mapping[str, Any]) -> list[str]:
    seconds = timing["seconds"]
    stages = ("read", "load", *(["features"] if seconds.get("features") else []), "data", "compute", "write", "score")
    parts = ", ".join(f"{name} {seconds[name]:.1f}" for name in stages if name in seconds)
    memory = f"{timing['peak_memory_bytes'] / 2**30:.1f} GiB"
    if timing["peak_device_memory_bytes"] is not None:
        memory += f", device {timing['peak_device_memory_bytes'] / 2**30:.1f} GiB"
    speed = f"{timing['samples_per_second']:.1f} samples/s, {timing['images_per_second']:.1f} images/s"
    speed += f", batch {timing['batch_size']}"
    if timing["resumed_samples"]:
        speed += f"; {timing['resumed_samples']:,} samples were there already"
    if timing.get("samples_from_store"):
        speed += f"; {timing['samples_from_store']:,} embeddings came from the feature store"
    work = f"{timing['images_decoded']:,} images decoded ({timing['images_distinct']:,} files)"
    if timing.get("images_from_cache"):
        work += f", {timing['images_from_cache']:,} images from cache"
    work += f", {timing.get('images_encoded', 0):,} encoded"
    if timing["text_tokens"]:
        padded = timing["text_tokens"] - timing["text_tokens_real"]
        work += f"; {timing['text_tokens']:,} text tokens computed, {padded:,} of them padding"
    return [
        f"  work: {work}",
        f"  speed: {speed}",
        *([f"  cost: {cost}"] if (cost := cost_as_text(timing)) else []),
        f"  seconds: {parts}; total {seconds.get('total', 0.0):.1f}; peak memory {memory}",
    ]


def cost_as_text(timing: Mapping[str, Any]) -> str:
    """Operations and energy of a sample; empty where a result says neither."""
    counted = timing.get("gflop_per_sample") or {}
    parts = [f"{gflop_as_text(value)} GFLOP per {kind}" for kind, value in counted.items()]
    if timing.get("joules_per_sample") is not None:
        parts.append(f"{timing['joules_per_sample']:.3g} J per sample ({timing.get('energy_source')})")
    return ", ".join(parts)


def gflop_as_text(value: float) -> str:
    """Three digits, whole from a hundred on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
