"""Whether a data set is whole: files, checksums, counts, split integrity, captions per image, images that decode.

Data is read by the task's own readers, so what passes here is what `beit3-bench run` will see; what the released data
must hold is in `tasks.expected`. A finding is one line: what is wrong, and the mend.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.harness.reading import choose_split
from beit3_bench.harness.record.provenance import cores
from beit3_bench.harness.record.released import counts_of, ids_of
from beit3_bench.harness.record.worlds import world_of
from beit3_bench.tasks.contract import Example, Task
from beit3_bench.tasks.expected import Counts, Expected, Need, git_blobs, read_expected
from beit3_bench.tasks.files import check_images

SAMPLE = 200
Progress = Callable[[int, int], None]
"""Called with the number of images decoded so far, and of all that are to be."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    check: files, checksum, reader, notes, counts, images, decode, annotations (sizes that they say), captions, ids or splits.
    split: "" where it is not of one.
    line: file: what is wrong; the mend.
    """

    check: str
    split: str
    line: str


@dataclass
class FileReport:
    """checksum: official, pinned (seen here before and unchanged), new (pinned now), tiny world, or changed."""

    path: str
    sha256: str
    checksum: str


@dataclass
class SplitReport:
    """What was read of a split; ``there`` is False where its files are not and nobody asked for it."""

    name: str
    there: bool
    samples: int = 0
    images: int = 0
    texts: int = 0
    references: int | None = None
    decoded: int = 0


@dataclass
class Verification:
    """What `verify` finds; the data is whole where ``findings`` is empty."""

    task: str
    data_root: str
    world: str
    files: list[FileReport] = field(default_factory=list)
    splits: list[SplitReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        return {"whole": self.whole, **asdict(self)}


def verify(
    task_class: type[Task],
    data_root: str | Path,
    split: str | None = None,
    all_images: bool = False,
    sample: int = SAMPLE,
    progress: Progress | None = None,
) -> Verification:
    """Check a data set.

    Args:
        split: one split; None = the default split, and every other whose files are there.
        all_images: decode every image, not ``sample`` of each split (drawn with a fixed seed).

    Raises:
        BenchError: no such split or folder; everything else is a finding.
    """
    data_root = Path(data_root)
    if not data_root.is_dir():
        raise BenchError(f"{data_root}: folder not found; check --data-root (see: beit3-bench tasks {task_class.name})")
    expected = read_expected(task_class.name)
    found = Verification(task_class.name, str(data_root), world_of(data_root))
    asked = choose_split(task_class, split)
    names = [asked] if split is not None else [asked, *(s for s in task_class.splits if s != asked)]
    present = {name: _files(found, expected.needs, name, name == asked) for name in names}
    read: dict[str, list[Example]] = {}
    for name in names:
        if not present[name] and name != asked:
            found.splits.append(SplitReport(name, there=False))
            continue
        examples = _read(found, task_class, name)
        if examples is not None:
            read[name] = examples
    for name, examples in read.items():
        found.splits.append(_counted(found, name, examples, expected))
    if expected.karpathy:
        _karpathy(found, task_class, data_root / expected.karpathy, expected)
    _disjoint(found, read, expected)
    _decode(found, read, None if all_images else sample, progress)
    _sizes(found, task_class(data_root), read, None if all_images else sample)
    order = {name: n for n, name in enumerate(task_class.splits)}
    found.splits.sort(key=lambda report: order[report.name])
    return found


def _add(found: Verification, check: str, split: str, line: str) -> None:
    finding = Finding(check, split, line)
    if line not in [f.line for f in found.findings]:
        found.findings.append(finding)


# ---- files and checksums ------------------------------------------------------------------------------------------------


def _files(found: Verification, needs: Sequence[Need], split: str, wanted: bool) -> bool:
    """Whether all files of a split are there; a missing one is a finding where the split is wanted."""
    root, there = Path(found.data_root), True
    for need in needs:
        if split not in need.splits:
            continue
        place = need.find(root)
        if place is None:
            there = False
            if wanted:
                line = f"{root / need.folders[0] / need.path}: not found; download it (see: beit3-bench tasks {found.task})"
                _add(found, "files", split, line)
        elif place.is_file() and str(place) not in [file.path for file in found.files]:
            _checksum(found, place, need, split)
    return there


def _checksum(found: Verification, path: Path, need: Need, split: str) -> None:
    from beit3_bench.backbones.pins import sha256_of

    try:
        digest = sha256_of(path)
    except BenchError as error:
        _add(found, "files", split, str(error))
        return
    how = "tiny world"
    if found.world == "real":
        try:
            how = _official(path, need.git_blob) if need.git_blob else _pinned(path, digest)
        except BenchError as error:
            how = "changed"
            _add(found, "checksum", split, str(error))
    found.files.append(FileReport(str(path), digest, how))


def _official(path: Path, git_object: str) -> str:
    names = git_blobs(path)
    if git_object not in names:
        raise BenchError(
            f"{path}: differs from the official file (git object {names[0][:12]}... instead of {git_object[:12]}...); "
            "download it again"
        )
    return "official"


def _pinned(path: Path, digest: str) -> str:
    from beit3_bench.backbones.pins import pin_or_check, read_pins

    name = f"data:{path.resolve()}"
    how = "pinned" if name in read_pins() else "new"
    pin_or_check(path, name, digest)
    return how


# ---- what the readers say -----------------------------------------------------------------------------------------------


def _read(found: Verification, task_class: type[Task], split: str) -> list[Example] | None:
    """The examples of a split; None, and a finding, where the task's reader refuses it."""
    try:
        task = task_class(found.data_root)
        whole = task.read(split)
        examples = whole.examples
    except BenchError as error:
        _add(found, "reader", split, str(error))
        return None
    if whole.left_out is not None:
        found.notes.append(whole.left_out)
    if not examples:
        _add(found, "counts", split, f"{found.data_root}: split {split} is empty; check the files")
        return None
    for line in whole.notes:
        _add(found, "notes", split, line)
    twice = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if twice:
        line = (
            f"{found.data_root}: {len(twice)} ids of split {split} come twice ({_first(twice)}); remove the duplicates"
        )
        _add(found, "ids", split, line)
    try:
        check_images((path for e in examples for path in _images(e)), Path(found.data_root))
    except BenchError as error:
        _add(found, "images", split, str(error))
    return list(examples)


def _counted(
    found: Verification,
    split: str,
    examples: Sequence[Example],
    expected: Expected,
) -> SplitReport:
    per_sample = expected.references_per_sample
    references = reference_counts(examples) if per_sample else {}
    report = SplitReport(
        split,
        there=True,
        samples=len(examples),
        images=len({path for e in examples for path in e.images}),
        texts=sum(e.text is not None for e in examples),
        references=sum(references.values()) if references else None,
    )
    if found.world != "real":
        return report
    wanted, counts = expected.splits.get(split, Counts()).stated(), counts_of(examples).stated()
    for name, number in wanted.items():
        if counts.get(name, 0) != number:
            line = f"{found.data_root}: split {split} has {counts.get(name, 0):,} {name}, the released data {number:,}"
            _add(found, "counts", split, f"{line}; complete the download, or name the subset when you report numbers")
    other_ids = split in expected.ids and ids_of(examples, expected) not in expected.ids[split]
    if other_ids and all(counts.get(name, 0) == number for name, number in wanted.items()):
        line = f"{found.data_root}: split {split} has other ids than the released data"
        _add(found, "ids", split, f"{line}; get the released files, or name the data when you report numbers")
    if per_sample and references:
        low, high = per_sample
        odd = [name for name, count in references.items() if not low <= count <= high]
        if odd:
            range_ = f"{low}" if low == high else f"{low} to {high}"
            line = f"{found.data_root}: {len(odd)} samples of split {split} have other than {range_} references"
            _add(found, "captions", split, f"{line} ({_first(odd)}); get the annotation file again")
    return report


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


def _karpathy(found: Verification, task_class: type[Task], path: Path, expected: Expected) -> None:
    """The whole split file: known splits, the released counts, no image file twice, captions for every image."""
    from beit3_bench.tasks.karpathy import SPLITS, read_karpathy

    try:
        images = read_karpathy(path, getattr(task_class, "image_folder", None))
    except BenchError as error:
        _add(found, "reader", "", str(error))
        return
    strange = sorted({image.split for image in images} - set(SPLITS))
    if strange:
        _add(found, "splits", "", f"{path}: has splits of other names ({_first(strange)}); get the released file")
    twice = [file for file, count in Counter(image.path for image in images).items() if count > 1]
    if twice:
        line = f"{path}: {len(twice)} image files are listed under several ids ({_first(twice)}); get the released file"
        _add(found, "splits", "", line)
    silent = [image.id for image in images if not image.sentences]
    if silent:
        _add(
            found,
            "captions",
            "",
            f"{path}: {len(silent)} images have no sentences ({_first(silent)}); get the released file",
        )
    for split, wanted in expected.training_images.items() if found.world == "real" else ():
        number = sum(image.split == split for image in images)
        if number != wanted:
            line = f"{path}: split {split} has {number:,} images, the released file {wanted:,}; get the released file"
            _add(found, "counts", split, line)
    rest = [image for image in images if image.split not in task_class.splits]
    absent = sum(not (Path(found.data_root) / image.path).is_file() for image in rest)
    if absent:
        found.notes.append(f"{absent:,} of {len(rest):,} training images are not there; only fine-tuning needs them")


def _disjoint(found: Verification, read: dict[str, list[Example]], expected: Expected) -> None:
    """Splits share neither samples nor images, but for those that are a part of another one."""
    contents = {
        what: {split: {x for e in examples for x in of(e)} for split, examples in read.items()}
        for what, of in (("ids", _id), ("images", _images))
        if what == "images" or expected.unique_ids
    }
    within = expected.within
    for a, b in combinations(read, 2):
        if a in within and within.get(a) == within.get(b):
            continue  # two parts of one split may overlap
        inner = next(((x, y) for x, y in ((a, b), (b, a)) if within.get(x) == y), None)
        for what, of_split in contents.items():
            if inner is not None:
                line = f"of split {inner[0]} are not in {inner[1]}"
                odd, mend = of_split[inner[0]] - of_split[inner[1]], "get both files of one release"
            else:
                line = f"are in split {a} and in {b}"
                odd, mend = of_split[a] & of_split[b], f"numbers on {a} are not of unseen data, get the released files"
            if odd:
                told = f"{found.data_root}: {len(odd)} {what} {line} ({_first(sorted(odd))}); {mend}"
                _add(found, "splits", inner[0] if inner else a, told)


def _id(example: Example) -> tuple[str, ...]:
    return (example.id,)


def _images(example: Example) -> tuple[str, ...]:
    """Image files of an example, and its label map where the truth is one."""
    return (*example.images, example.target) if _has_map(example) else example.images


def _has_map(example: Example) -> bool:
    return isinstance(example.target, str) and example.target.lower().endswith(".png")


# ---- images -------------------------------------------------------------------------------------------------------------


def _decode(found: Verification, read: dict[str, list[Example]], sample: int | None, progress: Progress | None) -> None:
    """Decode images of every split, each file once."""
    reports = {report.name: report for report in found.splits}
    chosen: dict[str, list[str]] = {}
    taken: set[str] = set()
    for split, examples in read.items():
        files = sorted({path for e in examples for path in _images(e) if Path(path).is_file()} - taken)
        if sample is not None and len(files) > sample:
            files = sorted(random.Random(f"{found.task} {split}").sample(files, sample))
        chosen[split] = files
        taken |= set(files)
    maps = {e.target for examples in read.values() for e in examples if _has_map(e)}
    total, done = len(taken), 0
    with ThreadPoolExecutor(max(cores(), 1)) as pool:
        for split, files in chosen.items():
            wrong: dict[str, list[str]] = {check: [] for check in _IMAGE_FAULTS}
            for path, problem in zip(files, pool.map(lambda p: image_problem(p, p in maps), files), strict=True):
                done += 1
                if problem is not None:
                    wrong[problem[0]].append(f"{path} ({problem[1]})")
                if progress is not None:
                    progress(done, total)
            reports[split].decoded = len(files)
            for check, names in wrong.items():
                if names:
                    fault, mend = _IMAGE_FAULTS[check]
                    line = f"{found.data_root}: {len(names)} of {len(files)} decoded images of split {split} {fault}"
                    _add(found, check, split, f"{line}: {_first(names)}; {mend}")


_IMAGE_FAULTS = {  # check -> what is wrong, the mend
    "decode": ("do not decode", "download them again, or replace them"),
    "size": ("are too large", "make them smaller, or leave them out"),
    "depth": (
        "have more than 8 bits a pixel, which are cut at 255, as by the official loader: most come out white or black",
        "convert them to 8 bits",
    ),
    "label map": ("are no label maps of this data set", "get the annotations again, or mend them"),
}


def _sizes(found: Verification, task: Task, read: dict[str, list[Example]], sample: int | None) -> None:
    """Compare the sizes of images with what their truth says, by file headers."""

    def problem(example: Example) -> str | None:
        try:
            return task.size_problem(example)
        except BenchError:  # a file that does not open is found by decoding
            return None

    with ThreadPoolExecutor(max(cores(), 1)) as pool:
        for split, examples in read.items():
            chosen = examples
            if sample is not None and len(examples) > sample:
                chosen = random.Random(f"{found.task} {split}").sample(examples, sample)
            wrong = [line for line in pool.map(problem, chosen) if line is not None]
            if wrong:
                line = f"{found.data_root}: {len(wrong)} of {len(chosen)} images of split {split} contradict their annotations"
                _add(found, "annotations", split, f"{line}: {_first(wrong)}")


def image_problem(path: str, is_map: bool = False) -> tuple[str, str] | None:
    """Which check of `_IMAGE_FAULTS` an image, or a label map, does not pass, and why; None where there is nothing."""
    from beit3_bench.backbones.images import DEEP, TooLargeError, opened
    from beit3_bench.tasks.label_maps import read_label

    check = "label map" if is_map else "decode"
    try:
        if is_map:
            read_label(path)
            return None
        with opened(path) as image:
            mode = image.mode
            image.convert("RGB")
    except TooLargeError as error:
        check, line = "size", str(error)
    except BenchError as error:
        line = str(error)
    else:
        return ("depth", DEEP[mode]) if mode in DEEP else None
    return check, line.removeprefix(f"{path}: ").rpartition("; ")[0]


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
