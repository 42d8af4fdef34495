"""Which samples of a run are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from beit3_bench.errors import BenchError
from beit3_bench.tasks.display import Display, Samples

SORTS = ("worst", "best", "random", "flips", "confident-errors")
CANDIDATES = 2048
"""So many samples of one score are told apart by `Display.finer` at the most."""


@dataclass(frozen=True)
class Chosen:
    """section: of `Display.sections`.  why: the sort that chose it."""

    id: str
    section: str
    why: str


def choose(
    display: Display,
    samples: Samples,
    n: int,
    sort: str | None = None,
    against: Samples | None = None,
    seed: int = 0,
    top: float = math.inf,
) -> list[Chosen]:
    """At most n samples, as many of each section.

    Args:
        sort: one of `SORTS`; None = flips against another run, else some of the worst, the best and any, else any.
        against: of the other run.
        top: the best score that a sample can have; at or above it an answer is no error.

    Raises:
        BenchError: a sort for which the run holds nothing.
    """
    if sort == "flips" and against is None:
        raise BenchError("--sort flips needs another run: --against RUN_B")
    if sort in ("worst", "best", "confident-errors") and not samples.values:
        raise BenchError(f"--sort {sort}: this run has no values per sample (is its truth public?); take --sort random")
    if sort == "confident-errors" and not samples.confidence:
        raise BenchError("--sort confident-errors: the rows of this run hold no score of the answer; take --sort worst")
    whys = [sort] if sort else ["flips"] if against else ["worst", "best", "random"] if samples.values else ["random"]
    sections = {title: list(ids) for title, ids in display.sections().items() if ids}
    chosen: dict[str, Chosen] = {}
    for place, (title, ids) in enumerate(sections.items()):
        left = n // len(sections) + (place < n % len(sections))
        Random(seed).shuffle(ids)
        for number, why in enumerate(whys):
            share = left // (len(whys) - number)
            ranked = _ranked(why, ids, display, samples, against, top)
            fresh = [name for name in ranked if name not in chosen][:share]
            chosen |= {name: Chosen(name, title, why) for name in fresh}
            left -= len(fresh)
    return list(chosen.values())


def _ranked(
    why: str, ids: Sequence[str], display: Display, samples: Samples, against: Samples | None, top: float
) -> Sequence[str]:
    """Ids, those first that are shown first; equal ones stay as they come."""
    values, sure = samples.values, samples.confidence
    known = [name for name in ids if name in values]
    if why in ("worst", "best"):
        sign = 1 if why == "worst" else -1
        ordered = sorted(known, key=lambda name: sign * values[name])
        first = ordered[:CANDIDATES]
        finer = display.finer(first)
        return sorted(first, key=lambda name: (sign * values[name], sign * finer.get(name, 0.0)))
    if why == "flips" and against is not None:
        change = {name: abs(against.values[name] - values[name]) for name in known if name in against.values}
        return sorted((name for name in change if change[name] > 0), key=lambda name: -change[name])
    if why == "confident-errors":
        return sorted((i for i in known if i in sure and values[i] < top), key=lambda name: -sure[name])
    return ids


def changes(values: Mapping[str, float], against: Mapping[str, float]) -> tuple[int, int]:
    """How many samples got better, and worse, in the other run."""
    both = [(against[name] - value) for name, value in values.items() if name in against]
    return sum(change > 0 for change in both), sum(change < 0 for change in both)
