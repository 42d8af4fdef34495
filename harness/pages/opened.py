"""A run folder opened to be looked at: its card, result and rows, and the data behind them as it is now."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from beit3_bench.backbones.image_hashes import image_hashes
from beit3_bench.errors import BenchError
from beit3_bench.harness.draw import part_evaluated
from beit3_bench.harness.evidence.named_again import Asked
from beit3_bench.harness.evidence.rescore import check_rows, row_shapes, using_stored_rows
from beit3_bench.harness.models import split_options, suited
from beit3_bench.harness.reading import read_split
from beit3_bench.harness.record.fingerprints import same_data
from beit3_bench.harness.record.folder import CONFIG, MEND, RESULT, SAMPLES
from beit3_bench.harness.record.provenance import cores
from beit3_bench.harness.record.results import read_result
from beit3_bench.harness.record.schema import Result
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import data_option
from beit3_bench.harness.scoring import metric_spec
from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.display import Display, Samples
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.registry import get_task


@dataclass
class OpenedRun:
    """What pages are made of.

    data_root: where the data was looked for.
    warnings: what a reader of the page must know, a line each.
    """

    folder: Path
    store: RunStore
    result: Result
    task: Task
    split: Split
    display: Display
    samples: Samples
    data_root: Path
    warnings: list[str] = field(default_factory=list)
    _hashes: dict[str, str] | None = None

    @cached_property
    def shares(self) -> bool:
        """Whether scores of samples are between 0 and all right, unlike CIDEr."""
        top = 100.0 if metric_spec(self.task, self.samples.metric).unit == "percent" else 1.0
        return max(self.samples.values.values(), default=0.0) <= top

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def title(self) -> str:
        """What the task is called."""
        return read_facts(self.task.name).title or self.task.name

    def changed_images(self, ids: Iterable[str]) -> dict[str, set[str]]:
        """Image files of some samples that are there, and are not those that the run was made from: by sample."""
        if self._hashes is None:
            noted = self.store.image_hashes()
            self._hashes = {
                path: was
                for example in self.split.examples
                for path, was in zip(example.images, noted.get(example.id, ()), strict=False)
            }
        known = self._hashes
        seen = {
            name: {path: known[path] for path in self.display.examples[name].images if path in known} for name in ids
        }
        now = image_hashes([path for paths in seen.values() for path in paths], cores())
        return {
            name: {path for path, was in paths.items() if now[path] is not None and now[path] != was}
            for name, paths in seen.items()
        }


def open_run(folder: Path, data_root: Path | None = None, options: Mapping[str, str] | None = None) -> OpenedRun:
    """A finished run.

    What its card names is opened where the card is the user's own file; of somebody else's, the command line has to name it again.

    Args:
        data_root, options: in place of those of the card.

    Raises:
        BenchError: no run folder, not finished, without rows, or damaged; data that is not where it is looked for.
    """
    result = finished_result(folder)
    store = RunStore.read(folder)
    card = store.config
    try:
        task_class = get_task(card["task"])
        recorded, place = card["given_options"], card["data_root"]
        mine = os.stat(folder / CONFIG).st_uid == os.geteuid()
        asked = Asked()
        root = asked.place(data_option(task_class), data_root or (Path(place) if mine else None), place)
        chosen = asked.options(task_class, recorded, {**(recorded if mine else {}), **(options or {})})
        asked.check(folder, ["beit3-bench", "show", str(folder)])
        assert root is not None
        task = suited(task_class(root, split_options(task_class, chosen)[0]), card.get("family", ""))
        limit, fingerprints = card["limit"], card["fingerprints"]
    except KeyError as error:
        raise BenchError(f"{folder / CONFIG}: key {error} is missing; {MEND}") from error
    split = _read(folder, task, result["split"], limit, data_root is not None)
    whole = split
    split = part_evaluated(result, task, whole)
    rows = store.rows() if split is whole else store.rows({example.id for example in split.examples})
    if not rows:
        raise BenchError(f"{folder}: holds no rows, so that there is nothing to show; run again with --overwrite")
    rows, warnings = _fitting(rows, row_shapes(task, split, card.get("second_pass")), split, task, folder)
    if not _is_same(fingerprints, whole, root):
        warnings.append(
            f"The data in {root} is not what this run saw: texts, truth or sizes of files differ, so that what is shown beside the "
            "predictions may be something else."
        )
    scores = store.samples()[1] if (folder / SAMPLES).is_file() else {}
    with using_stored_rows(task, folder):
        display = task.display(rows, split, scores)
        samples = display.samples()
    if not samples.ids:
        raise BenchError(f"{folder}: none of its samples can be shown; {MEND}")
    return OpenedRun(folder, store, result, task, split, display, samples, root, warnings)


def finished_result(folder: Path) -> Result:
    """The result of a run folder that has rows.

    Raises:
        BenchError: there is none; says why.
    """
    if not folder.is_dir():
        raise BenchError(
            f"{folder}: no such folder; give the folder that beit3-bench run printed (see: beit3-bench runs)"
        )
    if not (folder / RESULT).is_file():
        if (folder / CONFIG).is_file():
            raise BenchError(f"{folder}: this run is not finished; give its command again, then show it")
        raise BenchError(
            f"{folder}: not a run folder (it has no {CONFIG}); give the folder that beit3-bench run printed"
        )
    result = read_result(folder / RESULT)
    if not (folder / CONFIG).is_file():
        why = f": {result['notes'][0]}" if result["notes"] else ""
        raise BenchError(
            f"{folder}: holds a result without rows, which says {result['status']}{why}; there is nothing to show"
        )
    return result


def _read(folder: Path, task: Task, name: str, limit: int | None, given: bool) -> Split:
    """The split as the data has it now."""
    if limit is not None and limit < 1:
        raise BenchError(f"{folder / CONFIG}: limit {limit} is out of range; {MEND}")
    try:
        split = read_split(task, name)
        return (
            split if limit is None else task.limited(split, limit)
        )  # pictures that are not there are told where they would be
    except BenchError as error:
        if given:
            raise
        raise BenchError(
            f"{folder}: its data is looked for in {task.data_root}, as the run's card says; {data_option(type(task))} names where it "
            f"is now ({error})"
        ) from error


def _fitting(
    rows: dict[str, Row], shapes: Mapping[str, Mapping[str, Any]], split: Split, task: Task, folder: Path
) -> tuple[dict[str, Row], list[str]]:
    """The rows of examples that are there, and what is said of the others. shapes: of all rows that there can be."""
    examples = [e.id for e in split.examples if e.id in shapes]
    known = [name for name in examples if name in rows]
    if not known:
        raise BenchError(
            f"{folder}: none of its {len(rows):,} rows belongs to an example of {task.data_root}; name the run's own data with "
            f"{data_option(type(task))}"
        )
    fitting = [name for name in shapes if name in rows]
    check_rows({name: rows[name] for name in fitting}, shapes, folder)
    lost, silent = len(rows) - len(fitting), len(examples) - len(known)
    warnings = [f"{lost:,} rows are of samples that the data does not have now; they are left out."] if lost else []
    warnings += [f"{silent:,} samples of the data have no row in this run; they are left out."] if silent else []
    return {name: rows[name] for name in fitting}, warnings


def _is_same(fingerprints: Mapping[str, str], split: Split, root: Path) -> bool:
    try:
        return same_data(fingerprints, split.examples, root)
    except (OSError, BenchError):  # a file that is not there
        return False
