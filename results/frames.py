"""Runs, their numbers, their rows and the published values as pandas DataFrames.

Everything here reads only what `beit3-bench run` wrote and what `results/published` holds; no task, model or data is needed.

    >>> from beit3_bench.results import frames
    >>> printed = frames.published().query("task == 'nlvr2' and split == 'test-P' and metric == 'accuracy'")
    >>> printed.nlargest(1, "value")[["system", "printed"]].values.tolist()
    [['BEiT-3', '92.58']]

A table of one's own, the headline metric of every run beside its cost:

    >>> runs = frames.runs("results/runs")
    >>> table = runs[["run", "task", "model", "headline", "value", "samples_per_second"]]

Which samples does one run get right and another wrong?

    >>> a, b = (frames.samples(f"results/runs/{name}") for name in runs["run"][:2])
    >>> both = a.merge(b, on=["metric", "id"], suffixes=("_a", "_b"))
    >>> worse = both[both["value_a"] > both["value_b"]]
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from beit3_bench.harness.record.results import Run
    from beit3_bench.harness.record.schema import Result
    from beit3_bench.results.published.values import PublishedValue

RUNS = "results/runs"
"""Where `beit3-bench run` puts its run folders unless told otherwise."""

_RUN_KINDS = {
    "run": "str",
    "task": "str",
    "split": "str",
    "status": "str",
    "setting": "str",
    "family": "str",
    "model": "str",
    "preset": "str",
    "checkpoint": "str",
    "weight": "str",
    "sha256": "str",
    "protocol": "str",
    "image_size": "int64",
    "params": "int64",
    "allow_missing": "object",
    "world": "str",
    "subset": "Int64",
    "estimate": "bool",
    "data": "str",
    "corrupt": "str",
    "comparable": "bool",
    "headline": "str",
    "value": "float64",
    "unit": "str",
    "low": "float64",
    "high": "float64",
    "chance": "float64",
    "counts": "object",
    "dtype": "str",
    "device": "str",
    "time": "str",
    "seconds": "float64",
    "samples_per_second": "float64",
    "images_per_second": "float64",
    "gflop_per_sample": "object",
    "joules_per_sample": "float64",
    "peak_memory_bytes": "float64",
    "peak_device_memory_bytes": "float64",
    "notes": "object",
}
_METRIC_KINDS = {
    "run": "str",
    "task": "str",
    "split": "str",
    "metric": "str",
    "value": "float64",
    "unit": "str",
    "low": "float64",
    "high": "float64",
    "headline": "bool",
    "higher_is_better": "bool",
    "decimals": "int64",
}
_AS_THEY_ARE = (
    *("task", "split", "status", "setting", "world", "chance", "counts", "notes"),
    *("preset", "checkpoint", "sha256", "image_size", "params", "allow_missing"),
)
_SAMPLE_KINDS = {"metric": "str", "id": "object", "value": "float64"}


def runs(folder: str | Path = RUNS) -> DataFrame:
    """One row per run folder with a result, ordered by name; an absent folder holds none.

    Columns:
        run: path below ``folder``.
        task, split, status (scored, to upload, predicted, not installed), setting (fine-tuned, zero-shot, linear-probe).
        family, model (as the leaderboard names it), preset, checkpoint (file name), weight ("" for no released one),
            sha256, protocol, image_size (pixels), params, allow_missing (list of patterns).
        world (real, tiny), subset (examples that ``--limit`` let through or ``--until-ci`` drew, NA for a whole split),
            estimate (whether ``--until-ci`` drew them), data (``"other data: ..."`` where it is not the released split, else "").
        corrupt: what images were corrupted with (``"jpeg_compression:3"``), else "".
        comparable: whether it may stand beside published values: real, whole and released data, images as they are.
        headline (metric), value, unit (percent or fraction), low, high (95% interval), chance; NaN and "" without a score.
        counts (dict): what was scored.  notes (list): what a reader of the number must know.
        dtype, device, time (ISO 8601, UTC), seconds (of the whole run), samples_per_second, images_per_second,
            gflop_per_sample (dict by kind of sample), joules_per_sample, peak_memory_bytes, peak_device_memory_bytes; "" and NaN
            where the run did not say.

    Damaged runs are left out, each with a warning. Unfinished runs have no result; `beit3-bench runs` lists them.

    Raises:
        BenchError: the folder is a file.
    """
    return runs_of(_whole(folder))


def metrics(folder: str | Path = RUNS) -> DataFrame:
    """The numbers of all runs in tidy long form: one row per run and metric, as `runs` orders the runs.

    Columns: run, task, split, metric, value, unit (percent: 0..100; fraction: 0..1), low, high (95% interval in this unit;
    NaN where none was computed), headline, higher_is_better, decimals (of the paper's table, for the value in percent).

        >>> from beit3_bench.results import frames
        >>> wide = frames.metrics("results/runs").pivot(index="run", columns="metric", values="value")

    Damaged runs are left out, each with a warning.

    Raises:
        BenchError: the folder is a file.
    """
    return metrics_of(_whole(folder))


def rows(run_folder: str | Path) -> DataFrame:
    """The predictions of a run, one row per sample in the order in which they were stored: ``id`` and what the task keeps.

    Arrays (embeddings, boxes, label maps) are numpy arrays with the dtype that they were computed in; a key that a sample
    lacks is NaN. Rows of an unfinished run can be read, too.

        >>> from beit3_bench.results import frames
        >>> predicted = frames.rows("results/runs/imagenet").set_index("id")

    Raises:
        BenchError: not a run folder, or damaged rows.
    """
    import pandas

    from beit3_bench.harness.record.store import RunStore

    stored = list(RunStore.read(_path(run_folder)).rows().values())
    keys = ["id", *(key for key in dict.fromkeys(key for row in stored for key in row) if key != "id")]
    return pandas.DataFrame({key: _column([row.get(key, _MISSING) for row in stored]) for key in keys})


def samples(run_folder: str | Path) -> DataFrame:
    """The per-sample values of a finished run, which intervals and paired comparisons are made from.

    Columns: metric, id, value (float64, in the unit of the task's own scoring). A task without any has an empty frame.

        >>> from beit3_bench.results import frames
        >>> worst = frames.samples("results/runs/imagenet").nsmallest(20, "value")

    Raises:
        BenchError: not there, or damaged.
    """
    from beit3_bench.harness.record.folder import SAMPLES
    from beit3_bench.harness.record.samples import unpack_samples

    _, values = unpack_samples(_path(run_folder) / SAMPLES)
    lines = [{"metric": name, "id": key, "value": value} for name, of in values.items() for key, value in of.items()]
    return _frame(lines, _SAMPLE_KINDS)


def published() -> DataFrame:
    """The values of results/published, one row each, in the order of their files.

    Columns as its README describes them, with ``value`` as a number (percent, or x100) and ``printed`` as the source prints
    it; task, split and metric are named as in the sources.

        >>> from beit3_bench.results import frames
        >>> sorted(frames.published().query("system == 'VLMo' and task == 'nlvr2'")["split"].unique())
        ['dev', 'test-P']

    Raises:
        BenchError: a damaged csv file.
    """
    from beit3_bench.results.published.values import load_published

    return published_of(load_published())


# ---- of what was read already -----------------------------------------------------------------------------------------


def runs_of(results: Sequence[Run]) -> DataFrame:
    """As `runs`, of results that were read already, one row each."""
    return _frame([_run_facts(run) for run in results], _RUN_KINDS)


def metrics_of(results: Sequence[Run]) -> DataFrame:
    """As `metrics`, of results that were read already: their metrics, run by run."""
    lines = [
        {
            "run": run.name,
            "task": run.result["task"],
            "split": run.result["split"],
            "metric": name,
            **metric,
            **_interval(metric["ci95"]),
        }
        for run in results
        for name, metric in run.result["metrics"].items()
    ]
    return _frame(lines, _METRIC_KINDS)


def published_of(values: Sequence[PublishedValue]) -> DataFrame:
    """As `published`, of values that were read already."""
    from dataclasses import fields

    from beit3_bench.results.published.values import PublishedValue

    kinds = {field.name: "str" for field in fields(PublishedValue)}
    return _frame([{**vars(value), "value": value.value} for value in values], {**kinds, "value": "float64"})


def _whole(folder: str | Path) -> list[Run]:
    from beit3_bench.harness.record.results import find_results

    whole, damaged = find_results(_path(folder))
    for error in damaged.values():
        warnings.warn(f"{error} (this run is left out)", stacklevel=3)
    return whole


def _path(folder: Any) -> Path:
    from beit3_bench.files import as_path

    return as_path(folder, "the folder")


def _run_facts(run: Run) -> dict[str, Any]:
    from beit3_bench.harness.record.released import apart, other_data
    from beit3_bench.harness.record.results import FIRST_FAMILY, model_name

    result, model = run.result, run.result["model"]
    timing, made_with = result["timing"], result["provenance"]
    as_they_are: Mapping[str, Any] = {**model, **result}
    return {
        "run": run.name,
        **{key: as_they_are[key] for key in _AS_THEY_ARE},
        "weight": model["weight"] or "",
        "family": model.get("family") or FIRST_FAMILY,
        "protocol": model.get("protocol", ""),
        "model": model_name(model),
        "subset": None
        if (subset := result["subset"]) is None
        else subset.get("limit") or subset["estimate"]["examples"],
        "estimate": subset is not None and "estimate" in subset,
        "data": other_data(result),
        "corrupt": result.get("corrupt") or "",
        "comparable": not apart(result),
        **_headline(result),
        **{key: str(made_with.get(key) or "") for key in ("dtype", "device", "time")},
        "seconds": timing.get("seconds", {}).get("total"),
        **{key: timing.get(key) for key in ("samples_per_second", "images_per_second")},
        "gflop_per_sample": timing.get("gflop_per_sample") or {},
        "joules_per_sample": timing.get("joules_per_sample"),
        **{key: timing.get(key) for key in ("peak_memory_bytes", "peak_device_memory_bytes")},
    }


def _headline(result: Result) -> dict[str, Any]:
    for name, metric in result["metrics"].items():
        if metric["headline"]:
            interval = _interval(metric["ci95"])
            return {"headline": name, "value": metric["value"], "unit": metric["unit"], **interval}
    return {"headline": "", "value": None, "unit": "", **_interval(None)}


def _interval(ends: Sequence[float] | None) -> dict[str, float | None]:
    return {"low": ends[0], "high": ends[1]} if ends else {"low": None, "high": None}


_MISSING = float("nan")


def _frame(lines: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> DataFrame:
    """A frame with these columns in this order; columns and their kinds are there without a line, too."""
    import pandas

    columns = {
        name: pandas.Series([line[name] for line in lines], dtype="object").astype(kind)  # type: ignore[call-overload]
        for name, kind in kinds.items()
    }
    return pandas.DataFrame(columns)


def _column(values: Sequence[Any]) -> Series:
    """Numbers as numbers; values of any other kind (texts, lists, arrays) stay what they are, one to a cell."""
    import pandas

    numeric = bool(values) and all(isinstance(value, (bool, int, float)) for value in values)
    return pandas.Series(values, dtype=None if numeric else "object")
