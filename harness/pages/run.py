"""The page of a run: its numbers, where it fails by kind, and samples with their pictures, beside those of another run if wanted."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.rescore import using_stored_rows
from beit3_bench.harness.pages.breakdowns import panel_of, panels_of_metrics
from beit3_bench.harness.pages.cards import Album, Card
from beit3_bench.harness.pages.choosing import Chosen, changes, choose
from beit3_bench.harness.pages.numbers import MetricRow, details_of, facts_of, headline_of, metric_rows, value_of
from beit3_bench.harness.pages.opened import OpenedRun, open_run
from beit3_bench.harness.pages.rendering import Page, render, summary_tag
from beit3_bench.harness.pages.thumbnails import corruption_shown
from beit3_bench.harness.request import data_option
from beit3_bench.harness.scoring import metric_spec, shown
from beit3_bench.tasks.display import Shown

if TYPE_CHECKING:
    from beit3_bench.harness.evidence.compare import Comparison

START_SCORE = 0.5
"""Least score of detections that are shown first."""


def run_page(
    folder: Path,
    against: Path | None = None,
    n: int = 48,
    sort: str | None = None,
    data_root: Path | None = None,
    options: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Page:
    """The page of a run folder.

    Args:
        against: another run over the same samples.
        n, sort, seed: see `choose`.  data_root, options: see `open_run`.

    Raises:
        BenchError: see `open_run` and `choose`; runs over different data.
    """
    run = open_run(folder, data_root, options)
    other, comparison = None, None
    if against is not None:
        comparison = _compared(folder, against, run, options)
        other = open_run(against, run.data_root, options)
    spec = metric_spec(run.task, run.samples.metric) if run.samples.metric else None
    top = 100.0 if spec is not None and spec.unit == "percent" else 1.0
    with using_stored_rows(run.task, folder):
        chosen = choose(run.display, run.samples, n, sort, None if other is None else other.samples, seed, top)
        cards, missing = _cards(run, other, chosen)
        panels = panels_of_metrics(run.result["metrics"], run.display.groups)
        panels += [panel_of(breakdown) for breakdown in run.display.breakdowns()]
    warnings = [*run.warnings, *missing]
    scores = [
        m.mark.score for card in cards for p in card.parts for view in p.pictures for m in view.marks if m.mark.score
    ]
    facts = facts_of(run.result, run.name, run.title)
    html = render(
        "run.html",
        ["tools", "cards"],
        run=run,
        other=other,
        facts=facts,
        summary=summary_tag(facts),
        headlines=_headlines(run, other),
        comparison=None if comparison is None else _compared_rows(comparison),
        flips=None if other is None else changes(run.samples.values, other.samples.values),
        metrics=metric_rows(run.result),
        details=details_of(run.result, run),
        warnings=warnings,
        notes=run.result["notes"],
        panels=panels,
        cards=cards,
        whys=list(dict.fromkeys(card.why for card in cards)),
        sections=[title for title in dict.fromkeys(card.section for card in cards) if title],
        classes=_classes(cards),
        sorts=_sorts(cards, run),
        has_marks=bool(scores),
        has_masks=any(m.path for card in cards for p in card.parts for view in p.pictures for m in view.marks),
        layers=list(
            dict.fromkeys(layer.name for c in cards for p in c.parts for v in p.pictures for layer in v.layers)
        ),
        start=_start_score(scores),
    )
    return Page(html, len(cards), facts, warnings)


# ---- cards --------------------------------------------------------------------------------------------------------------


def _cards(run: OpenedRun, other: OpenedRun | None, chosen: list[Chosen]) -> tuple[list[Card], list[str]]:
    """The cards, and a line on pictures that are not there or have changed."""
    ids = [one.id for one in chosen]
    ours = run.display.show(ids)
    theirs = [None] * len(ids) if other is None else other.display.show(ids)
    changed = run.changed_images(ids)
    corruption, unlike = corruption_shown([run.result, *([] if other is None else [other.result])])
    samples = [s for s in (*ours, *theirs) if s is not None]
    album = Album(samples, set().union(*changed.values()), len(ids), corruption)
    cards = []
    for one, mine, his in zip(chosen, ours, theirs, strict=True):
        parts = [album.part("A" if his else "", mine)]
        if his is not None:
            parts.append(album.part("B", without_repeats(his, mine)))
        values = (
            value_of(run, one.id) if other is None else [*value_of(run, one.id, "A"), *value_of(other, one.id, "B")]
        )
        numbers = {"score": run.samples.values.get(one.id), "confidence": run.samples.confidence.get(one.id)}
        if other is not None and one.id in other.samples.values and numbers["score"] is not None:
            numbers["change"] = other.samples.values[one.id] - numbers["score"]
        known = {name: number for name, number in numbers.items() if number is not None}
        cards.append(Card(one.id, one.section, one.why, parts, values, mine.classes, known))
    warnings = [unlike] if unlike else []
    if problems := album.missing():
        warnings.append(
            f"{len(problems)} pictures cannot be shown; the data is looked for in {run.data_root}, and "
            f"{data_option(type(run.task))} names another place ({problems[0]})."
        )
    if album.changed:
        warnings.append(
            f"{len(album.changed)} pictures shown are no longer the files that were scored; they are marked."
        )
    return cards, warnings


def without_repeats(his: Shown, mine: Shown) -> Shown:
    """What the other run says, without lists that the data gives for both (answers and captions by people)."""
    said = [[(entry.text, entry.value) for entry in listing.entries] for listing in mine.listings]
    fresh = [one for one in his.listings if [(entry.text, entry.value) for entry in one.entries] not in said]
    return dataclasses.replace(his, listings=tuple(fresh))


def _classes(cards: list[Card]) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for card in cards:
        for name in card.classes:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts.items(), key=lambda item: item[0].casefold())


def _sorts(cards: list[Card], run: OpenedRun) -> list[tuple[str, str]]:
    """Orders that the page offers: key and words."""
    names = {"score": run.samples.metric.replace("_", " "), "confidence": "confidence", "change": "change from A to B"}
    known = [name for name in names if any(name in card.sort for card in cards)]
    return [
        (f"{name} {way}", f"{names[name]}, {words}")
        for name in known
        for way, words in (("up", "lowest first"), ("down", "highest first"))
    ]


def _start_score(scores: list[float]) -> float:
    """Where the slider of detection scores stands first: lower where hardly any detection is above `START_SCORE`."""
    if not scores or statistics.mean(score >= START_SCORE for score in scores) >= 0.1:
        return START_SCORE
    return round(sorted(scores)[int(0.8 * len(scores))] * 20 - 0.5) / 20


def _headlines(run: OpenedRun, other: OpenedRun | None) -> list[tuple[str, MetricRow]]:
    """Label of the run and its headline; nothing for a submission."""
    sides = [("", run)] if other is None else [("A", run), ("B", other)]
    return [(label, row) for label, side in sides if (row := headline_of(side.result)) is not None]


# ---- the other run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ComparedRow:
    name: str
    a: str
    b: str
    difference: str
    interval: str
    p: str
    verdict: str


def _compared(folder: Path, against: Path, run: OpenedRun, options: Mapping[str, str] | None) -> Comparison:
    from beit3_bench.harness.evidence.compare import compare

    return compare(folder, against, flips=0, data_root=run.data_root, options=options)


def _compared_rows(comparison: Comparison) -> list[ComparedRow]:
    from beit3_bench.harness.evidence.compare import p_text, verdict

    def signed(value: float, unit: str, decimals: int) -> str:
        text = shown(value, unit, decimals)
        return text if text.startswith("-") else f"+{text}"

    rows = []
    for one in comparison.metrics:
        how = one.unit, max(one.decimals, 1)
        interval = f"[{signed(one.ci95[0], *how)}, {signed(one.ci95[1], *how)}]" if one.ci95 else ""
        difference = signed(one.difference, *how)
        p = "" if one.p_value is None else p_text(one.p_value)
        rows.append(
            ComparedRow(one.metric, shown(one.a, *how), shown(one.b, *how), difference, interval, p, verdict(one))
        )
    return rows


def page_name(run: Path) -> str:
    """The file name of a run's page in a folder of pages.

    Raises:
        BenchError: a folder without a name (the root of the file system).
    """
    name = run.resolve().name
    if not name:
        raise BenchError(f"{run}: has no name to call its page by; give --output FILE.html")
    return f"{name}.html"
