"""The numbers that the board is made of, measured and published alike, in percent: a line per number, as plain values.

What stands in one row of the table shares ``row``; what stands in one table shares ``task``, ``split`` and ``regime``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from beit3_bench.backbones.released import find_released
from beit3_bench.harness.record.released import apart, own_data
from beit3_bench.harness.record.results import Run, model_name
from beit3_bench.harness.record.schema import IMAGES, Result
from beit3_bench.results.published.values import OVERVIEW_SOURCE, PublishedValue
from beit3_bench.tasks.facts import published_names, read_facts

NONE = float("nan")


class Number(NamedTuple):
    """One number.

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


def numbers(runs: Sequence[Run], published: Sequence[PublishedValue]) -> list[Number]:
    """Every number of scored runs, and behind them every published one that belongs to a table of ours.

    Args:
        runs: scored ones.
        published: values; those of the paper's overview table only repeat others and are left out.
    """
    return [*measured_numbers(runs), *published_numbers(published, len(runs))]


def measured_numbers(runs: Sequence[Run]) -> list[Number]:
    """The numbers of scored runs, in their order and that of their metrics."""
    named = zip(runs, splits_of(runs), strict=True)
    return [number for row, (run, split) in enumerate(named) for number in _measured(row, run, split)]


def _measured(row: int, run: Run, split: str) -> Iterator[Number]:
    result, model = run.result, run.result["model"]
    regime, reasons, protocol = regime_of(result), ", ".join(apart(result)), _protocol(result)
    for name, metric in result["metrics"].items():
        scale = 100.0 if metric["unit"] == "fraction" else 1.0
        value = metric["value"] * scale
        low, high = (end * scale for end in metric["ci95"] or (NONE, NONE))
        yield Number(
            task=result["task"],
            split=split,
            regime=regime,
            row=row,
            measured=True,
            apart=reasons,
            system=model_name(model),
            variant=model["weight"] or model["checkpoint"],
            params=millions(model["params"]),
            resolution=f"{model['image_size']}x{model['image_size']}",
            protocol=protocol,
            source=f"run {run.name}",
            url="",
            source_kind="measured here",
            note="",
            metric=name,
            value=value,
            text=f"{value:.{metric['decimals']}f}",
            low=low,
            high=high,
            published_id="",
        )


def splits_of(runs: Sequence[Run]) -> list[str]:
    """The split of each run; where data of one's own shares its name with other such data, with eight digits of what it holds."""
    contents = [_contents(run.result) for run in runs]
    named: dict[tuple[str, str], set[str]] = {}
    for run, own in zip(runs, contents, strict=True):
        if own:
            named.setdefault((run.result["task"], run.result["split"]), set()).add(own)
    shared = {key for key, contents in named.items() if len(contents) > 1}
    return [
        f"{run.result['split']} ({own[:8]})"
        if (run.result["task"], run.result["split"]) in shared and own
        else run.result["split"]
        for run, own in zip(runs, contents, strict=True)
    ]


def _contents(result: Result) -> str:
    """Hash of what data of one's own says and, of a run over all of it, of its images; "" of other data."""
    own = own_data(result)
    if not own:
        return ""
    images = result["provenance"].get("fingerprints", {}).get(IMAGES, "") if result["subset"] is None else ""
    return hashlib.sha256(f"{own} {images}".encode()).hexdigest()


def published_numbers(published: Sequence[PublishedValue], first_row: int = 0) -> list[Number]:
    """The published values under our names of task, split and metric, in their order.

    A value that two of our tables show has a line in each. The values of one model, protocol and source are one row, numbered from
    ``first_row``.
    """
    ours = _names()
    rows: dict[tuple[str, ...], int] = {}
    lines = []
    for value in published:
        if value.source == OVERVIEW_SOURCE:
            continue
        # Test-time scale is what tells two metrics of ADE20K apart; it does not make another model.
        protocol = _without_scale(value.setting) if "scale)" in value.metric else value.setting
        model = (value.system, value.variant, value.checkpoint, value.params, protocol, value.resolution, value.source)
        for task, split, metric in ours.get((value.task, value.split, value.metric, value.regime), ()):
            row = rows.setdefault((task, split, value.regime, *model), first_row + len(rows))
            lines.append(
                Number(
                    task=task,
                    split=split,
                    regime=value.regime,
                    row=row,
                    measured=False,
                    apart="",
                    system=value.system,
                    variant=value.checkpoint or value.variant,
                    params=value.params,
                    resolution=value.resolution,
                    protocol=protocol,
                    source=value.source,
                    url=value.source_url_or_repo_path,
                    source_kind=value.source_kind,
                    note=value.note,
                    metric=metric,
                    value=value.value,
                    text=value.printed,
                    low=NONE,
                    high=NONE,
                    published_id=value.id,
                )
            )
    return lines


def _names() -> dict[tuple[str, str, str, str], list[tuple[str, str, str]]]:
    """Published task, split, metric and regime -> our task, split and metric, of every number that a table of ours can show."""
    ours: dict[tuple[str, str, str, str], list[tuple[str, str, str]]] = {}
    for task, names in published_names().items():
        for split, printed_splits in names.splits.items():
            for printed_split in printed_splits:
                for regime in names.regimes:
                    for metric, (printed_task, printed_metric) in names.printed.items():
                        key = (printed_task, printed_split, printed_metric, regime)
                        ours.setdefault(key, []).append((task, split, metric))
    return ours


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
