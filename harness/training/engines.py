"""Trainings that a framework does in its own way, instead of by the loop of this folder."""

from __future__ import annotations

from beit3_bench.backbones.training import EngineRequest, TrainingEngine
from beit3_bench.errors import BenchError
from beit3_bench.harness.console import echo
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.training.recipes import split_options
from beit3_bench.harness.training.start import (
    FinetuneRequest,
    Origin,
    make_task,
    read_training_split,
    read_validation_split,
)
from beit3_bench.tasks.contract import Task


def check_processes(request: FinetuneRequest, world: int, dry_run: bool) -> None:
    """Raise for a division over processes that these frameworks do not know."""
    if request.parallel == "fsdp":
        raise BenchError(
            f"task {request.task}: its training engine keeps whole copies on all processes; leave out --parallel fsdp"
        )
    if world > 1 and not dry_run and on_cpu(request.device):
        raise BenchError(
            f"task {request.task}: its engine trains on several processes on GPUs only, where batch norms are "
            "synchronised; start one process, or give --device cuda"
        )


def on_cpu(device: str) -> bool:
    """Whether ``--device`` means the CPU here."""
    import torch

    return device == "cpu" or (device == "auto" and not torch.cuda.is_available())


def start_engine(
    request: FinetuneRequest, task_class: type[Task], origin: Origin, processes: Processes
) -> TrainingEngine:
    """The framework's training of a request, with the samples that the task reads.

    Raises:
        BenchError: bad input; nothing has been written.
    """
    recipe_options, task_options = split_options(request.options)
    task = make_task(task_class, request, task_options)
    learned, validation = read_training_split(task), read_validation_split(task, task.default_split)
    for line in filter(None, (learned.left_out, validation.left_out)) if processes.first else ():
        echo(f"warning: {line}", err=True)
    engine_request = EngineRequest(
        root=task.root(),
        training=[task.training_item(example) for example in learned.examples],
        validation=[task.training_item(example) for example in validation.examples],
        preset=origin.preset,
        recipe=request.recipe,
        options=recipe_options,
        checkpoint=origin.source.path if origin.source else None,
        output=request.output,
        device=request.device,
        dtype=request.dtype,
        workers=request.workers,
        seed=request.seed,
        resume=request.resume,
        overwrite=request.overwrite,
        from_scratch=request.from_scratch,
    )
    return origin.family.training_engine(task.asked(learned), engine_request)
