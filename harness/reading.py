"""From the files of a data set to the split that a run stands on, with everything that can be checked without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from beit3_bench.errors import BenchError
from beit3_bench.garbage import collection_paused
from beit3_bench.harness.record.released import data_notes, read_data
from beit3_bench.harness.record.worlds import world_of as world_of
from beit3_bench.tasks.contract import Split, Task
from beit3_bench.tasks.files import check_images

if TYPE_CHECKING:
    from beit3_bench.harness.record.schema import ReadData, Subset


@dataclass(frozen=True)
class Prepared:
    """A task and the split that is evaluated.

    subset, data: as in `record.schema.Result`.  notes: lines on the data, such as images that were left out.
    whole: the split of which `split` is a part after `--until-ci`; else the same.
    """

    task: Task
    split: Split
    subset: Subset | None
    data: ReadData | None
    notes: list[str]
    whole: Split


@collection_paused()
def prepare(task: Task, split: str | None, limit: int | None = None) -> Prepared:
    """Read a split, whole or the first ``limit`` examples by the task's own rule, and check its image files.

    Raises:
        BenchError: from the readers; an unknown or empty split, an id that comes twice, missing image files.
    """
    whole = read_split(task, task.split_of(split, task.data_root))
    data = read_data(task, whole)
    part, subset = limited(task, whole, limit)
    return Prepared(task, part, subset, data, data_notes(task, whole, data), part)


def read_split(task: Task, name: str) -> Split:
    """All examples of a split.

    Raises:
        BenchError: from the readers; an empty split, or an id that comes twice.
    """
    split = task.read(name)
    if not split.examples:
        raise BenchError(
            f"{task.data_root}: split {name!r} of task {task.name} is empty; "
            f"check the files (see: beit3-bench tasks {task.name})"
        )
    seen: set[str] = set()
    for example in split.examples:
        if example.id in seen:
            raise BenchError(
                f"{task.data_root}: id {example.id} comes twice in split {name!r} of task {task.name}; "
                "remove the duplicate"
            )
        seen.add(example.id)
    return split


def limited(task: Task, whole: Split, limit: int | None) -> tuple[Split, Subset | None]:
    """The first ``limit`` examples, and ``{"limit": n}`` where they are not the whole split; their image files are there.

    Raises:
        BenchError: missing image files.
    """
    part: Split = whole
    subset: Subset | None = None
    if limit is not None:
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise BenchError(f"limit is {limit!r}; give a whole number of samples, 1 or more")
        chosen = task.limited(whole, limit)
        if len(chosen.examples) < len(whole.examples):
            part, subset = chosen, {"limit": limit}
    check_images((path for example in part.examples for path in example.images), task.data_root)
    return part, subset
