"""Trainings that a framework does in its own way, instead of by the loop of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from beit3_bench.backbones.training import EngineRequest, Halted, TrainingEngine, Watcher
from beit3_bench.errors import BenchError, DeviceFailed
from beit3_bench.harness.console import echo
from beit3_bench.harness.engine.devices import failing_card
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.progress import Meter
from beit3_bench.harness.termination import Terminated, asked, deferred, outlive_first_sigterm
from beit3_bench.harness.tracking import Trackers, forget, installed
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
    request: FinetuneRequest,
    task_class: type[Task],
    origin: Origin,
    processes: Processes,
    watcher: Watcher | None = None,
) -> TrainingEngine:
    """The framework's training of a request, with the samples that the task reads.

    watcher: is told how it goes.

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
        watcher=watcher or Watcher(),
    )
    return origin.family.training_engine(task.asked(learned), engine_request)


class EngineWatcher(Watcher):
    """Tells how far a framework is as the native loop does, and lets it end where SIGTERM has come."""

    def __init__(self, request: FinetuneRequest, processes: Processes):
        self.request, self.processes = request, processes
        self.facts: Mapping[str, Any] = {}
        self._meter: Meter | None = None
        self._trackers: Trackers | None = None
        self._open = ExitStack()

    def started(self, step: int, steps: int) -> None:
        first, request = self.processes.first, self.request
        self._meter = self._open.enter_context(request.reporting.meter(request.task, "step", steps, step, shown=first))
        if first:
            names, folder = request.log_to or installed(), Path(self.facts["folder"])
            if not request.resume:
                forget(folder)
            trackers = Trackers(folder, names, self.facts, step, on_cpu(request.device))
            self._trackers = self._open.enter_context(trackers)

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        if self._meter is not None:
            self._meter.advance(loss=f"{values['loss']:.4g}")
        self._log("log", values, step)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        self._log("validation", metrics, step)

    def wants_end(self) -> bool:
        return asked()

    def in_worker(self) -> None:
        outlive_first_sigterm()

    def _log(self, table: str, values: Mapping[str, float], step: int) -> None:
        if self._trackers is not None:
            self._trackers.log({f"{table}/{name}": value for name, value in values.items()}, step)

    def watch(self, engine: TrainingEngine) -> dict[str, Any]:
        """Run an engine that was started with this watcher.

        Raises:
            Terminated: SIGTERM came; the state of the step at which it came is saved.
            DeviceFailed: the card failed; the last state stays.
        """
        self.facts = engine.plan()
        try:
            with self._open, failing_card(self.request.task), deferred():
                return engine.run()
        except Halted as halted:
            terminated = Terminated()
            terminated.add_note(f"step {halted.step} is kept in {halted.folder}; go on with --resume")
            raise terminated from None
        except (KeyboardInterrupt, DeviceFailed) as interrupt:
            interrupt.add_note("go on with --resume from the last state that was saved")
            raise
