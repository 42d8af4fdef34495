"""The leaderboard: measured rows beside published ones, a pure function of result files and results/published.

Rows measured on anything but a whole released split are kept apart: they never share a section with published rows.
Everything here is in percent (caption metrics and AP x100).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from beit3_bench.harness.leaderboard.numbers import Number, numbers, regime_of
from beit3_bench.harness.leaderboard.pareto import Cost, cost_of
from beit3_bench.harness.leaderboard.robustness import Robustness, robustness_of
from beit3_bench.harness.leaderboard.verdict import Reproduction, Standing, judge, percent, ranks
from beit3_bench.harness.record.released import own_data
from beit3_bench.harness.record.results import FIRST_FAMILY, SYSTEMS, Run
from beit3_bench.harness.record.schema import LINEAR_PROBE, Result
from beit3_bench.results.published.values import SOURCE_KINDS, PublishedValue
from beit3_bench.tasks.facts import PublishedNames, View, published_names, read_facts

BEIT3 = SYSTEMS[FIRST_FAMILY]
MOST_OTHERS = 8
"""How many metrics beside the headline a task of another package shows; results list the declared ones first."""
BEST_OTHERS = 5
"""How many published rows of other systems a section shows unless `--systems` says otherwise."""
SectionKey = tuple[str, str, str]
"""Task, split and regime."""
REGIME_TITLES = {
    "fine-tuned": "fine-tuned",
    "zero-shot": "zero-shot",
    "transfer": "tuned on another data set, not on this one",
    LINEAR_PROBE: "a linear layer on frozen features",
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
    run: name of the run below the folder of runs, and cost: of measured rows only.
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
    verdicts: dict[str, Reproduction] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    chance: float | None = None
    run: str = ""
    cost: Cost | None = None


@dataclass
class Section:
    """Comparable rows: one task, split and regime on the real data.

    view: of a table of further metrics (`tasks.facts.PublishedNames.views`), its title.
    """

    task: str
    split: str
    regime: str
    title: str
    metrics: list[str]
    order_by: tuple[str, ...]
    rows: list[TableRow]
    hidden: int = 0
    higher_is_better: bool = True
    view: str = ""


@dataclass
class ApartRow:
    """A measured row that must not stand beside published ones, and why.  also: the metrics to show beside the headline.

    corrupt: as in `Result`, else "".
    """

    task: str
    split: str
    regime: str
    why: str
    headline: str
    also: list[str]
    row: TableRow
    corrupt: str = ""


@dataclass
class Table:
    """sections: comparable rows.  apart: tiny world, subsets, other data, corrupted images.  pending: runs without a score of
    their own.  robustness: what stands apart because its images were corrupted, against clean runs.
    """

    sections: list[Section]
    apart: list[ApartRow]
    pending: list[str]
    robustness: list[Robustness] = field(default_factory=list)

    @property
    def listed_apart(self) -> list[ApartRow]:
        """The rows apart that are told nowhere else."""
        return [item for item in self.apart if not item.corrupt]


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
        setting: show only this regime: ``fine-tuned``, ``zero-shot`` or ``linear-probe``.
    """
    known = published_names()
    shown_tasks = tasks or list(dict.fromkeys(run.result["task"] for run in runs)) or list(known)
    order = [*known, *dict.fromkeys(shown_tasks)]
    wanted = [run for run in runs if run.result["task"] in shown_tasks and setting in (None, regime_of(run.result))]
    wanted.sort(key=lambda run: (order.index(run.result["task"]), run.name))
    scored = [run for run in wanted if run.result["status"] == "scored"]
    kept_apart: list[Number] = []
    comparable: dict[SectionKey, list[Number]] = {}
    for line in numbers(scored, published):
        place = kept_apart if line.apart else comparable.setdefault((line.task, line.split, line.regime), [])
        place.append(line)
    sections: list[Section] = []
    for key in _section_keys(shown_tasks, order, comparable):
        if setting in (None, key[2]):
            found = _sections(key, comparable[key], scored, published, systems)
            sections += [section for section in found if section.rows]
    apart = [_apart_row(scored[cells[0].row], cells) for cells in _by_row(kept_apart)]
    pending = [_pending(run) for run in wanted if run.result["status"] != "scored"]
    return Table(sections, apart, pending, robustness_of(scored))


def _section_keys(tasks: Iterable[str], order: Sequence[str], comparable: Iterable[SectionKey]) -> list[SectionKey]:
    """Task, split and regime of the sections to show: those of our names in their order, then what else was measured."""
    there = dict.fromkeys(comparable)
    keys = []
    for task in sorted(set(tasks), key=order.index):
        names = read_facts(task).names
        ours = [(task, split, regime) for split in names.splits for regime in names.regimes] if names else []
        keys += [key for key in dict.fromkeys([*ours, *(key for key in there if key[0] == task)]) if key in there]
    return keys


def _pending(run: Run) -> str:
    result = run.result
    return f"{run.name}: {result['task']} {result['split']}: {'; '.join([result['status'], *result['notes']])}"


def headline_of(result: Result) -> str:
    """Name of the headline metric."""
    return next(name for name, metric in result["metrics"].items() if metric["headline"])


def _names_of(result: Result) -> PublishedNames:
    """Names for a task whose facts have none: its own metrics, no published ones."""
    headline = headline_of(result)
    others = tuple(name for name in result["metrics"] if name != headline)[:MOST_OTHERS]
    return PublishedNames({headline: ("", "")}, (headline,), extra=others)


def _sections(
    key: SectionKey,
    lines: Sequence[Number],
    runs: Sequence[Run],
    published: Sequence[PublishedValue],
    systems: Sequence[str] | None,
) -> Iterator[Section]:
    """The table of a task, split and regime, and its views; every number is in one of them."""
    facts = read_facts(key[0])
    names = facts.names or _names_of(next(runs[line.row].result for line in lines if line.measured))
    title = f"{facts.title or key[0]}, {key[1]}, {REGIME_TITLES[key[2]]}"
    in_views = {metric for view in names.views.values() for metric in view.metrics}
    yield _section(key, "", title, names, [n for n in lines if n.metric not in in_views], runs, published, systems)
    for name, view in names.views.items():
        own = [line for line in lines if line.metric in view.metrics]
        yield _section(key, name, f"{title}: {name}", view, own, runs, published, systems)


def _section(
    key: SectionKey,
    view: str,
    title: str,
    names: View,
    lines: Sequence[Number],
    runs: Sequence[Run],
    published: Sequence[PublishedValue],
    systems: Sequence[str] | None,
) -> Section:
    by_row = _by_row(lines)
    measured = [runs[cells[0].row] for cells in by_row if cells[0].measured]
    references = _references(lines, published)
    rows = [_measured_row(runs[cells[0].row], cells, names, references) for cells in by_row if cells[0].measured]
    others = _without_quotes([_published_row(cells, names) for cells in by_row if not cells[0].measured])
    direction = _higher_is_better(measured, names)
    _rank([*rows, *others], names, direction)
    shown = _choose(others, systems, direction)
    listed = sorted([*rows, *shown], key=lambda row: _position(row, direction))
    columns = [name for name in (*names.metrics, *names.extra) if any(name in row.cells for row in listed)]
    hidden = len(others) - len(shown)
    return Section(*key, title, columns, names.order_by, listed, hidden, direction, view)


def _by_row(lines: Iterable[Number]) -> list[list[Number]]:
    """Numbers, those of a table's row together."""
    return [list(cells) for _, cells in groupby(sorted(lines, key=attrgetter("row")), key=attrgetter("row"))]


def _position(row: TableRow, higher_is_better: bool) -> tuple:
    missing = row.score is None
    score = 0.0 if row.score is None else row.score
    return (missing, -score if higher_is_better else score, not row.measured, row.name, row.variant, row.source)


def _higher_is_better(measured: Sequence[Run], names: View) -> bool:
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


# ---- rows ------------------------------------------------------------------------------------------------------------


def _row(lines: Sequence[Number]) -> TableRow:
    """The row of numbers that share it."""
    first = lines[0]
    return TableRow(
        measured=first.measured,
        name=first.system,
        variant=first.variant,
        params=first.params,
        resolution=first.resolution,
        protocol=first.protocol,
        source=first.source,
        url=first.url,
        source_kind=first.source_kind,
        cells={line.metric: _cell(line) for line in lines},
    )


def _cell(line: Number) -> Cell:
    low, high = (None if math.isnan(end) else end for end in (line.low, line.high))
    return Cell(line.value, line.text, low, high, line.published_id)


def _measured_row(
    run: Run, lines: Sequence[Number], names: View, references: Mapping[str, Sequence[PublishedValue]]
) -> TableRow:
    result, row = run.result, _row(lines)
    row.counts, row.notes = dict(result["counts"]), list(result["notes"])
    row.run, row.cost = run.name, cost_of(result)
    row.score, row.half_width = _mean(row.cells, names.order_by), _half_width(row.cells, names.order_by)
    if result["chance"] is not None:
        row.chance = percent(result["metrics"][headline_of(result)], result["chance"])
    for name, metric in result["metrics"].items():
        if name in names.metrics and name not in names.derived and not own_data(result):
            row.verdicts[name] = judge(result, metric, references.get(name, ()))
    return row


def _apart_row(run: Run, lines: Sequence[Number]) -> ApartRow:
    result, first, headline = run.result, lines[0], headline_of(run.result)
    names = read_facts(result["task"]).names or _names_of(result)
    row = _measured_row(run, lines, names, {})
    also = [name for name in (*names.metrics, *names.extra) if name in row.cells and name != headline]
    corrupt = result.get("corrupt") or ""
    return ApartRow(first.task, first.split, first.regime, first.apart, headline, also, row, corrupt)


def _published_row(lines: Sequence[Number], names: View) -> TableRow:
    """Metrics side by side; derived ones where all parts are there."""
    row = _row(lines)
    row.notes = list(dict.fromkeys(line.note for line in lines if line.note))
    for name, parts in names.derived.items():
        mean = _mean(row.cells, parts)
        if mean is not None:
            row.cells = {name: Cell(mean, f"{mean:.1f}*"), **row.cells}
    row.score = _mean(row.cells, names.order_by)
    return row


def _references(lines: Iterable[Number], published: Iterable[PublishedValue]) -> dict[str, list[PublishedValue]]:
    """By our metric, the published values among these numbers."""
    by_id = {value.id: value for value in published}
    references: dict[str, list[PublishedValue]] = {}
    for line in lines:
        if not line.measured:
            references.setdefault(line.metric, []).append(by_id[line.published_id])
    return references


def _mean(cells: dict[str, Cell], metrics: Sequence[str]) -> float | None:
    if any(name not in cells for name in metrics):
        return None
    return sum(cells[name].value for name in metrics) / len(metrics)


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


def _rank(rows: Sequence[TableRow], names: View, higher_is_better: bool) -> None:
    standings = [_standing(row, names.order_by) for row in rows]
    for row, rank in zip(rows, ranks(standings, higher_is_better), strict=True):
        row.rank = rank


def as_dict(table: Table) -> dict:
    """The table as plain JSON values."""
    return dataclasses.asdict(table)
