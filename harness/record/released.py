"""Whether a split that was read is the released one: counts and ids against `tasks.expected`.

Numbers on other data, be it a part of the split, say nothing about published ones; they are labelled and kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from beit3_bench.tasks.expected import Counts, Expected, digest_of_ids, git_blobs, read_expected

if TYPE_CHECKING:  # the table reads this module, and needs no numpy
    from beit3_bench.harness.record.schema import ReadData
    from beit3_bench.tasks.contract import Example, Split, Task

SAMPLES = {"vqav2": "questions", "nlvr2": "examples"}
"""What `Scores.counts` of a task calls the samples; other counts are called there as in `tasks.expected.Counts`."""


def counts_of(examples: Sequence[Example]) -> Counts:
    """Counts of a whole split as its reader gives it."""
    with_images = [e for e in examples if e.images]
    lists = [e.target for e in examples if isinstance(e.target, list)]
    records = [record for target in lists for record in target]
    answers = [e.target["answers"] for e in examples if isinstance(e.target, dict) and "answers" in e.target]
    labels = {e.target for e in with_images if isinstance(e.target, int) and not isinstance(e.target, bool)}
    objects = [record for record in records if isinstance(record, dict)]
    captions = len(records) - len(objects) + sum(map(len, answers))
    return Counts(
        samples=len(examples),
        images=len({path for e in with_images for path in e.images}),
        texts=sum(e.kind == "text" for e in examples) or None,
        references=captions or None,
        classes=len(labels) or None,
        objects=sum(not o.get("iscrowd", 0) for o in objects) if objects else None,
    )


def ids_of(examples: Sequence[Example], expected: Expected) -> str:
    """The digest of a split's ids that `Expected.ids` holds for the released one."""
    return digest_of_ids((e.id for e in examples if e.images), expected.id_form)


def read_data(task: Task, whole: Split) -> ReadData | None:
    """What a whole split holds, for result.json; None on the tiny world, and where nothing is known of the released one."""
    from beit3_bench.harness.record.worlds import world_of

    split, examples = whole.name, whole.examples
    expected = read_expected(task.data_of or task.name)
    if world_of(task.data_root) == "tiny" or not (split in expected.splits or split in expected.ids):
        return None
    ids: Literal["released", "other", "not known"] = "not known"
    if split in expected.ids:
        ids = "released" if ids_of(examples, expected) in expected.ids[split] else "other"
    data: ReadData = {"counts": counts_of(examples).stated(), "ids": ids}
    if changed := changed_files(task.data_root, expected, split):
        data["changed"] = changed
    return data


def changed_files(data_root: Path, expected: Expected, split: str) -> list[str]:
    """Names of the files that a split is read from and that are not the official ones, where their hashes are known.

    Raises:
        OSError: one cannot be read.
    """
    places = {need: need.find(data_root) for need in expected.needs if need.git_blob and split in need.splits}
    return [need.path for need, place in places.items() if place is not None and need.git_blob not in git_blobs(place)]


def differences(task: str, split: str, counts: Mapping[str, int]) -> list[str]:
    """In which counts a split differs from the released one: ``20 of 1,000 images``; counts named as in `Counts`."""
    expected = read_expected(task).splits.get(split, Counts()).stated()
    lines = []
    for name, wanted in expected.items():
        count = counts.get(name)
        if count is not None and count != wanted:
            lines.append(f"{count:,} of {wanted:,} {name}" if count < wanted else f"{count:,} {name}, not {wanted:,}")
    return lines


def _scored_counts(task: str, counts: Mapping[str, int]) -> dict[str, int]:
    """`Scores.counts`, named as in `tasks.expected.Counts`."""
    named = dict(counts)
    if SAMPLES.get(task) in counts:
        named["samples"] = counts[SAMPLES[task]]
    return named


def other_data(result: Mapping[str, Any]) -> str:
    """``other data: 20 of 1,000 images`` for a result that is not over the released split; "" for one that is, for the
    tiny world, and where nothing is known.

    Results of earlier versions do not say what was read; there, the counts of what was scored tell it.
    """
    if result["world"] == "tiny":
        return ""
    data = result.get("data") or {}
    whole = result["status"] == "scored" and result["subset"] is None
    counts = _scored_counts(result["task"], result["counts"]) if whole else {}
    return _label(
        result["task"],
        result["split"],
        {
            "counts": counts | data.get("counts", {}),
            "ids": data.get("ids", "not known"),
            "changed": data.get("changed", []),
        },
    )


def _label(task: str, split: str, data: Mapping[str, Any]) -> str:
    lines = differences(task, split, data["counts"])
    if not lines and data["ids"] == "other":
        lines = ["other ids than the released split's"]
    if not lines and data.get("changed"):
        lines = [f"{name} is not the official file" for name in data["changed"]]
    return f"other data: {', '.join(lines)}" if lines else ""


def apart(result: Mapping[str, Any]) -> list[str]:
    """Why a result must not stand beside published ones; nothing where it may."""
    reasons = ["tiny world"] if result["world"] == "tiny" else []
    if result["subset"] is not None:
        reasons.append(f"--limit {result['subset']['limit']}")
    return reasons + ([other] if (other := other_data(result)) else [])


def data_notes(task: Task, split: Split, data: ReadData | None) -> list[str]:
    """Lines that a reader of a number on this split must know about its data."""
    other = _label(task.data_of or task.name, split.name, data) if data else ""
    lines = [f"{other}; not comparable with published numbers"] if other else []
    return [*lines, *([split.left_out] if split.left_out else []), *split.notes]


def score_note(task: type[Task], counts: Mapping[str, int], files: Sequence[Path]) -> str | None:
    """A line on what a prediction file was scored over, where that is no released split as far as its counts tell."""
    from beit3_bench.harness.record.worlds import world_of

    if any(world_of(path) == "tiny" for path in files):
        return None
    name = task.data_of or task.name
    named = _scored_counts(name, counts)
    splits = read_expected(name).splits
    told = {split: differences(name, split, named) for split in splits if splits[split].stated().keys() & named}
    if not told or not all(told.values()):
        return None
    default = task.default_split if task.default_split in told else next(iter(told))
    return f"other data: {', '.join(told[default])} of split {default}; not comparable with published numbers"
