"""The page of a training: its learning curves, its schedule, the best checkpoint, and the recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import read_limited
from beit3_bench.harness.pages.charts import chart
from beit3_bench.harness.pages.rendering import Page, render, summary_tag
from beit3_bench.harness.scoring import headline, metric_spec, shown
from beit3_bench.harness.training.curves import Line
from beit3_bench.harness.training.journal import LOG, VALIDATION, number, read_table
from beit3_bench.tasks.contract import Task
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.registry import get_task, task_names

CONFIG = "config.json"
SHOWN = 8
"""Validation metrics that are drawn; the table has all that are not of one class."""
_LARGEST = 2**26
_LOG_TITLES = {
    "loss": "training loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm, before clipping",
    "samples_per_second": "samples per second",
}


@dataclass(frozen=True)
class ValidationRow:
    """best: whether the best checkpoint was made here."""

    step: str
    values: list[str]
    best: bool


def is_training(folder: Path) -> bool:
    """Whether `beit3-bench finetune` made this folder."""
    return (folder / LOG).is_file() or (folder / VALIDATION).is_file() or "recipe" in _config(folder, quiet=True)


def training_page(folder: Path) -> Page:
    """The page of a training's folder.

    Raises:
        BenchError: nothing was logged yet, or a file is damaged.
    """
    log, validation, config = read_table(folder / LOG), read_table(folder / VALIDATION), _config(folder)
    if not log and not validation:
        raise BenchError(f"{folder}: nothing is logged there yet; wait for the first steps of the training")
    name = str(config.get("task", ""))
    task = get_task(name) if name in task_names() else None
    charts = [made for title, line in _logged(log) if (made := chart(title, [line])) is not None]
    metrics = _metrics(validation, task)
    best = _best(validation, task)
    steps = [step for row in log if math.isfinite(step := number(row, "step"))]
    heading = "validation" if len(metrics) > 1 else f"validation, {''.join(metrics)}"
    curves = chart(heading, [_line(validation, metric, task) for metric in metrics[:SHOWN]], steps)
    title = (read_facts(name).title if task is not None else "") or name or "a task that is not known here"
    facts = {
        "kind": "training",
        "name": folder.resolve().name,
        "title": title,
        "metric": metrics[0] if best is not None and metrics else "",
        "value": _text(validation[best], metrics[0], task) if best is not None and metrics else "",
    }
    html = render(
        "training.html",
        facts=facts,
        summary=summary_tag(facts),
        charts=[*([curves] if curves else []), *charts],
        config=_settings(config),
        recipe=_flat(config.get("recipe")),
        notes=[str(note) for note in config.get("notes", ())] if isinstance(config.get("notes"), list) else [],
        metrics=metrics,
        validation=[
            ValidationRow(row.get("step") or "", [_text(row, metric, task) for metric in metrics], n == best)
            for n, row in enumerate(validation)
        ],
        best_step="" if best is None else validation[best].get("step", ""),
    )
    return Page(html, 0, facts)


def _config(folder: Path, quiet: bool = False) -> dict[str, Any]:
    """config.json of a training; empty where there is none.

    Raises:
        BenchError: not JSON, unless ``quiet``.
    """
    path = folder / CONFIG
    try:
        content = json.loads(read_limited(path, _LARGEST)) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        if quiet:
            return {}
        raise BenchError(
            f"{path}: cannot be read ({str(error)[:100]}); remove it, and the page is made without it"
        ) from error
    return content if isinstance(content, dict) else {}


def _logged(log: Sequence[Mapping[str, str]]) -> list[tuple[str, Line]]:
    keys = [key for key in (log[0] if log else ()) if key not in ("step", "epoch", None)]
    return [(_LOG_TITLES.get(key, key.replace("_", " ")), _line(log, key, None)) for key in keys]


def _line(rows: Sequence[Mapping[str, str]], key: str, task: type[Task] | None) -> Line:
    """A column over steps; metrics in percent."""
    share = 100.0 if task is not None and metric_spec(task, key).unit == "fraction" else 1.0
    return key, [number(row, "step") for row in rows], [share * number(row, key) for row in rows]


def _metrics(validation: Sequence[Mapping[str, str]], task: type[Task] | None) -> list[str]:
    """Names of the metrics that the page shows, the headline first."""
    names = [key for key in (validation[0] if validation else ()) if key not in ("step", "epoch", None)]
    if len(names) > SHOWN:  # those of single classes are left out
        names = [name for name in names if "/" not in name or name.startswith(("bbox/", "segm/"))]
    first = headline(task).name if task is not None else ""
    return sorted(names, key=lambda name: name != first)


def _best(validation: Sequence[Mapping[str, str]], task: type[Task] | None) -> int | None:
    """The validation of the best headline, the first of equal ones."""
    if task is None:
        return None
    spec = headline(task)
    sign = 1 if spec.higher_is_better else -1
    values = [sign * number(row, spec.name) for row in validation]
    known = [n for n, value in enumerate(values) if math.isfinite(value)]
    return max(known, key=lambda n: (values[n], -n)) if known else None


def _text(row: Mapping[str, str], metric: str, task: type[Task] | None) -> str:
    value = number(row, metric)
    if not math.isfinite(value):
        return ""
    if task is None:
        return f"{value:.4g}"
    spec = metric_spec(task, metric)
    return shown(value, spec.unit, spec.decimals)


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    keys = (
        "task",
        "preset",
        "source",
        "data_root",
        "dtype",
        "device",
        "processes",
        "parallel",
        "steps",
        "training_samples",
        "validation_samples",
        "seed",
    )
    return [(key.replace("_", " "), _words(config[key])) for key in keys if config.get(key) not in (None, "")]


def _flat(recipe: Any) -> list[tuple[str, str]]:
    return [(str(key), _words(value)) for key, value in recipe.items()] if isinstance(recipe, dict) else []


def _words(value: Any) -> str:
    """A value of a card in a line; of an object, its keys that hold something."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(inner)}" for key, inner in value.items() if inner not in (None, "", [], {}))
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return str(value)
