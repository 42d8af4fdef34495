"""From a task's scores to the metrics of a result: units, rounding and 95% intervals, taken from the metric specs."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # lists of runs show numbers, and need no numpy
    from beit3_bench.harness.record.schema import Estimate, MetricValue
    from beit3_bench.tasks.contract import Task
    from beit3_bench.tasks.scores import Metric, Scores

RESAMPLES = 1000
CONFIDENCE = 0.95


def metric_spec(task: type[Task] | Task, name: str) -> Metric:
    """The declared spec of a metric; for a name made at run time (``vqa_accuracy/question_type/x``) that of its longest
    declared prefix, else unit and rounding of the headline.
    """
    declared = {metric.name: metric for metric in task.metrics}
    if name in declared:
        return declared[name]
    prefixes = sorted((known for known in declared if name.startswith(known + "/")), key=len)
    model = declared[prefixes[-1]] if prefixes else headline(task)
    return dataclasses.replace(model, name=name, headline=False)


def headline(task: type[Task] | Task) -> Metric:
    """The one metric that the task's table shows first."""
    return next(metric for metric in task.metrics if metric.headline)


def intervals(task: Task, scores: Scores, seed: int, resamples: int = RESAMPLES) -> dict[str, tuple[float, float]]:
    """95% bootstrap intervals over clusters, in each metric's unit; nothing for a task without cluster table."""
    if scores.table is None or not scores.table.ids:
        return {}
    from beit3_bench.tasks.metrics.bootstrap import bootstrap_intervals

    bounds = bootstrap_intervals(scores.table, task.estimate, resamples, CONFIDENCE, seed)
    return {
        name: (float(low), float(high))
        for name, (low, high) in bounds.items()
        if math.isfinite(low) and math.isfinite(high)
    }


def intervals_of_look(task: Task, scores: Scores, estimate: Estimate) -> dict[str, tuple[float, float]]:
    """95% intervals that hold at every look (`tasks.metrics.sequential`), in each metric's unit, of those that are ratios of means."""
    from beit3_bench.tasks.metrics.sequential import ratio_interval

    assert scores.table is not None
    bounds = {}
    for metric in task.metrics:
        if metric.ratio is not None and math.isfinite(scores.metrics.get(metric.name, math.nan)):
            parts = metric.ratio(scores.table.columns)
            low, high = ratio_interval(*parts, estimate["of_clusters"], estimate["bound"])
            scale = 100 if metric.unit == "percent" else 1
            bounds[metric.name] = (scale * low, scale * high)
    return bounds


def metric_values(
    task: Task, scores: Scores, seed: int, estimate: Estimate | None = None
) -> tuple[dict[str, MetricValue], list[str]]:
    """Metrics as result.json holds them, declared ones first, and a note for each that has no value here.

    estimate: what `--until-ci` stopped after; None = the samples are all that there are.
    """
    bounds = intervals(task, scores, seed) if estimate is None else intervals_of_look(task, scores, estimate)
    order = [metric.name for metric in task.metrics if metric.name in scores.metrics]
    order += [name for name in scores.metrics if name not in order]
    values: dict[str, MetricValue] = {}
    notes: list[str] = []
    for name in order:
        value = float(scores.metrics[name])
        if not math.isfinite(value):
            notes.append(f"{name} has no value on these samples")
            continue
        spec = metric_spec(task, name)
        values[name] = {
            "value": value,
            "unit": spec.unit,  # type: ignore[typeddict-item]
            "ci95": list(bounds[name]) if name in bounds else None,
            "headline": name == scores.headline if scores.headline else spec.headline,
            "higher_is_better": spec.higher_is_better,
            "decimals": spec.decimals,
        }
    return values, notes


def shown(value: float, unit: str, decimals: int) -> str:
    """A number as people read it: in percent, at the paper's rounding."""
    return f"{value * (100 if unit == 'fraction' else 1):.{decimals}f}"
