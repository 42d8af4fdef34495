"""Score the rows of a run folder again: no model, the same examples, today's scoring code."""

from __future__ import annotations

from pathlib import Path

from beit3_bench.backbones.errors import BenchError
from beit3_bench.harness.fingerprint import data_fingerprint
from beit3_bench.harness.store import RunStore
from beit3_bench.tasks.base import Scores, Task, match_ids


def rescore(folder: Path) -> tuple[Scores, type[Task]]:
    """Scores of the stored rows.

    Raises:
        BenchError: not a run folder, rows are missing, or the data differs from the data that the run saw.
    """
    from beit3_bench.harness.run import read_examples
    from beit3_bench.tasks.registry import get_task

    store = RunStore.read(folder)
    config = store.config
    try:
        task_class = get_task(config["task"])
        task = task_class(Path(config["data_root"]), config["given_options"])
        examples, _ = read_examples(task, config["split"], config["limit"])
        seen = config["fingerprints"]["data"]
    except KeyError as error:
        raise BenchError(
            f"{folder}/config.json: key {error} is missing; it was edited, run again with --overwrite"
        ) from error
    if data_fingerprint(examples, task.data_root) != seen:
        raise BenchError(
            f"{task.data_root}: the data differs from the data that the run in {folder} saw; restore it or run again"
        )
    rows = store.rows()
    match_ids(list(rows), [example.id for example in examples], str(folder), "rows")
    return task.score(rows, examples), task_class
