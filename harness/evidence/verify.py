"""Whether a data set is whole: files, checksums, counts, split integrity, captions per image, images that decode.

Data is read by the task's own readers, so what passes here is what `beit3-bench run` will see; what the released data
must hold is in the facts of the task (`tasks.facts.ReleasedData`). A finding is one line: what is wrong, and the mend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.harness.data.plan import places_of_missing
from beit3_bench.harness.evidence.findings import SplitReport, Verification, first_of
from beit3_bench.harness.evidence.verify_files import check_files
from beit3_bench.harness.evidence.verify_images import Progress, check_decoding, check_sizes, image_files
from beit3_bench.harness.evidence.verify_splits import check_karpathy_file, check_overlap, check_split
from beit3_bench.harness.record.worlds import world_of
from beit3_bench.tasks.contract import Example, Task
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.files import check_images

SAMPLE = 200


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
    if not data_root.is_dir() and not task_class.own_data:
        raise BenchError(f"{data_root}: folder not found; check --data-root (see: beit3-bench tasks {task_class.name})")
    released = read_facts(task_class.name).data
    report = Verification(task_class.name, str(data_root), world_of(data_root))
    asked = task_class.split_of(split, data_root)
    names = [asked] if split is not None else [asked, *(s for s in task_class.splits if s != asked)]
    present = {name: check_files(report, released.needs, name, wanted=name == asked) for name in names}
    read: dict[str, Sequence[Example]] = {}
    for name in names:
        if not present[name] and name != asked:
            report.splits.append(SplitReport(name, there=False))
            continue
        examples = _read_and_check(report, task_class(data_root), name)
        if examples is not None:
            read[name] = examples
    for name, examples in read.items():
        report.splits.append(check_split(report, name, examples, released))
    if released.karpathy is not None:
        check_karpathy_file(report, released.karpathy, task_class.splits)
    check_overlap(report, read, released)
    limit = None if all_images else sample
    check_decoding(report, read, limit, progress)
    check_sizes(report, task_class(data_root).size_problem, read, limit)
    if report.findings and report.world == "real":
        report.to_get = places_of_missing(
            task_class, [name for name in names if name == asked or present[name]], data_root
        )
    order = {name: n for n, name in enumerate(task_class.splits or names)}
    report.splits.sort(key=lambda of_split: order[of_split.name])
    return report


def _read_and_check(report: Verification, task: Task, split: str) -> Sequence[Example] | None:
    """The examples of a split; None, and a finding, where the task's reader refuses it."""
    try:
        reading = task.read(split)
    except BenchError as error:
        report.add("reader", split, str(error))
        return None
    examples = reading.examples
    if reading.left_out is not None:
        report.notes.append(reading.left_out)
    if not examples:
        report.add("counts", split, f"{report.data_root}: split {split} is empty; check the files")
        return None
    for line in reading.notes:
        report.add("notes", split, line)
    twice = [name for name, count in Counter(e.id for e in examples).items() if count > 1]
    if twice:
        line = f"{report.data_root}: {len(twice)} ids of split {split} come twice ({first_of(twice)})"
        report.add("ids", split, f"{line}; remove the duplicates")
    try:
        check_images((path for e in examples for path in image_files(e)), Path(report.data_root))
    except BenchError as error:
        report.add("images", split, str(error))
    return examples
