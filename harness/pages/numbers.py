"""The numbers of a run in words: of the whole, of a sample, and what they stand on."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from beit3_bench.harness.pages.opened import OpenedRun
from beit3_bench.harness.record.released import other_data, part_of_split
from beit3_bench.harness.record.results import model_name
from beit3_bench.harness.record.schema import MetricValue, Result
from beit3_bench.harness.scoring import metric_spec, shown

MOST_OF_A_KIND = 24
"""Metrics ``KIND/...`` that stand in the list; of more, as of IoU by class, none does."""


@dataclass(frozen=True)
class MetricRow:
    name: str
    text: str
    interval: str
    headline: bool


def metric_rows(result: Result) -> list[MetricRow]:
    """Every metric of a result, the headline first, but those of one class among many alone."""
    names = [name for name in result["metrics"] if name.count("/") < 2]
    kinds = Counter(name.partition("/")[0] for name in names if "/" in name)
    few = [name for name in names if "/" not in name or kinds[name.partition("/")[0]] <= MOST_OF_A_KIND]
    return sorted((_metric_row(name, result["metrics"][name]) for name in few), key=lambda row: not row.headline)


def headline_of(result: Result) -> MetricRow | None:
    """None for a submission."""
    return next((_metric_row(name, metric) for name, metric in result["metrics"].items() if metric["headline"]), None)


def _metric_row(name: str, metric: MetricValue) -> MetricRow:
    unit, decimals = metric["unit"], metric["decimals"]
    ends = metric["ci95"]
    interval = f"[{shown(ends[0], unit, decimals)}, {shown(ends[1], unit, decimals)}]" if ends else ""
    return MetricRow(name, shown(metric["value"], unit, decimals), interval, metric["headline"])


def facts_of(result: Result, name: str, title: str) -> dict[str, Any]:
    """What an index tells of a run's page."""
    headline = headline_of(result)
    return {
        "kind": "run",
        "name": name,
        "title": title,
        "task": result["task"],
        "split": result["split"],
        "model": model_name(result["model"]),
        "checkpoint": result["model"]["checkpoint"],
        "metric": headline.name if headline else "",
        "value": headline.text if headline else result["status"],
        "interval": headline.interval if headline else "",
        "data": data_of(result),
        "time": str(result["provenance"].get("time", ""))[:10],
    }


def data_of(result: Result) -> str:
    """What sets the run's data apart; "" for the whole released split."""
    parts = ["tiny world"] if result["world"] == "tiny" else []
    parts += [part] if (part := part_of_split(result["subset"])) else []
    parts += [f"corrupted {corrupt}"] if (corrupt := result.get("corrupt")) else []
    parts += [other] if (other := other_data(result)) else []
    return ", ".join(parts)


def details_of(result: Result, run: OpenedRun) -> list[tuple[str, str]]:
    """Name and value of what the number stands on."""
    model, origin, timing = result["model"], result["provenance"], result["timing"]
    speed = timing.get("samples_per_second")
    known = [
        ("model", f"{model_name(model)}, {model['params'] / 1e6:,.1f} M parameters, {model['image_size']} px"),
        ("checkpoint", f"{model['checkpoint']} (sha256 {model['sha256'][:12]})"),
        ("protocol", model.get("protocol", "")),
        ("setting", result["setting"]),
        ("data", f"{run.data_root}{', ' + data if (data := data_of(result)) else ''}"),
        ("counted", ", ".join(f"{count:,} {what}" for what, count in result["counts"].items())),
        (
            "speed",
            f"{speed:,.1f} samples/s on {origin.get('device', 'an unknown device')}, {origin.get('dtype', '')}"
            if speed
            else "",
        ),
        ("made", str(origin.get("time", ""))),
        ("command", str(origin.get("command", ""))),
    ]
    return [(name, value) for name, value in known if value]


def value_of(run: OpenedRun, name: str, label: str = "") -> list[tuple[str, str, str]]:
    """Label, score of a sample in words, and its grade; nothing for a sample without score."""
    value = run.samples.values.get(name)
    if value is None:
        return []
    spec = metric_spec(run.task, run.samples.metric)
    top = 100.0 if spec.unit == "percent" else 1.0
    words = f"{spec.name.replace('_', ' ')} {shown(value, spec.unit, min(spec.decimals, 1))}"
    return [(label, words, grade(value, top) if run.shares else "")]


def grade(value: float, top: float) -> str:
    """good, partly or bad of a score between 0 and ``top``; "" for one that is no share."""
    if not math.isfinite(value) or value > top:
        return ""
    return "good" if value >= 0.999 * top else "bad" if value <= 0.001 * top else "partly"
