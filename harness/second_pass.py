"""The second pass of a run: the model looks again at the best of its first, over the same engine and into the same folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from beit3_bench.backbones.abilities import Item, Reader
from beit3_bench.backbones.family import Model
from beit3_bench.errors import BenchError
from beit3_bench.harness.console import echo
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.models import prepare_reader
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import RunRequest
from beit3_bench.tasks.contract import Split, Task

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.abilities import Matches
    from beit3_bench.harness.engine.predict import RowSink, Throughput

_TIMED = 64  # texts of an image from which the speed is estimated


def check_second(task: Task, split: Split, model: Model) -> None:
    """Raise before the first pass for a second one that cannot be.

    Raises:
        BenchError: one was asked for and the model has none, or the data is too small for it.
    """
    if model.second is not None:
        task.check_second(split, model.second)
        return
    if asked := task.second_wanted():
        raise BenchError(
            f"{asked}: {model.card.checkpoint} compares no image with a text beyond their embeddings; leave it out"
        )


def look_again(
    request: RunRequest,
    task: Task,
    split: Split,
    model: Model,
    store: RunStore,
    sink: RowSink,
    device: torch.device,
    processes: Processes,
) -> Throughput | None:
    """Make the rows of the second pass that are not there yet, on all processes, once those of the first are; None without one.

    store: where the rows of the first pass are.
    """
    from beit3_bench.harness.engine.cost import gflop_per_sample
    from beit3_bench.harness.engine.predict import predict_together

    second = model.second
    if second is None:
        return None

    def plan() -> tuple[Task, Split]:
        return task.second_pass(store.rows({example.id for example in split.examples}), split, second)

    again, pairs = processes.broadcast(processes.on_first(plan))  # type: ignore[misc]
    second.ability.make_ready(device, request.compute.compile == "on")
    prepare_reader(second.ability.reader, [again.item(example) for example in pairs.examples])

    def begin() -> dict[str, float]:
        done = store.done()
        left = [example for example in pairs.examples if example.id not in done]
        if left and request.reporting.form != "none":
            items = [again.item(example) for example in left]
            echo(
                _announced(second.candidates, items, second.ability, device, request.compute, processes.world), err=True
            )
        fresh = second.ability.of(second.ability.module)  # which keeps nothing that it computes while it is counted
        return gflop_per_sample(again, left, fresh, device)

    gflop = processes.on_first(begin) or {}
    total = predict_together(
        *(again, pairs, second.ability, sink, device, request.compute, request.reporting, processes),
        title=f"{task.name}, {'re-ranking' if second.candidates else 'matching'}",
    )
    total.gflop_per_sample = gflop
    return total


def _announced(
    candidates: int, items: Sequence[Item], ability: Matches, device: torch.device, compute: Compute, world: int
) -> str:
    """How many passes of an image and a text are ahead, and how long they take at the speed of a few."""
    pairs = sum(len(item.texts) for item in items)
    what = f"re-ranking the best {candidates}" if candidates else "matching"
    text = f"{what}: {pairs:,} passes of a text with an image, {len(items):,} images"
    most = max(items, key=lambda item: len(item.texts))
    alike = _of_one_length(most.texts, ability.reader)[: _TIMED + 1]  # as most are computed: together with their like
    few = replace(most, texts=alike[:1]), replace(most, texts=alike)
    if len(few[1].texts) < 2:
        return text
    _seconds(few[0], ability, device, compute)  # kernels are loaded, weights move
    one, many = (_seconds(item, ability, device, compute) for item in few)
    per_pair = max(many - one, 1e-6) / (len(few[1].texts) - 1)
    seconds = (len(items) * one + pairs * per_pair) / world
    return f"{text}; about {_clock(seconds)} at {1 / per_pair:,.0f} a second"


def _of_one_length(texts: Sequence[str], reader: Reader) -> tuple[str, ...]:
    """The texts of the commonest length in tokens."""
    groups: dict[int, list[str]] = {}
    for text in texts:
        groups.setdefault(reader.length(Item(text=text)), []).append(text)
    commonest = max(groups, key=lambda length: len(groups[length]))
    return tuple(groups[commonest])


def _seconds(item: Item, ability: Matches, device: torch.device, compute: Compute) -> float:
    import torch

    from beit3_bench.backbones.precision import arithmetic
    from beit3_bench.harness.engine.devices import to_device

    assert ability.module is not None
    ability.module.to(device).eval()
    batch = to_device(ability.reader.collate([item]), device)
    start = time.perf_counter()
    with torch.inference_mode(), arithmetic(compute.dtype, device):
        ability.predict(batch)  # its values come to the CPU, so that they are there
    return time.perf_counter() - start


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
