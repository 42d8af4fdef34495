"""Samples as cards: pictures encoded, boxes and masks as outlines, texts to search in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from beit3_bench.backbones.corruptions import Corruption
from beit3_bench.harness.pages.outlines import outline_path
from beit3_bench.harness.pages.thumbnails import Thumbnail, overlay_uri, thumbnails
from beit3_bench.harness.pictures.colours import colours_of
from beit3_bench.tasks.display import Entry, LabelMap, Line, Listing, Mark, Picture, Shown

SIDE, PAIR_SIDE, SMALL_SIDE = 400, 300, 150
"""Longest side of a picture alone, of one of two, and of one in a list; in pixels, as large as they are shown."""
BYTES_PER_CARD = 52_000
"""Of pictures, in the mean: 48 cards stay under 3 MB."""
LEGEND = 10
"""Classes of a label map that its legend names."""


@dataclass(frozen=True)
class MarkView:
    """A box and mask in SVG. path: the mask's outline.  x, y, text: of its label.  title: what it is."""

    mark: Mark
    path: str
    x: float
    y: float
    text: str
    title: str


@dataclass(frozen=True)
class LayerView:
    """A label map over a picture. legend: colour (CSS) and name."""

    name: str
    uri: str
    legend: list[tuple[str, str]]


@dataclass(frozen=True)
class PictureView:
    """changed: whether the file is not the one that was scored.  font: of labels, in pixels of the image."""

    picture: Picture
    thumbnail: Thumbnail
    changed: bool
    marks: list[MarkView]
    layers: list[LayerView]
    font: float


@dataclass(frozen=True)
class EntryView:
    entry: Entry
    picture: PictureView | None


@dataclass(frozen=True)
class ListingView:
    listing: Listing
    entries: list[EntryView]

    @property
    def has_pictures(self) -> bool:
        return any(entry.picture is not None for entry in self.entries)


@dataclass(frozen=True)
class Part:
    """What one run says of a sample. label: ``"A"`` and ``"B"`` where there are two; else ""."""

    label: str
    heading: str
    pictures: list[PictureView]
    lines: Sequence[Line]
    listings: list[ListingView]


@dataclass(frozen=True)
class Card:
    """One sample.

    values: label of the run -> score in words, and its grade: good, partly, bad, or "" where a score is no share.
    sort: numbers that the page sorts by.
    """

    id: str
    section: str
    why: str
    parts: list[Part]
    values: list[tuple[str, str, str]]
    classes: tuple[str, ...]
    sort: Mapping[str, float] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What the text filter looks in."""
        texts = [self.id, *self.classes]
        for part in self.parts:
            texts += [part.heading, *(line.text for line in part.lines)]
            texts += [view.entry.text for listing in part.listings for view in listing.entries]
        return " ".join(filter(None, texts)).casefold()


class Album:
    """Pictures of all cards of a page; each file is encoded once for each size.

    changed: files that are no longer those that were scored.  corruption: of all pictures, as the model saw them.
    """

    def __init__(
        self, samples: Iterable[Shown], changed: Iterable[str], cards: int, corruption: Corruption | None = None
    ):
        self.changed = frozenset(changed)
        wanted = [key for shown in samples for key in _wanted(shown)]
        self.thumbnails = thumbnails(wanted, BYTES_PER_CARD * max(cards, 1), corruption)

    def missing(self) -> list[str]:
        """Why pictures could not be read, a line each."""
        return [thumbnail.problem for thumbnail in self.thumbnails.values() if thumbnail.problem]

    def part(self, label: str, shown: Shown) -> Part:
        side = _side(shown)
        return Part(
            label,
            shown.heading,
            [self.view(picture, side) for picture in shown.pictures],
            shown.lines,
            [
                ListingView(
                    listing,
                    [
                        EntryView(e, None if e.picture is None else self.view(e.picture, SMALL_SIDE))
                        for e in listing.entries
                    ],
                )
                for listing in shown.listings
            ],
        )

    def view(self, picture: Picture, side: int) -> PictureView:
        thumbnail = self.thumbnails[picture.path, side]
        width, height = picture.size or (thumbnail.width, thumbnail.height)
        font = max(width, height) / 26
        return PictureView(
            picture,
            thumbnail,
            picture.path in self.changed,
            [_mark_view(mark, font) for mark in picture.marks],
            _layer_views(picture.maps),
            font,
        )


def _side(shown: Shown) -> int:
    return SIDE if len(shown.pictures) < 2 else PAIR_SIDE


def _wanted(shown: Shown) -> Iterator[tuple[str, int]]:
    for picture in shown.pictures:
        yield picture.path, _side(shown)
    for listing in shown.listings:
        for entry in listing.entries:
            if entry.picture is not None:
                yield entry.picture.path, SMALL_SIDE


def _mark_view(mark: Mark, font: float) -> MarkView:
    x, y, _, _ = mark.box
    text = mark.label
    if mark.state in ("matched", "false") and mark.score is not None:
        text += f" {mark.score:.2f}"
    what = {"truth": "object", "missed": "object", "matched": "detection", "false": "detection"}.get(
        mark.state, "ignored"
    )
    return MarkView(
        mark,
        "" if mark.mask is None else outline_path(mark.mask),
        x + 0.15 * font,
        y - 0.3 * font if y > 1.3 * font else y + font,
        text,
        f"{what}: {text}",
    )


def _layer_views(layers: Sequence[LabelMap]) -> list[LayerView]:
    """A class has one colour in all layers of a picture."""
    colours = colours_of(number for layer in layers for number in layer.names)
    views = []
    for layer in layers:
        legend = [(f"#{bytes(colours[c]).hex()}", name) for c, name in list(layer.names.items())[:LEGEND]]
        views.append(LayerView(layer.name, overlay_uri(layer.classes, colours), legend))
    return views
