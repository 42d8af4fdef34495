"""Captioning for people: the caption beside what people wrote, with its own CIDEr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from beit3_bench.tasks.display import Display, Entry, Line, Listing, Picture, Shown
from beit3_bench.tasks.display.breakdowns import Breakdown, by_kind, words_kind, words_of, words_order

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example, Row

EDGES = (7, 8, 9, 10, 12)
REFERENCE_EDGES = (9, 10, 11, 12)


class CaptionDisplay(Display):
    """CIDEr of an image stands on the document frequencies of the whole split, as in the headline."""

    groups: ClassVar[Mapping[str, str]] = {"CIDEr/": "By domain"}

    def shown(self, example: Example, row: Row) -> Shown:
        caption, domain = str(row["caption"]), example.meta.get("domain")
        references = example.target or ()
        listing = Listing(f"{len(references)} captions by people", tuple(Entry(text) for text in references), None)
        return Shown(
            example.id,
            caption or "(an empty caption)",
            (Picture(example.images[0], f"Picture that was described as: {caption}"),),
            (Line("domain", domain),) if isinstance(domain, str) else (),
            (listing,) if references else (),
            (domain,) if isinstance(domain, str) else (),
        )

    def breakdowns(self) -> list[Breakdown]:
        values = self.scores.get("CIDEr", {})
        examples = [self.examples[i] for i in values if i in self.examples]
        clusters = {e.id: e.cluster for e in examples}
        own = {e.id: words_kind(words_of(self.rows[e.id]["caption"]), EDGES) for e in examples}
        average = {e.id: round(sum(map(words_of, e.target)) / len(e.target)) for e in examples}
        theirs = {i: words_kind(words, REFERENCE_EDGES) for i, words in average.items()}
        what = ("CIDEr", "fraction", values)
        return [
            *by_kind("By length of the caption", *what, own, clusters, words_order(EDGES)),
            *by_kind("By mean length of people's captions", *what, theirs, clusters, words_order(REFERENCE_EDGES)),
        ]
