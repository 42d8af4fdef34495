"""Whether a split that was read is the released one: counts and ids against the facts of its task (`tasks.facts`).

Numbers on other data, be it a part of the split, say nothing about published ones; they are labelled and kept apart.
"""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from beit3_bench.errors import BenchError
from beit3_bench.tasks.facts import Counts, ReleasedData, read_facts

if TYPE_CHECKING:  # the table reads this module, and needs no numpy
    from beit3_bench.harness.record.schema import ReadData
    from beit3_bench.tasks.contract import Example, Split, Task


# ---- what was read ----------------------------------------------------------------------------------------------------


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


def ids_of(examples: Sequence[Example], released: ReleasedData) -> str:
    """The digest of a split's ids that `ReleasedData.ids` holds for the released one."""
    return digest_of_ids((e.id for e in examples if e.images), released.id_form)


def digest_of_ids(ids: Iterable[str], form: str = "") -> str:
    """sha256 (hex) of sorted ids, a line feed between; ``form`` as `ReleasedData.id_form`."""
    if form:
        pattern = re.compile(form)
        matches = [(name, pattern.fullmatch(name)) for name in ids]
        ids = ("/".join(filter(None, match.groups())) if match else name for name, match in matches)
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest()


def git_blobs(path: Path) -> tuple[str, str]:
    """Git's object name (hex SHA-1) of a file, and that of its text without byte order mark and with line feeds alone.

    Raises:
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    return _git_blob(content), _git_blob(content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n"))


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_data(task: Task, whole: Split) -> ReadData | None:
    """What a whole split holds, for result.json; None on the tiny world, and where nothing is known of the released one."""
    from beit3_bench.harness.record.worlds import world_of

    split, examples = whole.name, whole.examples
    if whole.own:
        return {"counts": counts_of(examples).stated(), "ids": "not known", "own": whole.own}
    released = read_facts(task.data_of or task.name).data
    if world_of(task.data_root) == "tiny" or not (split in released.splits or split in released.ids):
        return None
    ids: Literal["released", "other", "not known"] = "not known"
    if split in released.ids:
        ids = "released" if ids_of(examples, released) in released.ids[split] else "other"
    data: ReadData = {"counts": counts_of(examples).stated(), "ids": ids}
    if changed := changed_files(task.data_root, released, split):
        data["changed"] = changed
    return data


def changed_files(data_root: Path, released: ReleasedData, split: str) -> list[str]:
    """Names of the files that a split is read from and that are not the official ones, where their hashes are known.

    Raises:
        OSError: one cannot be read.
    """
    places = {need: need.find_itself(data_root) for need in released.needs if need.git_blob and split in need.splits}
    return [need.path for need, place in places.items() if place is not None and need.git_blob not in git_blobs(place)]


# ---- against the released split -----------------------------------------------------------------------------------------


def differences(task: str, split: str, counts: Mapping[str, int]) -> list[str]:
    """In which counts a split differs from the released one: ``20 of 1,000 images``; counts named as in `Counts`."""
    lines = []
    for name, wanted in read_facts(task).data.splits.get(split, Counts()).stated().items():
        count = counts.get(name)
        if count is not None and count != wanted:
            lines.append(f"{count:,} of {wanted:,} {name}" if count < wanted else f"{count:,} {name}, not {wanted:,}")
    return lines


def _scored_counts(task: str, counts: Mapping[str, int]) -> dict[str, int]:
    """`Scores.counts`, named as in `tasks.facts.Counts`."""
    own = read_facts(task).data.counted_as
    return {**counts, "samples": counts[own]} if own in counts else dict(counts)


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


def own_data(result: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what data of one's own says, nobody else having numbers on it; "" for a result on other data."""
    return (result.get("data") or {}).get("own", "")


def part_of_split(subset: Mapping[str, Any] | None) -> str:
    """Which part of its split a run is over, in words; "" for the whole."""
    if not subset:
        return ""
    if (estimate := subset.get("estimate")) is not None:
        return f"estimate, {estimate['examples']:,} of {estimate['of_examples']:,} examples"
    return f"first {subset['limit']:,} only"


def refuse_estimate(result: Mapping[str, Any], folder: Path, done: str) -> None:
    """Raise for a run that `--until-ci` stopped, whose samples and number are those of where it happened to stop.

    Args:
        done: what is not done with it, a participle.

    Raises:
        BenchError: the run is one.
    """
    if result["subset"] and "estimate" in result["subset"]:
        raise BenchError(
            f"{folder}: is an {part_of_split(result['subset'])} (--until-ci), and is not {done}; give its command without --until-ci, "
            "and it goes on to the whole split"
        )


def apart(result: Mapping[str, Any]) -> list[str]:
    """Why a result must not stand beside published ones; nothing where it may."""
    reasons = ["tiny world"] if result["world"] == "tiny" else []
    if (subset := result["subset"]) is not None:
        reasons.append(f"--limit {subset['limit']}" if "limit" in subset else part_of_split(subset))
    if corrupted := result.get("corrupt"):
        reasons.append(f"corrupted {corrupted}")
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
    splits = read_facts(name).data.splits
    different = {split: differences(name, split, named) for split in splits if splits[split].stated().keys() & named}
    if not different or not all(different.values()):
        return None
    default = task.default_split if task.default_split in different else next(iter(different))
    return f"other data: {', '.join(different[default])} of split {default}; not comparable with published numbers"
