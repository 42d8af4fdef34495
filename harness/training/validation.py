"""Scores of a model under training: clean transform, every sample of the split, the code path of `run`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from beit3_bench.harness.engine.predict import MemoryStore, predict_all
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.tasks.contract import Example, Row, Task
from beit3_bench.tasks.coverage import match_ids
from beit3_bench.tasks.scores import Scores


def validate(
    task: Task,
    model: torch.nn.Module,
    examples: Sequence[Example],
    device: torch.device,
    dtype: str = "fp32",
    workers: int | None = None,
    processes: Processes | None = None,
) -> Scores:
    """Score a model on all examples; the mode of the model (training or not) is as before, afterwards.

    Args:
        examples: tokenised; divided over the processes without padding, scored together on each.
    """
    processes = processes or Processes()
    store, training = MemoryStore(), model.training
    matmul, cudnn = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        processes.together(
            lambda: predict_all(
                task, model, examples, store, device, dtype, workers=workers, progress=False, processes=processes
            )
        )
    finally:
        model.train(training)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    rows: dict[str, Row] = {}
    for part in processes.gather(store.rows):
        rows.update(part)
    match_ids(list(rows), [e.id for e in examples], f"validation of {task.name}", "rows")
    return processes.together(lambda: task.score(rows, examples))
