"""The leaderboard: measured rows beside published ones, a pure function of result files and results/published.

Rows measured on anything but a whole released split are kept apart: they never share a section with published rows.
Everything here is in percent (caption metrics and AP x100).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from beit3_bench.backbones.released import find_released
from beit3_bench.harness.leaderboard.published import OVERVIEW_SOURCE, SOURCE_KINDS, PublishedValue
from beit3_bench.harness.leaderboard.verdict import Standing, Verdict, judge, percent, ranks
from beit3_bench.harness.record.released import apart as reasons_apart
from beit3_bench.harness.record.results import Run
from beit3_bench.harness.record.schema import MetricValue, Result
from beit3_bench.tasks.facts import PublishedNames, published_names, read_facts

BEIT3 = "BEiT-3"
MOST_OTHERS = 8
"""How many metrics beside the headline a task of another package shows; results list the declared ones first."""
BEST_OTHERS = 5
"""How many published rows of other systems a section shows unless `--systems` says otherwise."""
REGIME_TITLES = {
    "fine-tuned": "fine-tuned",
    "zero-shot": "zero-shot",
    "transfer": "tuned on another data set, not on this one",
}


@dataclass(frozen=True)
class Cell:
    """One number of a row: `value` in percent at full precision, `text` at the rounding of the paper, 95% interval."""

    value: float
    text: str
    low: float | None = None
    high: float | None = None
    published_id: str = ""


@dataclass
class TableRow:
    """A measured or published row of a section.

    name: system (published) or architecture (measured).  variant: model variant, or weight / checkpoint file.
    score: the number that orders the section, in percent; None where the source gives too little.
    half_width: of the 95% interval of the score; 0 where there is none.
    verdicts: by metric, measured rows only.  source: citation, or run folder.
    """

    measured: bool
    name: str
    variant: str
    params: str
    resolution: str
    protocol: str
    source: str
    url: str = ""
    source_kind: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)
    score: float | None = None
    half_width: float = 0.0
    rank: int | None = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    chance: float | None = None


@dataclass
class Section:
    """Comparable rows: one task, split and regime on the real data."""

    task: str
    split: str
    regime: str
    title: str
    metrics: list[str]
    order_by: tuple[str, ...]
    rows: list[TableRow]
    hidden: int = 0


@dataclass
class ApartRow:
    """A measured row that must not stand beside published ones, and why.  also: the metrics to show beside the headline."""

    task: str
    split: str
    regime: str
    why: str
    headline: str
    also: list[str]
    row: TableRow


@dataclass
class Table:
    """sections: comparable rows.  apart: tiny world, subsets, other data.  pending: runs without a score of their own."""

    sections: list[Section]
    apart: list[ApartRow]
    pending: list[str]


def build_table(
    runs: Sequence[Run],
    published: Sequence[PublishedValue],
    tasks: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    setting: str | None = None,
) -> Table:
    """Set measured rows beside published ones.

    Args:
        runs: results, e.g. of `read_results`.
        published: values, e.g. of `load_published`.
        tasks: our task names to show; None: the tasks that were measured, or all if nothing was.
        systems: published systems to show besides the measured rows; ``["all"]`` for every one; None: BEiT-3 and the
            best five others of each section.
        setting: show only this regime, ``fine-tuned`` or ``zero-shot``.
    """
    known = published_names()
    shown_tasks = tasks or list(dict.fromkeys(run.result["task"] for run in runs)) or list(known)
    order = [*known, *dict.fromkeys(shown_tasks)]
    sections: list[Section] = []
    apart: list[ApartRow] = []
    pending: list[str] = []
    comparable: dict[tuple[str, str, str], list[Run]] = {}
    for task in sorted(set(shown_tasks), key=order.index):
        for split in known[task].splits if task in known else ():
            for regime in known[task].regimes:
                comparable[task, split, regime] = []
        for run in sorted(runs, key=lambda run: run.name):
            result = run.result
            regime = regime_of(result)
            if result["task"] != task or (setting is not None and regime != setting):
                continue
            if result["status"] != "scored":
                pending.append(
                    f"{run.name}: {task} {result['split']}: {'; '.join([result['status'], *result['notes']])}"
                )
            elif why := ", ".join(reasons_apart(result)):
                headline = headline_of(result)
                names = known.get(task) or _names_of(result)
                row = _measured_row(run, names, ())
                also = [n for n in (*names.metrics, *names.extra) if n in row.cells and n != headline]
                apart.append(ApartRow(task, result["split"], regime, why, headline, also, row))
            else:
                comparable.setdefault((task, result["split"], regime), []).append(run)
    for (task, split, regime), measured in comparable.items():
        if setting is None or regime == setting:
            section = _section(task, split, regime, measured, published, systems)
            if section.rows:
                sections.append(section)
    return Table(sections, apart, pending)


def regime_of(result: Result) -> str:
    """The regime of a measured row: its setting, or ``transfer`` for a checkpoint tuned on a sibling data set."""
    names, weight = read_facts(result["task"]).names, find_released(result["model"]["weight"] or "")
    if names and weight and result["setting"] == "zero-shot" and weight.task in names.transfer_from:
        return "transfer"
    return result["setting"]


def headline_of(result: Result) -> str:
    """Name of the headline metric."""
    return next(name for name, metric in result["metrics"].items() if metric["headline"])


def measured_cell(metric: MetricValue) -> Cell:
    """A measured value as the table shows it."""
    value = percent(metric, metric["value"])
    low, high = (percent(metric, end) for end in metric["ci95"]) if metric["ci95"] else (None, None)
    return Cell(value, f"{value:.{metric['decimals']}f}", low, high)


def _names_of(result: Result) -> PublishedNames:
    """Names for a task whose facts have none: its own metrics, no published ones."""
    headline = headline_of(result)
    others = tuple(name for name in result["metrics"] if name != headline)[:MOST_OTHERS]
    return PublishedNames({headline: ("", "")}, (headline,), extra=others)


def _section(
    task: str,
    split: str,
    regime: str,
    measured: Sequence[Run],
    published: Sequence[PublishedValue],
    systems: Sequence[str] | None,
) -> Section:
    facts = read_facts(task)
    names = facts.names or _names_of(measured[0].result)
    values = published_values(published, names, split, regime)
    rows = [_measured_row(run, names, values) for run in measured]
    others = _without_quotes(published_rows(values, names))
    direction = _higher_is_better(measured, names)
    _rank([*rows, *others], names, direction)
    shown = _choose(others, systems, direction)
    listed = sorted([*rows, *shown], key=lambda row: _position(row, direction))
    columns = [name for name in (*names.metrics, *names.extra) if any(name in row.cells for row in listed)]
    title = f"{facts.title or task}, {split}, {REGIME_TITLES[regime]}"
    return Section(task, split, regime, title, columns, names.order_by, listed, len(others) - len(shown))


def _position(row: TableRow, higher_is_better: bool) -> tuple:
    missing = row.score is None
    score = 0.0 if row.score is None else row.score
    return (missing, -score if higher_is_better else score, not row.measured, row.name, row.variant, row.source)


def _higher_is_better(measured: Sequence[Run], names: PublishedNames) -> bool:
    for run in measured:
        metric = run.result["metrics"].get(names.order_by[0])
        if metric is not None:
            return metric["higher_is_better"]
    return True


def _choose(rows: list[TableRow], systems: Sequence[str] | None, higher_is_better: bool) -> list[TableRow]:
    if systems is None:
        others = sorted((r for r in rows if r.name != BEIT3), key=lambda row: _position(row, higher_is_better))
        return [r for r in rows if r.name == BEIT3] + others[:BEST_OTHERS]
    wanted = {name.casefold() for name in systems}
    return [row for row in rows if "all" in wanted or row.name.casefold() in wanted]


# ---- measured rows ---------------------------------------------------------------------------------------------------


def _measured_row(run: Run, names: PublishedNames, references: Sequence[PublishedValue]) -> TableRow:
    result, model = run.result, run.result["model"]
    protocol = [regime_of(result)]
    if model["allow_missing"]:
        protocol.append(f"WITHOUT the tensors {', '.join(model['allow_missing'])}")
    weight = model["weight"]
    row = TableRow(
        measured=True,
        name=f"{BEIT3} {model['preset']}",
        variant=weight or model["checkpoint"],
        params=millions(model["params"]),
        resolution=f"{model['image_size']}x{model['image_size']}",
        protocol="; ".join(protocol),
        source=f"run {run.name}",
        source_kind="measured here",
        cells={name: measured_cell(metric) for name, metric in result["metrics"].items()},
        counts=dict(result["counts"]),
        notes=list(result["notes"]),
    )
    row.score, row.half_width = _mean(row.cells, names.order_by), _half_width(row.cells, names.order_by)
    if result["chance"] is not None:
        row.chance = percent(result["metrics"][headline_of(result)], result["chance"])
    for name, metric in result["metrics"].items():
        if name in names.metrics and name not in names.derived:
            named = [value for value in references if (value.task, value.metric) == names.metrics[name]]
            row.verdicts[name] = judge(result, metric, named)
    return row


def millions(count: int) -> str:
    """222123456 -> ``"222M"``, 1901000000 -> ``"1.9B"``, 123456 -> ``"0.1M"``."""
    if count >= 1_000_000_000:
        return f"{count / 1e9:.1f}B"
    return f"{count / 1e6:.0f}M" if count >= 10_000_000 else f"{count / 1e6:.1f}M"


def _mean(cells: dict[str, Cell], metrics: Sequence[str]) -> float | None:
    if any(name not in cells for name in metrics):
        return None
    return sum(cells[name].value for name in metrics) / len(metrics)


# ---- published rows --------------------------------------------------------------------------------------------------


def published_values(
    published: Iterable[PublishedValue], names: PublishedNames, split: str, regime: str
) -> list[PublishedValue]:
    """The values of one section; rows of the paper's overview table only repeat others and are left out."""
    splits = names.splits.get(split, ())
    wanted = set(names.metrics.values())
    return [
        value
        for value in published
        if value.regime == regime
        and value.split in splits
        and (value.task, value.metric) in wanted
        and value.source != OVERVIEW_SOURCE
    ]


def published_rows(values: Iterable[PublishedValue], names: PublishedNames) -> list[TableRow]:
    """One row per model, protocol and source, its metrics side by side; derived metrics where all parts are there."""
    ours = {theirs: name for name, theirs in names.metrics.items()}
    rows: dict[tuple, TableRow] = {}
    for value in values:
        # Test-time scale is what tells two metrics of ADE20K apart; it does not make another model.
        scale_is_metric = "scale)" in value.metric
        setting = "; ".join(s for s in value.setting.split("; ") if not (scale_is_metric and "-scale" in s))
        checkpoint = value.checkpoint
        key = (value.system, value.variant, checkpoint, value.params, setting, value.resolution, value.source)
        if key not in rows:
            rows[key] = TableRow(
                measured=False,
                name=value.system,
                variant=checkpoint or value.variant,
                params=value.params,
                resolution=value.resolution,
                protocol=setting,
                source=value.source,
                url=value.source_url_or_repo_path,
                source_kind=value.source_kind,
            )
        row = rows[key]
        row.cells[ours[value.task, value.metric]] = Cell(value.value, value.printed, published_id=value.id)
        if value.note and value.note not in row.notes:
            row.notes.append(value.note)
    for row in rows.values():
        for name, parts in names.derived.items():
            mean = _mean(row.cells, parts)
            if mean is not None:
                row.cells = {name: Cell(mean, f"{mean:.1f}*"), **row.cells}
        row.score = _mean(row.cells, names.order_by)
    return list(rows.values())


def _without_quotes(rows: Sequence[TableRow]) -> list[TableRow]:
    """Drop rows that another row of the same system repeats from nearer to the origin."""

    def numbers(row: TableRow) -> set[tuple[str, float]]:
        return {(name, cell.value) for name, cell in row.cells.items()}

    kept: list[TableRow] = []
    for row in sorted(
        rows, key=lambda r: (SOURCE_KINDS.index(r.source_kind), -len(r.cells), r.name, r.variant, r.source)
    ):
        quotes = row.source_kind not in SOURCE_KINDS[:3]
        if not (quotes and any(k.name == row.name and numbers(row) <= numbers(k) for k in kept)):
            kept.append(row)
    return kept


# ---- ranks -----------------------------------------------------------------------------------------------------------


def _half_width(cells: dict[str, Cell], order_by: Sequence[str]) -> float:
    """Of the mean of the ordering metrics: at most the mean of their half-widths."""
    widths = [
        (cell.high - cell.low) / 2
        for cell in (cells[name] for name in order_by if name in cells)
        if cell.low is not None and cell.high is not None
    ]
    return sum(widths) / len(order_by)


def _standing(row: TableRow, order_by: Sequence[str]) -> Standing | None:
    if row.score is None:
        return None
    if row.measured:
        return Standing(row.score, half_width=row.half_width)
    digits = min(len(row.cells[name].text.partition(".")[2]) for name in order_by)
    return Standing(row.score, half_unit=0.5 * 10.0**-digits)


def _rank(rows: Sequence[TableRow], names: PublishedNames, higher_is_better: bool) -> None:
    standings = [_standing(row, names.order_by) for row in rows]
    for row, rank in zip(rows, ranks(standings, higher_is_better), strict=True):
        row.rank = rank


def as_dict(table: Table) -> dict:
    """The table as plain JSON values."""
    return dataclasses.asdict(table)
