"""Splits of a data set as their reader gives them: counts, ids, references, and what splits share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.findings import SplitReport, Verification, first_of
from beit3_bench.harness.record.released import counts_of, ids_of
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.facts import Counts, KarpathyFile, ReleasedData


def check_split(report: Verification, split: str, examples: Sequence[Example], released: ReleasedData) -> SplitReport:
    """Counts, ids and references of a split against the released ones; nothing is compared in a tiny world."""
    references = reference_counts(examples) if released.references_per_sample else {}
    of_split = SplitReport(
        split,
        there=True,
        samples=len(examples),
        images=len({path for e in examples for path in e.images}),
        texts=sum(e.text is not None for e in examples),
        references=sum(references.values()) if references else None,
    )
    if report.world != "real":
        return of_split
    wanted, counts = released.splits.get(split, Counts()).stated(), counts_of(examples).stated()
    for name, number in wanted.items():
        if counts.get(name, 0) != number:
            line = f"{report.data_root}: split {split} has {counts.get(name, 0):,} {name}, the released data {number:,}"
            report.add("counts", split, f"{line}; complete the download, or name the subset when you report numbers")
    other_ids = split in released.ids and ids_of(examples, released) not in released.ids[split]
    if other_ids and all(counts.get(name, 0) == number for name, number in wanted.items()):
        line = f"{report.data_root}: split {split} has other ids than the released data"
        report.add("ids", split, f"{line}; get the released files, or name the data when you report numbers")
    if released.references_per_sample and references:
        low, high = released.references_per_sample
        odd = [name for name, count in references.items() if not low <= count <= high]
        if odd:
            range_ = f"{low}" if low == high else f"{low} to {high}"
            line = f"{report.data_root}: {len(odd)} samples of split {split} have other than {range_} references"
            report.add("captions", split, f"{line} ({first_of(odd)}); get the annotation file again")
    return of_split


def reference_counts(examples: Sequence[Example]) -> dict[str, int]:
    """Captions per image, or answers per question, by sample; nothing where samples have no such references."""
    counts: dict[str, int] = {}
    for example in examples:
        target = example.target
        if example.kind == "text" and isinstance(target, str):
            counts[target] = counts.get(target, 0) + 1
        elif isinstance(target, list):
            counts[example.id] = len(target)
        elif isinstance(target, dict) and isinstance(target.get("answers"), list):
            counts[example.id] = len(target["answers"])
    return counts


def check_karpathy_file(report: Verification, released: KarpathyFile, evaluated: Sequence[str]) -> None:
    """The whole split file: known splits, the released counts, no image file twice, captions for every image.

    evaluated: splits whose images `check_split` sees; of the others, missing images are a note.
    """
    from beit3_bench.backbones.archives.members import exists
    from beit3_bench.tasks.karpathy import SPLITS
    from beit3_bench.tasks.layouts.captions import read_captions

    try:
        data = read_captions(Path(report.data_root), released.file, released.image_folder or None)
    except BenchError as error:
        report.add("reader", "", str(error))
        return
    images, path = data.images, data.source
    strange = sorted({image.split for image in images} - set(SPLITS))
    if strange:
        report.add("splits", "", f"{path}: has splits of other names ({first_of(strange)}); get the released file")
    twice = [file for file, count in Counter(image.path for image in images).items() if count > 1]
    if twice:
        line = f"{path}: {len(twice)} image files are listed under several ids ({first_of(twice)})"
        report.add("splits", "", f"{line}; get the released file")
    silent = [image.id for image in images if not image.sentences]
    if silent:
        line = f"{path}: {len(silent)} images have no sentences ({first_of(silent)}); get the released file"
        report.add("captions", "", line)
    for split, wanted in released.training_images.items() if report.world == "real" else ():
        number = sum(image.split == split for image in images)
        if number != wanted:
            line = f"{path}: split {split} has {number:,} images, the released file {wanted:,}; get the released file"
            report.add("counts", split, line)
    rest = [image for image in images if image.split not in evaluated]
    absent = sum(not exists(data.picture(image.path).path) for image in rest)
    if absent:
        report.notes.append(f"{absent:,} of {len(rest):,} training images are not there; only fine-tuning needs them")


def check_overlap(report: Verification, read: Mapping[str, Sequence[Example]], released: ReleasedData) -> None:
    """Splits share neither samples nor images, but for those that are a part of another one."""
    contents = {"images": {split: {x for e in examples for x in e.image_names} for split, examples in read.items()}}
    if released.unique_ids:
        contents = {"ids": {split: {e.id for e in examples} for split, examples in read.items()}, **contents}
    within = released.within
    for a, b in combinations(read, 2):
        if a in within and within.get(a) == within.get(b):
            continue  # two parts of one split may overlap
        inner = next(((x, y) for x, y in ((a, b), (b, a)) if within.get(x) == y), None)
        for what, of_split in contents.items():
            if inner is not None:
                words = f"of split {inner[0]} are not in {inner[1]}"
                odd, mend = of_split[inner[0]] - of_split[inner[1]], "get both files of one release"
            else:
                words = f"are in split {a} and in {b}"
                odd, mend = of_split[a] & of_split[b], f"numbers on {a} are not of unseen data, get the released files"
            if odd:
                line = f"{report.data_root}: {len(odd)} {what} {words} ({first_of(sorted(odd))}); {mend}"
                report.add("splits", inner[0] if inner else a, line)
