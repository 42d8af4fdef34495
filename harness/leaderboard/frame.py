"""The tidy frame that the board is made over: one line per number, measured and published alike, in percent.

What stands in one row of the table shares ``row``; what stands in one table shares ``task``, ``split`` and ``regime``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from beit3_bench.backbones.released import find_released
from beit3_bench.harness.record.released import apart
from beit3_bench.harness.record.results import Run
from beit3_bench.harness.record.schema import Result
from beit3_bench.results.frames import metrics_of, published_of, runs_of
from beit3_bench.results.published.values import OVERVIEW_SOURCE, PublishedValue
from beit3_bench.tasks.facts import published_names, read_facts

if TYPE_CHECKING:
    from pandas import DataFrame

SECTION = ["task", "split", "regime"]


class Number(NamedTuple):
    """A line of the tidy frame; its columns are named so.

    row: number of the table's row; measured ones are numbered as the runs, published ones behind them.
    apart: why a measured row must not stand beside published ones, else "".
    value, low, high: percent at full precision; NaN without an interval.
    text: the value at the rounding of the paper, or as printed.
    published_id: of a published value, else "".
    """

    task: str
    split: str
    regime: str
    row: int
    measured: bool
    apart: str
    system: str
    variant: str
    params: str
    resolution: str
    protocol: str
    source: str
    url: str
    source_kind: str
    note: str
    metric: str
    value: float
    text: str
    low: float
    high: float
    published_id: str


COLUMNS = list(Number._fields)


def lines_of(frame: DataFrame) -> list[Number]:
    """The lines of a tidy frame as plain values."""
    return list(map(Number, *(frame[name].tolist() for name in COLUMNS)))


def numbers(runs: Sequence[Run], published: Sequence[PublishedValue]) -> DataFrame:
    """Every number of scored runs and every published one that belongs to a table of ours; columns as in `Number`.

    Args:
        runs: scored ones.
        published: values; those of the paper's overview table only repeat others and are left out.
    """
    import pandas

    printed = published_numbers(published)
    printed["row"] += len(runs)
    return pandas.concat([measured_numbers(runs), printed], ignore_index=True)


def measured_numbers(runs: Sequence[Run]) -> DataFrame:
    """The numbers of scored runs, in their order and that of their metrics."""
    import numpy as np

    facts = runs_of(runs).assign(
        row=range(len(runs)),
        regime=[regime_of(run.result) for run in runs],
        apart=[", ".join(apart(run.result)) for run in runs],
        measured=True,
        system=lambda f: f["model"],
        variant=lambda f: f["weight"].where(f["weight"] != "", f["checkpoint"]),
        params=lambda f: f["params"].map(millions),
        resolution=lambda f: [f"{size}x{size}" for size in f["image_size"]],
        protocol=[_protocol(run.result) for run in runs],
        source=[f"run {run.name}" for run in runs],
        source_kind="measured here",
        url="",
        note="",
        published_id="",
    )
    line_counts = [len(run.result["metrics"]) for run in runs]
    lines = facts.loc[np.repeat(facts.index, line_counts)].reset_index(drop=True)
    measured = metrics_of(runs)
    scale = np.where(measured["unit"] == "fraction", 100.0, 1.0)
    lines = lines.assign(
        **{name: measured[name] * scale for name in ("value", "low", "high")}, metric=measured["metric"]
    )
    lines["text"] = [f"{v:.{d}f}" for v, d in zip(lines["value"], measured["decimals"], strict=True)]
    return lines[COLUMNS]


def published_numbers(published: Sequence[PublishedValue]) -> DataFrame:
    """The published values under our names of task, split and metric, in their order.

    A value that two of our tables show has a line in each. The values of one model, protocol and source are one row.
    """
    theirs = ["printed_task", "printed_split", "printed_metric", "regime"]
    values = published_of(published).rename(columns={name[len("printed_") :]: name for name in theirs[:3]})
    lines = values[values["source"] != OVERVIEW_SOURCE].merge(_names(), on=theirs)
    # Test-time scale is what tells two metrics of ADE20K apart; it does not make another model.
    scale_is_metric = lines["printed_metric"].str.contains("scale)", regex=False)
    settings = [
        _without_scale(text) if known else text for text, known in zip(lines["setting"], scale_is_metric, strict=True)
    ]
    lines = lines.assign(protocol=settings)
    model = ["system", "variant", "checkpoint", "params", "protocol", "resolution", "source"]
    return lines.assign(
        row=lines.groupby([*SECTION, *model], sort=False).ngroup(),
        measured=False,
        apart="",
        variant=lines["checkpoint"].where(lines["checkpoint"] != "", lines["variant"]),
        url=lines["source_url_or_repo_path"],
        text=lines["printed"],
        low=float("nan"),
        high=float("nan"),
        published_id=lines["id"],
    )[COLUMNS]


def _names() -> DataFrame:
    """Our task, split and metric, and the published ones, of every number that a table of ours can show."""
    from pandas import DataFrame

    lines = [
        (task, split, regime, metric, *published, printed_split)
        for task, names in published_names().items()
        for split, printed_splits in names.splits.items()
        for printed_split in printed_splits
        for regime in names.regimes
        for metric, published in names.metrics.items()
    ]
    return DataFrame(lines, columns=[*SECTION, "metric", "printed_task", "printed_metric", "printed_split"])


def _without_scale(setting: str) -> str:
    return "; ".join(part for part in setting.split("; ") if "-scale" not in part)


def regime_of(result: Result) -> str:
    """The regime of a measured row: its setting, or ``transfer`` for a checkpoint tuned on a sibling data set."""
    names, weight = read_facts(result["task"]).names, find_released(result["model"]["weight"] or "")
    if names and weight and result["setting"] == "zero-shot" and weight.task in names.transfer_from:
        return "transfer"
    return result["setting"]


def _protocol(result: Result) -> str:
    model = result["model"]
    parts = [regime_of(result), model.get("protocol", "")]
    if model["allow_missing"]:
        parts.append(f"WITHOUT the tensors {', '.join(model['allow_missing'])}")
    return "; ".join(part for part in parts if part)


def millions(count: int) -> str:
    """222123456 -> ``"222M"``, 1901000000 -> ``"1.9B"``, 123456 -> ``"0.1M"``."""
    if count >= 1_000_000_000:
        return f"{count / 1e9:.1f}B"
    return f"{count / 1e6:.0f}M" if count >= 10_000_000 else f"{count / 1e6:.1f}M"
