"""SugarCrepe: does the caption fit the picture better than a fluent and plausible one that was changed in one thing?

Protocol (Hsieh et al. 2023, arXiv 2306.14610; official `main_eval.py`, github.com/RAIVNLab/sugar-crepe): 7,511 captions of COCO val2017
in seven files, one for each way in which ChatGPT and people changed a caption; a caption is right where it scores strictly more than the
changed one. The official code prints the accuracy of each file; the authors' single number is the share over all captions
(their answer in issue 3, "micro-average"), which is the headline here. ``accuracy/add``, ``accuracy/replace`` and ``accuracy/swap`` are
the means of their files, as papers print them, and ``mean_of_kinds`` is the mean of these three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.compositionality import NOT_DRAWN, Compositionality, Gathering, Questions
from beit3_bench.tasks.contract import Split
from beit3_bench.tasks.files import field, look_for, read_json
from beit3_bench.tasks.layouts.coco import find_val2017
from beit3_bench.tasks.metrics.choices import choice_shares
from beit3_bench.tasks.reranking import plain_metrics
from beit3_bench.tasks.scores import Metric

KINDS: Mapping[str, tuple[str, ...]] = {
    "add": ("add_att", "add_obj"),
    "replace": ("replace_att", "replace_obj", "replace_rel"),
    "swap": ("swap_att", "swap_obj"),
}
"""The three ways of changing a caption, and the files of each, by what was changed: attributes, objects, relations."""
CATEGORIES = tuple(category for of_kind in KINDS.values() for category in of_kind)
FOLDERS = ("sugarcrepe", "sugar-crepe", "sugar_crepe", "sugar-crepe/data", "SugarCrepe", "data", ".")


def estimate(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All values from the column sums of `choices.choice_table`; a mean over files of which one is absent is NaN."""
    shares = choice_shares(sums)
    absent = np.full_like(np.asarray(shares["accuracy"], dtype=np.float64), np.nan)
    of_kind = {
        f"accuracy/{kind}": np.mean([shares.get(f"accuracy/{name}", absent) for name in names], axis=0)
        for kind, names in KINDS.items()
    }
    return {
        **{f"accuracy/{name}": absent for name in CATEGORIES},
        **shares,
        **of_kind,
        "mean_of_kinds": np.mean(list(of_kind.values()), axis=0),
    }


METRICS = tuple(
    Metric(
        name,
        "fraction",
        headline=name == "accuracy",
        decimals=2,
        formula=estimate,
        no_ratio=NOT_DRAWN,
    )
    for name in ("accuracy", "mean_of_kinds", *(f"accuracy/{name}" for name in (*KINDS, *CATEGORIES)))
)


class SugarCrepe(Compositionality):
    """The seven files of SugarCrepe on the pictures of COCO val2017."""

    name = "sugarcrepe"
    metrics = (*METRICS, *plain_metrics(METRICS))
    layout = """\
DATA_ROOT/                                     the folder of COCO
  sugarcrepe/{add,replace,swap}_{att,obj}.json, sugarcrepe/replace_rel.json
                                               the official files; also below sugar-crepe/data/ or data/
  val2017/*.jpg                                also below images/, as val2017.zip, or as part of val2014/"""

    @dataclass
    class Options(Compositionality.Options):
        """score: what pairs are scored by, cosine or match; default: match where the model's file has a matching head.
        categories: some of the seven files, separated by commas (swap_att,swap_obj); default: all.
        """

        categories: str | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in (self.categories or CATEGORIES[0]).split(","):
                if name.strip() not in CATEGORIES:
                    raise ValueError(f"categories has {name.strip()!r}; {did_you_mean(name.strip(), CATEGORIES)}")

    def gather(self, split: str) -> Questions:
        """One question per caption, two texts each; the cluster is the picture."""
        wanted = {name.strip() for name in (self.options.categories or ",".join(CATEGORIES)).split(",")}
        chosen = [name for name in CATEGORIES if name in wanted]
        places = {name: look_for(self.data_root, f"{name}.json", FOLDERS) for name in chosen}
        missing = [name for name, place in places.items() if place is None]
        if missing:
            files = ", ".join(f"{name}.json" for name in missing)
            some = [name for name in chosen if name not in missing]
            mend = f", or name those that are there: -o categories={','.join(some)}" if some else ""
            raise BenchError(
                f"{self.data_root / FOLDERS[0]}: {len(missing)} of {len(chosen)} files of SugarCrepe are missing ({files}); get them from "
                f"github.com/RAIVNLab/sugar-crepe (beit3-bench data get --task sugarcrepe){mend}"
            )
        images, gathered = find_val2017(self.data_root), Gathering()
        for name, place in places.items():
            assert place is not None
            for key, picture, texts in read_category(place):
                gathered.add(f"{name}/{key}", [(Path(picture).stem, images.picture(picture))], texts, (name,))
        return gathered.questions()

    def chance(self, split: Split) -> float:
        """One of two captions."""
        return 0.5


def read_category(path: Path) -> list[tuple[str, str, tuple[str, str]]]:
    """Key, file of the picture, and the caption with the changed one, of every record of an official file.

    Raises:
        BenchError: a record without one of them, or whose captions are the same; an empty file.
    """
    content: Any = read_json(path, "SugarCrepe")
    if not isinstance(content, dict) or not content:
        raise BenchError(
            f'{path}: expected an object such as {{"0": {{"filename": ..., "caption": ...}}}}; get the file again'
        )
    records = []
    for key, record in content.items():
        source = f"{path}: {key!r}"
        picture, *texts = (field(record, name, str, source) for name in ("filename", "caption", "negative_caption"))
        if texts[0] == texts[1]:
            raise BenchError(
                f"{source}: caption and negative_caption are the same, so that neither is right; mend this record"
            )
        records.append((key, picture, (texts[0], texts[1])))
    return records
