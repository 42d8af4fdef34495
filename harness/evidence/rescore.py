"""Score the rows of a run folder again: no model, the same examples, today's scoring code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError
from beit3_bench.harness.draw import estimate_of, note_of, part_evaluated
from beit3_bench.harness.evidence.named_again import Asked
from beit3_bench.harness.record.fingerprints import same_data
from beit3_bench.harness.record.folder import MEND, RESULT
from beit3_bench.harness.record.results import read_result
from beit3_bench.harness.record.shapes import shape_check
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import data_option
from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.scores import Scores

if TYPE_CHECKING:
    from beit3_bench.harness.reading import Prepared


def read_again(
    folder: Path, data_root: Path | None, options: Mapping[str, str], command: Sequence[str]
) -> tuple[RunStore, Task, Prepared]:
    """A run folder, its task, and the samples that it is over, read from the data that is named again.

    Args:
        data_root, options: the run's, named again (see `named_again`).
        command: the first words of the command that names them.

    Raises:
        BenchError: not a run folder, something was not named, or the data differs from the data that the run saw.
    """
    from beit3_bench.harness.models import split_options, suited
    from beit3_bench.harness.reading import prepare
    from beit3_bench.tasks.registry import get_task

    store = RunStore.read(folder)
    card = store.config
    asked = Asked()
    try:
        task_class = get_task(card["task"])
        place = asked.place(data_option(task_class), data_root, card["data_root"])
        chosen = asked.options(task_class, card["given_options"], options)
        asked.check(folder, list(command))
        assert place is not None
        task = suited(task_class(place, split_options(task_class, chosen)[0]), card.get("family", ""))
        if card["limit"] is not None and card["limit"] < 1:
            raise BenchError(f"{folder}/config.json: limit {card['limit']} is out of range; {MEND}")
        prepared = prepare(task, card["split"], card["limit"])
        seen = {"data": card["fingerprints"]["data"], **card["fingerprints"]}
    except KeyError as error:
        raise BenchError(
            f"{folder}/config.json: key {error} is missing; it was edited, run again with --overwrite"
        ) from error
    if not same_data(seen, prepared.split.examples, task.data_root):
        raise BenchError(
            f"{task.data_root}: the data differs from the data that the run in {folder} saw; restore it or run again"
        )
    if store.finished:
        result = read_result(folder / RESULT)
        part = part_evaluated(result, task, prepared.split)
        prepared = dataclasses.replace(prepared, split=part, subset=result["subset"])
    return store, task, prepared


def rescore(
    folder: Path,
    data_root: Path | None = None,
    options: Mapping[str, str] | None = None,
    command: Sequence[str] = (),
) -> tuple[Scores, Task]:
    """Scores of the stored rows, and the task that made them.

    Args:
        data_root, options: the run's, named again (see `named_again`).
        command: the first words of the command that names them; none = ``score --run``.

    Raises:
        BenchError: not a run folder, damaged, rows are missing, something was not named, or the data differs from the data
            that the run saw.
    """
    words = list(command) or ["beit3-bench", "score", "--run", str(folder)]
    store, task, prepared = read_again(folder, data_root, options or {}, words)
    split, estimate = prepared.split, estimate_of(prepared.subset)
    rows = stored_rows(store, task, split, part=estimate is not None)
    with using_stored_rows(task, folder):
        scores = task.score(rows, split)
    scores.notes = [*prepared.notes, *([note_of(estimate)] if estimate else []), *scores.notes]
    return scores, task


def intervals_again(folder: Path, task: Task, scores: Scores) -> dict[str, tuple[float, float]]:
    """95% intervals of `rescore`, as the run makes them with seed 0; of an estimate, those of its look."""
    from beit3_bench.harness.scoring import intervals, intervals_of_look

    result = read_result(folder / RESULT) if (folder / RESULT).is_file() else None
    estimate = None if result is None else estimate_of(result["subset"])
    return intervals(task, scores, seed=0) if estimate is None else intervals_of_look(task, scores, estimate)


def stored_rows(store: RunStore, task: Task, split: Split, part: bool = False) -> dict[str, Row]:
    """The rows of a run folder, one for each example, by id.

    Args:
        part: there may be rows of other examples, too, which are left out.

    Raises:
        BenchError: damaged or edited ones, others than the examples', or ones that are missing.
    """
    expected = row_shapes(task, split, store.config.get("second_pass"))
    rows = store.rows(expected.keys() if part else None)
    missing, unknown = [name for name in expected if name not in rows], [name for name in rows if name not in expected]
    if missing or unknown:
        why = (
            f"{len(missing)} of {len(expected)} rows without prediction" if missing else f"{len(unknown)} unknown rows"
        )
        mend = MEND if store.finished or unknown else "give the command of this run again"
        raise BenchError(f"{store.folder}: {why} ({', '.join((missing or unknown)[:5]):.200}); {mend}")
    check_rows(rows, expected, store.folder)
    return rows


def check_rows(rows: Mapping[str, Row], shapes: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Raise if a row has not the shape (`row_shapes`) that is expected of it.

    Raises:
        BenchError: names folder, row and key.
    """
    checks = {id(shape): shape_check(shape, MEND) for shape in {id(s): s for s in shapes.values() if s}.values()}
    place = f"{folder}: row "
    for name, row in rows.items():
        if check := checks.get(id(shapes[name])):
            check(row, place + name[:40])


def using_rows_of(task: Task, store: RunStore) -> AbstractContextManager[None]:
    """As `using_stored_rows`, where a run that goes on found rows; those that it made itself are its own matter."""
    return using_stored_rows(task, store.folder) if store.resumed else nullcontext()


def row_shapes(task: Task, split: Split, second: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Ids of the rows that a whole run has, with the kinds of their values.

    second: its second pass, as its card says it; None without one.
    """
    first = dict.fromkeys((example.id for example in split.examples), task.row_shape)
    if not second:
        return first
    alone = second.get("candidates") is None
    return {**({} if alone else first), **task.second_rows(split, alone)}


@contextmanager
def using_stored_rows(task: Task, folder: Path) -> Iterator[None]:
    """What a task cannot take of rows that were read from a folder is no fault of the program.

    Raises:
        BenchError: a row lacks what the task scores, or holds something else.
    """
    try:
        yield
    except BenchError as error:
        if isinstance(error.__cause__, ImportError) or str(folder) in str(error):
            raise
        raise BenchError(f"{folder}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BenchError(
            f"{folder}: its rows are not such as task {task.name} makes ({type(error).__name__}: {str(error)[:100]}); "
            f"{MEND}"
        ) from error
