"""Scores of a model under training: clean transform, every sample of the split, the code path of `run`."""

from __future__ import annotations

import torch

from beit3_bench.backbones.abilities import Ability
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.predict import MemoryStore, predict_all
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.progress import Reporting
from beit3_bench.harness.termination import Terminated
from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.scores import Scores


def validate(
    task: Task,
    split: Split,
    ability: Ability,
    device: torch.device,
    compute: Compute | None = None,
    processes: Processes | None = None,
    reporting: Reporting | None = None,
) -> Scores:
    """Score a model on a whole split; the mode of its network (training or not) is as before, afterwards.

    Args:
        split: its texts are prepared; divided over the processes without padding, scored together on each.
        reporting: None = nothing is told.

    Raises:
        Terminated: SIGTERM came to a process before its predictions were made; on all of them.
    """
    processes = processes or Processes()
    store, module = MemoryStore(), ability.module
    assert module is not None
    training = module.training

    def predict() -> bool:
        told = reporting or Reporting("none")
        try:
            predict_all(task, split, ability, store, device, compute, told, processes, title=f"{task.name}, validation")
        except Terminated:
            return False
        return True

    try:
        whole = processes.together(predict)
    finally:
        module.train(training)
    if not all(processes.gather(whole)):
        raise Terminated
    rows: dict[str, Row] = {}
    for part in processes.gather(store.rows):
        rows.update(part)
    match_ids(list(rows), [e.id for e in split.examples], f"validation of {task.name}", "rows")
    return processes.together(lambda: task.score(rows, split))
