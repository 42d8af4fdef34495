"""One picture across tasks: everything that runs have measured of it, run by run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.rescore import using_stored_rows
from beit3_bench.harness.pages.cards import SIDE, Album, Card
from beit3_bench.harness.pages.numbers import MetricRow, facts_of, headline_of, value_of
from beit3_bench.harness.pages.opened import OpenedRun, open_run
from beit3_bench.harness.pages.rendering import Page, render, summary_tag
from beit3_bench.harness.pages.thumbnails import corruption_shown
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.display import Picture, Shown

_NUMBER = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class RunSection:
    """What one run says of the picture."""

    facts: Mapping[str, str]
    headline: MetricRow | None
    cards: list[Card]
    warnings: list[str]


def image_page(
    wanted: str,
    folders: Sequence[Path],
    data_root: Path | None = None,
    options: Mapping[str, str] | None = None,
    n: int = 48,
) -> Page:
    """The page of a picture.

    Args:
        wanted: id of the image (COCO's number, with or without zeros before it), or name of its file.
        folders: of runs.  n: samples of one run that are shown at most.  data_root, options: as of `open_run`.

    Raises:
        BenchError: see `open_run`; no run has the picture.
    """
    seen: list[tuple[OpenedRun, list[Shown]]] = []
    without: list[str] = []
    for folder in folders:
        run = open_run(folder, data_root, options)
        ids = samples_of(wanted, run.display.examples)
        if not ids:
            without.append(str(folder))
            continue
        with using_stored_rows(run.task, folder):
            seen.append((run, run.display.show(ids[:n])))
        if len(ids) > n:
            run.warnings.append(f"{len(ids) - n} more samples of the picture are not shown (--n {len(ids)}).")
    if not seen:
        raise BenchError(
            f"--image {wanted}: no sample of {', '.join(without)} shows it; give an image id or the name of an image file"
        )
    changed = {
        path for run, shown in seen for paths in run.changed_images(s.id for s in shown).values() for path in paths
    }
    corruption, unlike = corruption_shown(run.result for run, _ in seen)
    whole = _whole(wanted, seen)
    album = Album(
        [Shown("", pictures=(whole,)), *(s for _, shown in seen for s in shown)],
        changed,
        1 + sum(len(s) for _, s in seen),
        corruption,
    )
    sections = [_section(run, shown, album) for run, shown in seen]
    warnings = [f"{folder}: has no sample with this picture." for folder in without]
    warnings += [unlike] if unlike else []
    warnings += (
        [f"{len(changed)} pictures are no longer the files that were scored; they are marked."] if changed else []
    )
    facts = {"kind": "image", "name": wanted, "title": ", ".join(s.facts["title"] for s in sections)}
    html = render(
        "image.html",
        ["tools", "cards"],
        facts=facts,
        summary=summary_tag(facts),
        picture=album.view(whole, SIDE),
        sections=sections,
        warnings=warnings,
        has_marks=any(m for s in sections for c in s.cards for p in c.parts for v in p.pictures for m in v.marks),
        layers=list(
            dict.fromkeys(
                y.name for s in sections for c in s.cards for p in c.parts for v in p.pictures for y in v.layers
            )
        ),
    )
    return Page(html, sum(len(s.cards) for s in sections), facts, warnings)


def samples_of(wanted: str, examples: Mapping[str, Example]) -> list[str]:
    """Samples that show an image, and texts that belong to it.

    An image is told by its id (`Example.cluster`, or `Example.id`), by the name of its file, or by the number at the end of that.
    """
    found, clusters = [], set()
    for example in examples.values():
        named = any(_names(wanted, path) for path in example.images) or _same(wanted, example.id)
        if (example.images and named) or (len(example.images) == 1 and _same(wanted, example.cluster)):
            found.append(example.id)
            clusters.add(example.cluster)
    return found + [e.id for e in examples.values() if not e.images and e.cluster in clusters]


def _names(wanted: str, path: str) -> bool:
    file = Path(path)
    number = _NUMBER.search(file.stem)
    return wanted in (file.name, file.stem) or (number is not None and _same(wanted, number[1]))


def _same(wanted: str, name: str) -> bool:
    """Whether two ids are one; numbers by value."""
    both = wanted.isascii() and name.isascii() and wanted.isdecimal() and name.isdecimal()
    return wanted.lstrip("0") == name.lstrip("0") if both else wanted == name


def _whole(wanted: str, seen: Sequence[tuple[OpenedRun, list[Shown]]]) -> Picture:
    """The picture alone."""
    paths = [p.path for _, shown in seen for s in shown for p in s.pictures]
    path = next((path for path in paths if _names(wanted, path)), paths[0])
    return Picture(path, f"Picture {wanted}")


def _section(run: OpenedRun, shown: Sequence[Shown], album: Album) -> RunSection:
    cards = []
    for sample in shown:
        part = album.part("", sample)
        if len(part.pictures) == 1 and not part.pictures[0].marks and not part.pictures[0].layers:
            part.pictures.clear()  # it stands above
        cards.append(Card(f"{run.name}/{sample.id}", "", "", [part], value_of(run, sample.id), sample.classes))
    return RunSection(facts_of(run.result, run.name, run.title), headline_of(run.result), cards, run.warnings)
