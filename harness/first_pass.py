"""The pass over every example by itself: rows come from the feature store where it has them, else from the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from beit3_bench.backbones.family import Model
from beit3_bench.harness.clock import Clock
from beit3_bench.harness.console import echo
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.reading import Prepared
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.stopping import predict_until
from beit3_bench.harness.tracking import Progress
from beit3_bench.tasks.contract import Row

if TYPE_CHECKING:
    import torch

    from beit3_bench.harness.engine.predict import RowSink, Throughput
    from beit3_bench.harness.reuse.features import Features


class Warned:
    """A run folder; with its first new rows the warnings are printed, so that an input that is refused is one line alone."""

    def __init__(self, store: RunStore, warnings: Sequence[str], progress: Progress | None = None):
        self.store, self.warnings, self.progress = store, list(warnings), progress

    def done(self) -> set[str]:
        return self.store.done()

    def append(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self.store.append(rows)
        self.say()
        if self.progress is not None:
            self.progress.advance(len(rows))

    def say(self) -> None:
        """Print what has not been printed."""
        for warning in self.warnings:
            echo(f"warning: {warning}", err=True)
        self.warnings.clear()


def first_pass(
    request: RunRequest,
    prepared: Prepared,
    model: Model,
    store: Warned,
    device: torch.device,
    processes: Processes,
    clock: Clock,
) -> tuple[Throughput, Prepared]:
    """Rows of every example by itself. Returns as `session.predict`."""
    from beit3_bench.harness.engine.cost import gflop_per_sample
    from beit3_bench.harness.engine.predict import predict_together
    from beit3_bench.harness.reuse.features import KeepingSink

    task, split = prepared.task, prepared.split
    sink: RowSink = store
    features, served = None, 0
    if request.features is not None and task.feature is not None:
        with clock.stage("features"):
            features, served = serve(request, prepared, model, store.store, device, processes)
        sink = KeepingSink(store, features)
    done = processes.broadcast(store.done())
    left = [example for example in split.examples if example.id not in done]
    gflop = processes.on_first(lambda: gflop_per_sample(task, left, model.ability, device)) or {}
    model.ability.make_ready(device, request.compute.compile == "on")
    try:
        if request.until_ci is None:
            total = predict_together(
                *(task, split, model.ability, sink, device, request.compute, request.reporting, processes),
                hash_images=True,
            )
        else:
            total, prepared = predict_until(request, prepared, model, store.store, sink, device, processes)
    finally:
        if features is not None:
            features.close()
    total.samples_from_store, total.resumed_samples = served, total.resumed_samples - served
    total.gflop_per_sample = gflop
    return total, prepared


def serve(
    request: RunRequest,
    prepared: Prepared,
    model: Model,
    store: RowSink,
    device: torch.device,
    processes: Processes,
) -> tuple[Features, int]:
    """Fill a run folder with the rows that the feature store has, on all processes; how many there were."""
    from beit3_bench.harness.reuse.features import Features

    assert request.features is not None
    root, task = request.features, prepared.task
    done = processes.broadcast(store.done())
    mine = [e for e in prepared.split.examples if e.id not in done][processes.rank :: processes.world]

    def look() -> tuple[Features, int]:
        features = Features(root, task, model, device, request.compute)
        return features, features.serve(mine, store)

    features, count = processes.together(look)
    for keys, _ in (parts := processes.gather((features.keys, count))):
        features.keys.update(keys)  # whoever computes an example can store it
    return features, sum(count for _, count in parts)
