"""ARO: does a model know who does what (VG-Relation), what is how (VG-Attribution), and in which order words stand (the two Orders)?

Protocol (Yuksekgonul et al. 2023, arXiv 2210.01936; `dataset_zoo/aro_datasets.py` and `notebooks/` of
github.com/mertyg/vision-language-models-are-bows): the rectangle of a picture that its record names, an own and a false caption; or a
picture, its caption and four shuffled ones. Right is what scores highest: strictly, as the official `argmax` gives equal scores to the
false caption, which comes first there. A shuffled caption that came out as the own one is no other caption (there the own one comes first).

``accuracy`` is the official number of each split: VG-Relation's is the mean over relations without the symmetric ones, which the official
notebook lists (`aro_symmetric.json`), VG-Attribution's that over pairs of attributes with at least 25 questions, that of the orders the
share of captions. ``micro`` is the share of all questions.

The official code shuffles anew whenever it runs, with spaCy's and NLTK's words of the day; questions of the orders are therefore read
from files that hold its `test_cases` as they came out (see docs/protocols.md for the line that writes them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from beit3_bench.backbones.archives.crops import Box, cropped
from beit3_bench.errors import BenchError
from beit3_bench.tasks.compositionality import NOT_DRAWN, Compositionality, Gathering, Questions
from beit3_bench.tasks.contract import Row, Split
from beit3_bench.tasks.files import field, find, read_json, whole_number
from beit3_bench.tasks.layouts.captions import ALSO, FLICKR_FOLDER
from beit3_bench.tasks.layouts.coco import CaptionImages
from beit3_bench.tasks.layouts.places import Picture, find_images
from beit3_bench.tasks.metrics.choices import choice_shares
from beit3_bench.tasks.reranking import plain_metrics
from beit3_bench.tasks.scores import Metric, Scores

RELATION, ATTRIBUTION = "vg-relation", "vg-attribution"
GENOME = {RELATION: "visual_genome_relation.json", ATTRIBUTION: "visual_genome_attribution.json"}
ORDERS = {"coco-order": "coco_order_test.json", "flickr30k-order": "flickr30k_order_test.json"}
PICTURES_OF = {"coco-order": "coco", "flickr30k-order": "flickr30k"}
"""The folder beside the data root, or below it, that the pictures of a split are looked for in."""
FOLDERS = (".", "aro", "ARO")
OPTIONS_OF_A_CAPTION = 5
LEAST = 25
"""Questions that a pair of attributes needs to count (official `VG_Attribution.evaluate_scores`)."""


def estimate(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``accuracy``, the mean over groups where there are any; then ``micro``, the share of all questions, and the groups."""
    shares = choice_shares(sums)
    groups = {name: value for name, value in shares.items() if name != "accuracy"}
    if not groups:
        return shares
    values = np.stack(list(groups.values()))
    known = ~np.isnan(values)  # a resample may lack a group
    with np.errstate(invalid="ignore"):
        mean = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
    return {"accuracy": mean, "micro": shares["accuracy"], **groups}


METRICS = tuple(
    Metric(name, "fraction", headline=name == "accuracy", decimals=1, formula=estimate, no_ratio=NOT_DRAWN)
    for name in ("accuracy", "micro")
)


@cache
def symmetric_relations() -> frozenset[str]:
    """Relations that hold both ways or whose turned caption is no false one, as the official notebook lists them."""
    return frozenset(read_json(Path(__file__).with_name("aro_symmetric.json"), "symmetric relations"))


class ARO(Compositionality):
    """The four data sets of ARO, as splits."""

    name = "aro"
    splits: ClassVar[tuple[str, ...]] = (*GENOME, *ORDERS)
    default_split = RELATION
    metrics = (*METRICS, *plain_metrics(METRICS))
    layout = """\
DATA_ROOT/
  visual_genome_relation.json, visual_genome_attribution.json
  images/*.jpg                                 vgr_vga_images.zip, unpacked or as it is
  coco_order_test.json, flickr30k_order_test.json
                                               `test_cases` of the official classes; their pictures are looked for in DATA_ROOT,
                                               DATA_ROOT/coco or flickr30k, and coco or flickr30k beside DATA_ROOT"""

    def gather(self, split: str) -> Questions:
        """One question per record, two texts of a rectangle, or five of a picture; the cluster is the picture."""
        questions = self._genome(split) if split in GENOME else self._order(split)
        if not questions.cases:
            raise BenchError(f"{self.data_root}: {(GENOME | ORDERS)[split]} holds no questions; get it again")
        return questions

    def _genome(self, split: str) -> Questions:
        path = find(self.data_root, GENOME[split], FOLDERS, f"ARO {split}")
        images = find_images(self.data_root, "images", "ARO image folder", FOLDERS, archives=("vgr_vga_images.zip",))
        records = list(_records(path))
        group = _relation if split == RELATION else _attributes
        groups = [group(record, source) for source, record in records]
        counts = Counter(groups)
        counted = {
            name
            for name in counts
            if (name not in symmetric_relations() if split == RELATION else counts[name] >= LEAST)
        }
        gathered = Gathering()
        for number, ((source, record), name) in enumerate(zip(records, groups, strict=True)):
            texts = [field(record, key, str, source) for key in ("true_caption", "false_caption")]
            if texts[0] == texts[1]:
                raise BenchError(f"{source}: true_caption and false_caption are the same; mend this record")
            file, box = field(record, "image_path", str, source), _box(record, source)
            whole = images.picture(file)
            part = Picture(cropped(whole.path, box), cropped(whole.name, box))
            identity = f"{file}@{','.join(map(str, box))}"
            gathered.add(str(number), [(identity, part)], texts, (name,) if name in counted else (), cluster=file)
        return gathered.questions()

    def _order(self, split: str) -> Questions:
        path = find(self.data_root, ORDERS[split], FOLDERS, f"ARO {split}")
        lying = CaptionImages(self._pictures(PICTURES_OF[split]), ALSO)
        gathered = Gathering()
        for number, (source, record) in enumerate(_records(path)):
            texts = field(record, "caption_options", list, source)
            if len(texts) != OPTIONS_OF_A_CAPTION or not all(isinstance(text, str) for text in texts):
                raise BenchError(
                    f"{source}: caption_options should be a caption and four shuffled ones; get the file again"
                )
            file = field(record, "image", str, source)
            gathered.add(str(number), [(file, lying.picture(file))], texts, ())
        return gathered.questions()

    def _pictures(self, folder: str) -> Path:
        """Where the pictures of a caption data set lie."""
        holds = ("val2014", "val2014.zip", "val2017", FLICKR_FOLDER, f"{FLICKR_FOLDER}.zip")
        for root in (self.data_root, self.data_root / folder, self.data_root.parent / folder):
            if any((root / name).exists() for name in holds):
                return root
        return self.data_root

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Values per question are those of ``micro`` where the accuracy is a mean over groups."""
        scores = super().score(rows, split)
        if split.name in GENOME:
            scores.samples = {"micro": scores.samples["accuracy"]}
        return scores

    def notes(self, questions: Questions) -> list[str]:
        left = sum(not case.groups for case in questions.cases)
        if len(questions.cases[0].texts) == OPTIONS_OF_A_CAPTION:
            same = sum(len(set(case.texts)) == 1 for case in questions.cases)
            return [f"{same:,} captions came out of every shuffle as they were, and are right"] if same else []
        return (
            [f"{left:,} of {len(questions.cases):,} questions are of groups that do not count in accuracy"]
            if left
            else []
        )

    def chance(self, split: Split) -> float:
        """One of two captions, or of five."""
        return 1 / len(split.truth.cases[0].texts)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each stands, and the records of a list."""
    content = read_json(path, "ARO")
    if not isinstance(content, list):
        raise BenchError(f"{path}: expected a list of records, found {type(content).__name__}; get the file again")
    for number, record in enumerate(content):
        yield f"{path}: [{number}]", record


def _relation(record: Any, source: str) -> str:
    return field(record, "relation_name", str, source).replace("/", " or ")


def _attributes(record: Any, source: str) -> str:
    """The pair, joined as in the official code."""
    pair = field(record, "attributes", list, source)
    if len(pair) != 2 or not all(isinstance(name, str) for name in pair):
        raise BenchError(f"{source}: 'attributes' should be two names, found {str(pair)[:40]}; mend this record")
    return "_".join(pair).replace("/", " or ")


def _box(record: Any, source: str) -> Box:
    box = Box(*(whole_number(record, f"bbox_{name}", source) for name in "xywh"))
    if box.x < 0 or box.y < 0 or box.width < 1 or box.height < 1:
        raise BenchError(
            f"{source}: bbox {tuple(box)} is no rectangle of a picture (x, y, width, height); mend this record"
        )
    return box
