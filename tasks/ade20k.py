"""ADE20K semantic segmentation.

Protocol (BEiT-3 paper, section 3.2.3: ViT-Adapter's transfer setting; mmseg's `IoUMetric`): 150 classes on the 2,000
validation images, label 0 ignored, areas summed over all images first. One scale, or several with flips (``-o
multi_scale=true``; the metrics are then called ``mIoU_ms``, ...).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.abilities import Item, Segments
from beit3_bench.backbones.family import Outputs
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Row, ScoreInputs, Split, Task
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.files import find, read_json
from beit3_bench.tasks.image_folders import images_below, left_out_line
from beit3_bench.tasks.label_maps import (
    CLASSES,
    Numbering,
    dense_histogram,
    encode_png,
    read_label,
    read_prediction,
    size_of,
    small_map,
    sparse_histogram,
)
from beit3_bench.tasks.layouts.ade20k import FOLDERS, read_scenes
from beit3_bench.tasks.layouts.places import names_of
from beit3_bench.tasks.metrics.segmentation import (
    class_histograms,
    estimate_segmentation,
    per_class,
    segmentation_table,
)
from beit3_bench.tasks.scores import Metric, Scores

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

SUBSETS = {"val": "validation", "train": "training", "test": "testing"}
HEADLINES = ("mIoU", "mAcc", "aAcc")
MULTI_SCALE = "_ms"
"""Behind the names of means over predictions at several scales."""


@cache
def class_names() -> tuple[str, ...]:
    """The 150 classes in order, without spaces."""
    source = resources.files("beit3_bench.tasks.tinyworld").joinpath("ade150.json")
    with resources.as_file(source) as path:
        return tuple(name.replace(" ", "_") for name in read_json(path, "ADE20K class names"))


def estimate_means(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Means, and IoU and Acc of every class; NaN where a class is absent."""
    classes, names = per_class(sums), class_names()
    each = {f"{kind}/{n}": classes[kind][..., c] for kind in ("IoU", "Acc") for c, n in enumerate(names)}
    return estimate_segmentation(sums) | each


def estimate_multi_scale(sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As `estimate_means`, under the names of several scales."""
    return {name if "/" in name else f"{name}{MULTI_SCALE}": value for name, value in estimate_means(sums).items()}


def score_histograms(histograms: Sequence[np.ndarray], ids: Sequence[str], suffix: str = "") -> Scores:
    """mIoU, mAcc and aAcc (fractions), and IoU and Acc of every class that has one.

    Raises:
        BenchError: not a single pixel to evaluate.
    """
    table = segmentation_table(histograms, ids)
    sums = table.sums()
    if not sums["label"].any():
        raise BenchError("no pixel to evaluate: every label is ignored; are these the right annotations?")
    metrics = {f"{name}{suffix}": float(value) for name, value in estimate_segmentation(sums).items()}
    names, classes = class_names(), per_class(sums)
    for kind in ("IoU", "Acc"):
        known = np.flatnonzero(np.isfinite(classes[kind]))
        metrics |= {f"{kind}/{names[c]}": float(classes[kind][c]) for c in known}
    labelled = table.columns["label"].sum(axis=1)
    right = table.columns["intersect"].sum(axis=1)
    accuracies = {i: float(r / n) for i, r, n in zip(ids, right, labelled, strict=True) if n}
    counts = {"images": len(ids), "pixels": int(labelled.sum()), "classes": int((sums["label"] > 0).sum())}
    chance = commonest_class_score(sums["label"])
    return Scores(metrics, counts, table, samples={f"aAcc{suffix}": accuracies}, chance=chance)


def commonest_class_score(label_areas: np.ndarray) -> float:
    """mIoU (fraction) of predicting the commonest class everywhere; label_areas: (classes,) pixels."""
    return float(label_areas.max() / label_areas.sum() / np.count_nonzero(label_areas))


# ---- the task --------------------------------------------------------------------------------------------------------

MEAN_OF_CLASSES = "is a mean over classes, of which a part lacks the rare ones"


class ADE20K(Task):
    """ADE20K (the scene-parsing benchmark of 150 classes)."""

    name = "ade20k-seg"
    ability = Segments
    splits = ("val", "train", "test")
    default_split = "val"
    metrics: tuple[Metric, ...] = (
        Metric("mIoU", "fraction", headline=True, formula=estimate_means, no_ratio=MEAN_OF_CLASSES),
        Metric("mAcc", "fraction", formula=estimate_means),
        Metric("aAcc", "fraction", formula=estimate_means),
        Metric("mIoU_ms", "fraction"),  # of published numbers; a run with several scales has metrics of its own
    )
    uses_text = False
    outputs = "classes"
    score_files = ("annotations", "zero_based", "allow_partial")
    batch_size = 4  # the network sees one image at a time; this many, in all their scales, wait for it
    layout = """\
DATA_ROOT/                        = ADEChallengeData2016
  images/{training,validation}/ADE_*.jpg
  annotations/{training,validation}/ADE_*.png      grey: 0 = other, classes 1..150
  images/testing/ADE_test_*.jpg   only for the split test, whose predictions are written as PNG files"""

    @dataclass
    class Options:
        """config: mmseg config (FILE.py) or variant of the project's; default: what the checkpoint was trained with.
        multi_scale: several scales, plain and flipped.  mode: slide or whole; default: as trained.
        crop, stride: side of windows and step from one to the next, in pixels; default: as trained.
        save_png: write predictions as PNG files, classes 1..150.  zero_based: PNG files of predictions count from 0.
        """

        config: str | None = None
        multi_scale: bool = False
        mode: str | None = None
        crop: int | None = None
        stride: int | None = None
        save_png: bool = False
        zero_based: bool = False

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        super().__init__(data_root, options)
        if self.options.multi_scale:
            self.metrics = tuple(
                Metric(
                    f"{name}{MULTI_SCALE}",
                    "fraction",
                    headline=name == "mIoU",
                    formula=estimate_multi_scale,
                    no_ratio=MEAN_OF_CLASSES,
                )
                for name in HEADLINES
            )

    # ---- data --------------------------------------------------------------------------------------------------------

    def root(self) -> Path:
        """The folder that holds ``images`` and ``annotations``."""
        return find(self.data_root, "images", FOLDERS, "ADE20K image folder").parent

    def read(self, split: str) -> Split:
        """One example per image; the target is the annotation file as the original layout calls it (``truth_files`` says where it is),
        None on the test split. The labels are the 150 classes.
        """
        scenes = read_scenes(self.data_root, SUBSETS[split])
        labels = scenes.labels or {}
        examples = tuple(
            Example(
                stem,
                (picture.path,),
                cluster=stem,
                target=labels[stem].name if stem in labels else None,
                kind="image",
                truth_files=(labels[stem].path,) if stem in labels else (),
                names=names_of(picture),
            )
            for stem, picture in scenes.images.items()
        )
        return Split(split, examples, class_names(), self.data_root, left_out=scenes.left_out)

    def check_outputs(self, split: Split, outputs: Outputs) -> list[str]:
        """As of every task; a config of another number of classes is refused in the words of mmsegmentation."""
        if outputs.count not in (None, CLASSES):
            raise BenchError(
                f"{outputs.checkpoint}: its config has {outputs.count} classes, ADE20K has {CLASSES}; give another config"
            )
        return super().check_outputs(split, outputs)

    def size_problem(self, example: Example) -> str | None:
        """The label map must have the size of the image as mmseg reads it: upright, but for WebP, which OpenCV leaves as it is."""
        if example.target is None:
            return None
        from beit3_bench.backbones.images import opened
        from beit3_bench.backbones.preprocess import upright_size

        with opened(example.images[0]) as image:
            width, height = image.size if image.format == "WEBP" else upright_size(example.images[0])
        with opened(example.truth_files[0], what="annotation") as label:
            size = label.size
        if size == (width, height):
            return None
        return f"{example.truth_files[0]}: annotation is {size[0]}x{size[1]}, its image {width}x{height}"

    # ---- asking ------------------------------------------------------------------------------------------------------

    def read_ahead(self, example: Example) -> np.ndarray | None:
        """The label map in the model's numbering, uint8 or wider (H, W), checked; None on the test split."""
        return None if example.target is None else read_label(example.truth_files[0])

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """Per image its areas (int64, classes that are there only) and a small map of the prediction; with ``save_png``, the whole
        prediction as a PNG, too.

        Raises:
            BenchError: a label map that is not of its image's size.
        """
        rows = []
        for example, classes, label in zip(examples, values, ahead, strict=True):
            row: Row = {"id": example.id, "preview": small_map(classes)}
            if label is not None:
                if label.shape != classes.shape:
                    raise BenchError(
                        f"{example.truth_files[0]}: annotation is {size_of(label)}, its image {size_of(classes)}; get both again"
                    )
                row |= sparse_histogram(class_histograms(classes, label, CLASSES))
            if self.options.save_png or label is None:
                row["png"] = encode_png(classes, self.options.zero_based)
            rows.append(row)
        return rows

    def training_item(self, example: Example) -> Item:
        return dataclasses.replace(self.item(example), target=example.truth_files[0] if example.truth_files else None)

    def labels_without_data(self) -> tuple[str, ...]:
        return tuple(class_names())

    def words(self, label: str) -> str:
        return label.replace("_", " ")

    # ---- scores ------------------------------------------------------------------------------------------------------

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """mIoU, mAcc, aAcc, and IoU and Acc of every class; chance is the commonest class everywhere."""
        histograms = [dense_histogram(rows[e.id]) for e in split.examples]
        suffix = MULTI_SCALE if self.options.multi_scale else ""
        return score_histograms(histograms, [e.id for e in split.examples], suffix)

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.label_maps import SegmentationDisplay

        return SegmentationDisplay(self, split, rows, scores)

    def submission(self, rows: Mapping[str, Row], split: Split, folder: Path) -> list[Path]:
        """One grey PNG per image, classes 1..150 (the official form) or, if asked for, 0..149."""
        written = []
        for example in split.examples:
            if "png" in rows[example.id]:
                path = folder / f"{example.id}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(np.asarray(rows[example.id]["png"], dtype=np.uint8).tobytes())
                written.append(path)
        return written

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        """A folder of predicted PNG files against a folder of ADE20K annotations, matched by name."""
        if inputs.annotations is None:
            raise BenchError("scoring ade20k-seg needs --annotations FOLDER_OF_PNG (annotations/validation)")
        predicted, labels = _png_files(inputs.predictions, "predictions"), _png_files(inputs.annotations, "annotations")
        coverage = match_ids(list(predicted), list(labels), str(inputs.predictions), "images", inputs.allow_partial)
        ids = [i for i in labels if i in predicted]

        def compared(i: str) -> tuple[np.ndarray, Numbering]:
            label = read_label(labels[i])
            classes = read_prediction(predicted[i], label, inputs.zero_based)
            return class_histograms(classes, label, CLASSES), Numbering.of(classes, label, inputs.zero_based)

        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            parts = list(pool.map(compared, ids))
        first_zero = next((predicted[i] for i, (_, read) in zip(ids, parts, strict=True) if read.zeros), None)
        histograms = [histogram for histogram, _ in parts]
        numbering = sum((read for _, read in parts), start=Numbering())
        chance = numbering.chance(np.sum(histograms, axis=0), inputs.zero_based)
        notes = numbering.notes(inputs.predictions, first_zero, inputs.zero_based, chance)
        scores = score_histograms(histograms, ids)
        scores.notes += notes
        if coverage < 1:
            scores.notes.append(f"partial: {len(ids)} of {len(labels)} images ({coverage:.1%})")
        return scores


def _png_files(folder: Path, what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise BenchError(f"{folder}: {what} are expected as a folder of PNG files; there is no such folder")
    files = images_below(folder, (".png",))
    if not files.names:
        why = left_out_line(folder, files.left_out)
        raise BenchError(f"{folder}: holds no PNG files; give the folder of {what}{f' ({why})' if why else ''}")
    return {stem: folder / name for stem, name in files.by_stem(folder).items()}
