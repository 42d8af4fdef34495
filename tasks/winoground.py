"""Winoground: two pictures and two captions of the same words in another order; which belongs to which?

Protocol (Thrush et al. 2022, arXiv 2204.03162, section 4; the code on the card of facebook/winoground, Hugging Face hub): 400 hand-made
questions. Text score: each picture scores strictly higher with its own caption than with the other. Image score: each caption
scores strictly higher with its own picture. Group score: both; it is the headline. Guessing scores 1/4, 1/4 and 1/6. By the
card's tags: what is swapped (``collapsed_tag``), how many main predicates, and the phenomena of ``secondary_tag``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.compositionality import NOT_DRAWN, Compositionality, Gathering, Questions
from beit3_bench.tasks.contract import Split
from beit3_bench.tasks.files import field, find, identifier, look_for, read_json_lines, unique, whole_number
from beit3_bench.tasks.layouts.places import Picture, find_images
from beit3_bench.tasks.layouts.tables import Column, find_shards, read_rows
from beit3_bench.tasks.metrics.choices import best_images, best_texts, choice_shares
from beit3_bench.tasks.reranking import plain_metrics
from beit3_bench.tasks.scores import Metric

FOLDERS = (".", "data", "winoground", "winoground/data")
EXPORTED = ("test",)
FORM = 'one {"id": 0, "image_0": ..., "image_1": ..., "caption_0": ..., "caption_1": ...} a line'
CAPTIONS, IMAGES = ("caption_0", "caption_1"), ("image_0", "image_1")
COLUMNS = (
    Column(("id",), "by which questions are told apart"),
    *(Column((name,), "the captions") for name in CAPTIONS),
    *(Column((name,), "the pictures", image=True) for name in IMAGES),
    Column(("collapsed_tag",)),
    Column(("secondary_tag",)),
    Column(("num_main_preds",)),
)
METRICS = tuple(
    Metric(name, "fraction", headline=name == "group", decimals=2, formula=choice_shares, no_ratio=NOT_DRAWN)
    for name in ("text", "image", "group")
)


class Winoground(Compositionality):
    """The 400 questions of Winoground."""

    name = "winoground"
    metrics = (*METRICS, *plain_metrics(METRICS))
    layout = """\
DATA_ROOT/                                     a copy of facebook/winoground of the Hugging Face hub
  examples.jsonl                               also below data/
  images/ex_0_img_0.png, ...                   also below data/, or as images.zip
or its parquet export, data/test-*.parquet"""

    def gather(self, split: str) -> Questions:
        """One question per line, two pictures and two texts each; the cluster is the question's first picture."""
        gathered, names = Gathering(), []
        for source, record, pictures in self._records():
            texts = [field(record, key, str, source) for key in CAPTIONS]
            if texts[0] == texts[1]:
                raise BenchError(
                    f"{source}: caption_0 and caption_1 are the same, so that neither is right; mend this line"
                )
            name = identifier(record, "id", source)
            names.append(name)
            gathered.add(name, pictures, texts, groups_of(record, source))
        if not names:
            raise BenchError(f"{self.data_root}: examples.jsonl holds no questions; get it again")
        unique(names, str(self.data_root), "id")
        return gathered.questions()

    def _records(self) -> Iterator[tuple[str, dict[str, Any], list[tuple[str, Picture]]]]:
        """Where it stands, a record, and its two pictures, each with its id."""
        shards = [] if look_for(self.data_root, "examples.jsonl", FOLDERS) else find_shards(self.data_root, EXPORTED)
        if shards:
            for record in read_rows(shards, COLUMNS, "Winoground"):
                stems = [f"ex_{record['id']}_img_{side}" for side in (0, 1)]
                stored = [
                    record[key].named(f"{self.data_root}/images/{stem}.png")
                    for key, stem in zip(IMAGES, stems, strict=True)
                ]
                yield record["source"], record, list(zip(stems, stored, strict=True))
            return
        path = find(self.data_root, "examples.jsonl", FOLDERS, "Winoground examples")
        images = find_images(self.data_root, "images", "Winoground image folder", FOLDERS)
        for number, record in read_json_lines(path, "Winoground", FORM):
            source = f"{path}:{number}"
            stems = [field(record, key, str, source).removesuffix(".png") for key in IMAGES]
            yield source, record, [(stem, images.picture(f"{stem}.png")) for stem in stems]

    def right(self, scores: np.ndarray, questions: Questions) -> dict[str, np.ndarray]:
        """Both texts, both images, and all of them; texts that are the same word for word are told apart by nobody."""
        text, image = best_texts(scores, questions.places[1]), best_images(scores)
        return {"group": text & image, "text": text, "image": image}

    def chance(self, split: Split) -> float:
        """Of the 24 orders of four scores four are right in both ways (the paper, section 4.1)."""
        return 1 / 6


def groups_of(record: dict[str, Any], source: str) -> list[str]:
    """By what a question is counted: what is swapped, the number of main predicates, and further phenomena.

    Raises:
        BenchError: a tag that is no text, a number that is none.
    """
    groups = []
    if record.get("collapsed_tag"):
        groups.append(field(record, "collapsed_tag", str, source).strip())
    if record.get("num_main_preds") is not None:
        count = whole_number(record, "num_main_preds", source)
        groups.append(f"{count} main predicate{'s' if count != 1 else ''}")
    if record.get("secondary_tag"):
        tags = (tag.strip().replace("/", " or ") for tag in field(record, "secondary_tag", str, source).split(","))
        groups += [tag for tag in tags if tag]
    return list(dict.fromkeys(groups)) or ["no tag"]
