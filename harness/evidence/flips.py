"""The samples on which two runs differ: what both said and, where the data is named, what was asked and what would have been right."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.rescore import read_again, using_stored_rows
from beit3_bench.harness.record.store import RunStore
from beit3_bench.tasks.contract import Example, Row

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

CLASSES = 5
"""So many numbers of classes are read at a glance."""
SAID = "said"
"""Key of what a display says of a row that does not say it itself, such as an embedding."""


@dataclass(frozen=True)
class Flip:
    """A sample on which the two runs differ: its values in the metric's unit, and what was predicted, where it is short.

    text, images, truth: of the sample; empty where the data was not named, and where there is no such thing.
    """

    id: str
    a: float
    b: float
    predicted_a: dict[str, Any] = field(default_factory=dict)
    predicted_b: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    truth: str = ""
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    """What is known of the samples of a run: its examples by id, and what the run said of some of them."""

    display: Display
    examples: Mapping[str, Example]
    said: Mapping[str, str]


@dataclass(frozen=True)
class Named:
    """The data of both runs, as it was named again.

    options: of each run.  sure: whether the user named it for these runs; where settings say it in general, it may be
        other data, and flips go without.
    """

    data_root: Path
    options: Sequence[Mapping[str, str]]
    command: Sequence[str]
    sure: bool = True


def with_predictions(flips: Sequence[Flip], a: RunStore, b: RunStore) -> list[Flip]:
    """The same flips, with what both runs predicted."""
    ids = {flip.id for flip in flips}
    if not ids:
        return []
    of_a, of_b = a.rows(ids), b.rows(ids)
    return [
        dataclasses.replace(
            flip, predicted_a=readable(of_a.get(flip.id, {})), predicted_b=readable(of_b.get(flip.id, {}))
        )
        for flip in flips
    ]


def with_samples(flips: Sequence[Flip], a: RunStore, b: RunStore, named: Named) -> list[Flip]:
    """The same flips, with what was asked, what would have been right, and what both runs said in words.

    Raises:
        BenchError: the data was named for these runs, and is not theirs; or it cannot be read.
    """
    try:
        of_a, of_b = (_told(store, named, options, flips) for store, options in zip((a, b), named.options, strict=True))
    except BenchError:
        if named.sure:
            raise
        return list(flips)
    return [_with_sample(flip, of_a, of_b) for flip in flips]


def _told(store: RunStore, named: Named, options: Mapping[str, str], flips: Sequence[Flip]) -> Told:
    _, task, prepared = read_again(store.folder, named.data_root, options, named.command)
    ids = list(dict.fromkeys(flip.id for flip in flips))
    alone = task.feature is None and {e.id for e in prepared.split.examples}.issuperset(ids)
    rows = store.rows(set(ids)) if alone else store.rows()
    with using_stored_rows(task, store.folder):
        display = task.display(rows, prepared.split, {})
        said = display.said(ids)
    return Told(display, display.examples, said)


def _with_sample(flip: Flip, a: Told, b: Told) -> Flip:
    example = a.examples.get(flip.id)
    if example is None:
        return flip
    return dataclasses.replace(
        flip,
        predicted_a={SAID: a.said[flip.id]} if flip.id in a.said else flip.predicted_a,
        predicted_b={SAID: b.said[flip.id]} if flip.id in b.said else flip.predicted_b,
        text=example.text or "",
        truth=a.display.truth(example),
        images=example.images,
    )


def readable(row: Row) -> dict[str, Any]:
    """What of a row a person reads: answers, labels, captions and the best classes, no ids, scores, tokens or embeddings."""
    words = {key: value for key, value in row.items() if key != "id" and isinstance(value, (str, bool))}
    return words or {
        key: [int(number) for number in value]
        for key, value in row.items()
        if isinstance(value, (list, np.ndarray)) and 0 < len(value) <= CLASSES and np.asarray(value).dtype.kind in "iu"
    }
