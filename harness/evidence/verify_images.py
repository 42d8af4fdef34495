"""Images of a data set, and label maps: whether they decode, and whether their sizes are those of the annotations."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from beit3_bench.backbones.archives.members import exists
from beit3_bench.errors import BenchError
from beit3_bench.harness.evidence.findings import Verification, first_of
from beit3_bench.harness.record.provenance import cores
from beit3_bench.tasks.contract import Example

Progress = Callable[[int, int], None]
"""Called with the number of images decoded so far, and of all that are to be."""

_FAULTS = {  # check -> what is wrong, the mend
    "decode": ("do not decode", "download them again, or replace them"),
    "size": ("are too large", "make them smaller, or leave them out"),
    "depth": (
        "have more than 8 bits a pixel, which are cut at 255, as by the official loader: most come out white or black",
        "convert them to 8 bits",
    ),
    "label map": ("are no label maps of this data set", "get the annotations again, or mend them"),
}


def image_files(example: Example) -> tuple[str, ...]:
    """Image files of an example, and its label map where the truth is one."""
    return (*example.images, _map_of(example)) if _has_map(example) else example.images


def _has_map(example: Example) -> bool:
    return isinstance(example.target, str) and example.target.lower().endswith(".png")


def _map_of(example: Example) -> str:
    """The file of a label map, which the target names as the original layout does."""
    return example.truth_files[0] if example.truth_files else example.target


def check_decoding(
    report: Verification, read: Mapping[str, Sequence[Example]], sample: int | None, progress: Progress | None
) -> None:
    """Decode images of every split, each file once; ``sample`` of a split, or all (None)."""
    reports = {of_split.name: of_split for of_split in report.splits}
    chosen: dict[str, list[str]] = {}
    taken: set[str] = set()
    for split, examples in read.items():
        files = sorted({path for e in examples for path in image_files(e)} - taken)
        files = [path for path in files if _is_there(path)]
        if sample is not None and len(files) > sample:
            files = sorted(random.Random(f"{report.task} {split}").sample(files, sample))
        chosen[split] = files
        taken |= set(files)
    maps = {_map_of(e) for examples in read.values() for e in examples if _has_map(e)}
    total, done = len(taken), 0
    with ThreadPoolExecutor(max(cores(), 1)) as pool:
        for split, files in chosen.items():
            wrong: dict[str, list[str]] = {check: [] for check in _FAULTS}
            for path, problem in zip(files, pool.map(lambda p: image_problem(p, p in maps), files), strict=True):
                done += 1
                if problem is not None:
                    wrong[problem[0]].append(f"{path} ({problem[1]})")
                if progress is not None:
                    progress(done, total)
            reports[split].decoded = len(files)
            for check, names in wrong.items():
                if names:
                    fault, mend = _FAULTS[check]
                    line = f"{report.data_root}: {len(names)} of {len(files)} decoded images of split {split} {fault}"
                    report.add(check, split, f"{line}: {first_of(names)}; {mend}")


def _is_there(path: str) -> bool:
    try:
        return exists(path)
    except BenchError:  # a damaged archive is a finding already
        return False


def check_sizes(
    report: Verification,
    size_problem: Callable[[Example], str | None],
    read: Mapping[str, Sequence[Example]],
    sample: int | None,
) -> None:
    """Compare the sizes of images with what their truth says, by file headers; ``size_problem`` is that of the task."""

    def problem(example: Example) -> str | None:
        try:
            return size_problem(example)
        except BenchError:  # a file that does not open is found by decoding
            return None

    with ThreadPoolExecutor(max(cores(), 1)) as pool:
        for split, examples in read.items():
            chosen = examples
            if sample is not None and len(examples) > sample:
                chosen = random.Random(f"{report.task} {split}").sample(examples, sample)
            wrong = [line for line in pool.map(problem, chosen) if line is not None]
            if wrong:
                line = f"{report.data_root}: {len(wrong)} of {len(chosen)} images of split {split}"
                report.add("annotations", split, f"{line} contradict their annotations: {first_of(wrong)}")


def image_problem(path: str, is_map: bool = False) -> tuple[str, str] | None:
    """Which check of `_FAULTS` an image, or a label map, does not pass, and why; None where there is nothing."""
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
