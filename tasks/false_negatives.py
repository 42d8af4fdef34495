"""Right answers that COCO's captions do not know: ECCV Caption and CxC, on the retrieval of Karpathy's test split.

In COCO a caption is right for the one image that it was written for, though it may describe others as well. Crisscrossed Captions (CxC,
Parekh et al. 2021) and ECCV Caption (Chun et al. 2022) had people judge further pairs. Their annotations, as the package `eccv-caption`
has them, are six json files: ``original_``, ``cxc_`` and ``eccv_`` before ``image_to_caption.json`` and ``caption_to_image.json``, each a
query's id -> ids of its right answers. Ids are COCO's, of images and of annotations (Karpathy's ``cocoid`` and ``sentid``).

Protocol (`eccv_caption.Metrics` and its example): the gallery is the 5,000 images with the first five captions of each, 25,000 of the
25,010 of Karpathy's split; ECCV Caption asks with 1,332 captions and 1,261 images of them, CxC with 24,972 captions and all images. A right
answer beyond the gallery (two captions of ECCV Caption) counts in R and cannot be found. Recall of a part of the gallery is another
number and is not given.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from beit3_bench.backbones.pins import sha256_of
from beit3_bench.errors import BenchError
from beit3_bench.tasks.files import read_json
from beit3_bench.tasks.metrics.precision_at_r import Positives, precision_at_r, recalls_at
from beit3_bench.tasks.metrics.recall import CUTS, RetrievalRanks
from beit3_bench.tasks.scores import Metric

PACKAGE = "eccv_caption"
FILES = MappingProxyType({"TR": "image_to_caption", "IR": "caption_to_image"})
"""Direction -> how its files are called, behind the name of the annotations."""
GALLERY = "original"
MEASURES = MappingProxyType(
    {"eccv": ("-mAP@R", "-R-Precision", "@1"), "cxc": tuple(f"@{k}" for k in CUTS)},
)
"""Annotations -> their measures, behind the direction."""
TITLES = MappingProxyType({"eccv": "ECCV Caption", "cxc": "CxC"})
WHAT, FORM = "false negatives", 'a JSON object of ids, {"391895": [770337, 771687]}'
Answers = Mapping[str, tuple[str, ...]]
"""A query's id -> ids of its right answers, one or more."""


@dataclass(frozen=True)
class Annotations:
    """What people judged.

    source: the folder.  gallery: an image's captions, of all images.  answers: by annotations and direction, ``("eccv", "TR")``.
    """

    source: Path
    gallery: Answers
    answers: Mapping[tuple[str, str], Answers]

    def right_for(self, direction: str, query: str) -> dict[str, list[str]]:
        """Id of a right answer -> titles of the annotations that say so."""
        found: dict[str, list[str]] = {}
        for name, title in TITLES.items():
            for answer in self.answers[name, direction].get(query, ()):
                found.setdefault(answer, []).append(title)
        return found


def find_annotations() -> Path | None:
    """The folder of the installed package's annotations, which is not imported; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(places[0]) / "data" if places else None


def read_annotations(folder: Path) -> Annotations:
    """The annotations of a folder.

    Raises:
        BenchError: a file is missing or not of the form, or asks with what is not in the gallery.
    """
    if not folder.is_dir():
        raise BenchError(
            f"{folder}: is no folder; give the folder of the annotations, eccv_caption/data of eccv-caption"
        )
    gallery = _read(folder / f"{GALLERY}_{FILES['TR']}.json")
    known = {"TR": gallery.keys(), "IR": {text for texts in gallery.values() for text in texts}}
    answers = {}
    for name in MEASURES:
        for direction in FILES:
            path = folder / f"{name}_{FILES[direction]}.json"
            answers[name, direction] = _read(path)
            strange = next((query for query in answers[name, direction] if query not in known[direction]), None)
            if strange is not None:
                raise BenchError(
                    f"{path}: asks with {strange}, which is not in the gallery of {GALLERY}_{FILES['TR']}.json; take all files from "
                    "one release"
                )
    return Annotations(folder, gallery, answers)


def contents_of(folder: Path) -> str:
    """What tells annotations apart: ``sha256:`` and hex digits, over the files that `read_annotations` reads.

    Raises:
        BenchError: one cannot be read.
    """
    names = [f"{GALLERY}_{FILES['TR']}", *(f"{name}_{file}" for name in MEASURES for file in FILES.values())]
    digests = " ".join(sha256_of(folder / f"{name}.json") for name in names)
    return f"sha256:{hashlib.sha256(digests.encode()).hexdigest()}"


def _read(path: Path) -> Answers:
    content = read_json(path, WHAT, FORM)
    if not isinstance(content, dict) or not content:
        raise BenchError(f"{path}: expected {FORM}")
    answers = {}
    for query, items in content.items():
        if not isinstance(items, list) or not items or not all(type(item) in (int, str) for item in items):
            raise BenchError(f"{path}: {query}: is not a list of ids with one or more; expected {FORM}")
        answers[query] = tuple(dict.fromkeys(map(str, items)))
    return answers


def misfit(annotations: Annotations, images: Sequence[str], texts: Sequence[str]) -> str:
    """How samples are not those that were judged, in a line; "" where they are.

    Args:
        images, texts: ids of all that is retrieved.
    """
    judged = {text for several in annotations.gallery.values() for text in several}
    missing = {
        "images": (len(annotations.gallery.keys() - set(images)), len(annotations.gallery)),
        "captions": (len(judged - set(texts)), len(judged)),
    }
    parts = [
        f"{count:,} of {total:,} annotated {what} are not there" for what, (count, total) in missing.items() if count
    ]
    if strange := len(set(images) - annotations.gallery.keys()):
        parts.append(f"{strange:,} of {len(images):,} images are not annotated")
    return ", ".join(parts)


@dataclass(frozen=True)
class Judged:
    """Annotations, by places among the samples.

    texts: bool (n_texts,), which are in the gallery.  positives: as `Annotations.answers`.
    """

    texts: np.ndarray
    positives: Mapping[tuple[str, str], Positives]

    @classmethod
    def of(cls, annotations: Annotations, images: Sequence[str], texts: Sequence[str]) -> Judged:
        """images, texts: ids of all that is retrieved; `misfit` finds nothing."""
        judged = {text for several in annotations.gallery.values() for text in several}
        image_places = {name: place for place, name in enumerate(images)}
        text_places = {name: place for place, name in enumerate(texts) if name in judged}
        sides = {"TR": (image_places, text_places), "IR": (text_places, image_places)}
        positives = {key: Positives.of(answers, *sides[key[1]]) for key, answers in annotations.answers.items()}
        return cls(np.array([name in judged for name in texts], dtype=bool), positives)

    @property
    def depth(self) -> int:
        """How long ranked lists must be: the longest R, or the greatest K."""
        return max(*CUTS, *(int(one.counts.max()) for one in self.positives.values()))

    @property
    def first(self) -> int:
        """How many each query has to name of all that is retrieved, so that as many are in the gallery."""
        return self.depth + int(np.count_nonzero(~self.texts))

    def columns(self, ranks: RetrievalRanks) -> dict[str, np.ndarray]:
        """Sums per image for `estimate`, float64 (n_images,) each: a measure's under its name, and the number of queries as ``eccv/TR``.

        Args:
            ranks: with the ``first`` of each query.
        """
        images = len(ranks.text_ranks)
        listed = ranks.first_texts
        gallery_first = np.argsort(~self.texts[listed], axis=1, kind="stable")
        lists = {"TR": np.take_along_axis(listed, gallery_first, axis=1)[:, : self.depth], "IR": ranks.first_images}
        columns: dict[str, np.ndarray] = {}
        for (name, direction), positives in self.positives.items():
            cluster = positives.query if direction == "TR" else ranks.text_image_index[positives.query]
            hits = positives.hits(lists[direction])
            values = dict(zip(("-mAP@R", "-R-Precision"), precision_at_r(hits, positives.counts), strict=True))
            values |= {f"@{k}": hit for k, hit in zip(CUTS, recalls_at(hits, CUTS).T, strict=True)}
            columns[f"{name}/{direction}"] = np.bincount(cluster, minlength=images).astype(np.float64)
            for measure in MEASURES[name]:
                columns[f"{name}/{direction}{measure}"] = np.bincount(cluster, values[measure], images)
        return columns


NAMES = MappingProxyType(
    {
        f"{name}/{direction}{measure}": f"{name}/{direction}"
        for name, measures in MEASURES.items()
        for direction in FILES
        for measure in measures
    }
)
"""Names of the metrics, as of the columns -> the column that counts their queries."""


def estimate(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Percent from the column sums of `Judged.columns`, as far as they are there; arrays may carry leading axes of resamples."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hold no query
        return {name: 100 * np.asarray(sums[name] / sums[count]) for name, count in NAMES.items() if name in sums}


METRICS = tuple(Metric(name, formula=estimate) for name in NAMES)
