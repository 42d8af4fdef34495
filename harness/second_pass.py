"""The second pass of a run: the model looks again at the best of its first, over the same engine and into the same folder. A model that
has no first pass looks at all pairs.
"""

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

_TIMED = 64  # texts of an image from which the speed is estimated, at most
_TIMED_SECONDS = 5.0  # that they may take, as one of them shows
_IMAGES_OF_A_CARD, _TEXTS_OF_A_CARD = (
    8,
    256,
)  # of a batch from which a card's speed is estimated, and of each image, at most

_NAMES = {None: "comparing all pairs", 0: "matching"}
"""Of a second pass, by its candidates; another re-ranks so many."""


def check_second(task: Task, split: Split, model: Model) -> None:
    """Raise before the first pass for a second one that cannot be.

    Raises:
        BenchError: one was asked for and the model has none, or the data is too small for it.
    """
    checkpoint = model.card.checkpoint
    if vars(task.options).get("all_pairs") and not model.all_pairs:
        raise BenchError(f"all_pairs=yes: {checkpoint} finds candidates by its embeddings first; leave it out")
    if model.second is not None:
        task.check_second(split, model.second)
        return
    if asked := task.second_wanted():
        raise BenchError(f"{asked}: {checkpoint} compares no image with a text beyond their embeddings; leave it out")


def check_cost(task: Task, split: Split, model: Model, device: torch.device, compute: Compute, world: int) -> None:
    """Raise for a second pass that costs so much that it has to be asked for.

    Raises:
        BenchError: says what it costs, and with which option it begins.
    """
    second = model.second
    option = None if second is None else task.second_leave(split, second)
    if second is None or option is None:
        return
    again, pairs = task.second_pass({}, split, second)
    second.ability.make_ready(device, compute.compile == "on")
    items = [again.item(example) for example in pairs.examples]
    prepare_reader(second.ability.reader, items[:1])
    cost = _announced(second.candidates, items, second.ability, device, compute, world)
    raise BenchError(f"{cost}; that is not begun unasked: give -o {option}, or --limit N for the first N images")


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
        rows = {} if second.alone else store.rows({example.id for example in split.examples})
        return task.second_pass(rows, split, second)

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
        hash_images=second.alone,
        title=f"{task.name}, {_NAMES.get(second.candidates, 're-ranking')}",
    )
    total.gflop_per_sample = gflop
    return total


def _announced(
    candidates: int | None, items: Sequence[Item], ability: Matches, device: torch.device, compute: Compute, world: int
) -> str:
    """How many passes of an image and a text are ahead, and how long they take at the speed of a few."""
    pairs = sum(len(item.texts) for item in items)
    what = _NAMES.get(candidates, f"re-ranking the best {candidates}")
    text = f"{what}: {pairs:,} passes of a text with an image, {len(items):,} images"
    if device.type != "cpu":
        per_pair = _seconds_per_pair(items, ability, device, compute)
        return text if per_pair is None else f"{text}; about {_ahead(pairs * per_pair / world, per_pair)}"
    most = max(items, key=lambda item: len(item.texts))
    alike = _of_one_length(most.texts, ability.reader)  # as most are computed: together with their like
    if len(alike) < 2:
        return text
    single = replace(most, texts=alike[:1])
    _seconds([single], ability, device, compute)  # kernels are loaded, weights move
    one = _seconds([single], ability, device, compute)
    further = max(1, min(_TIMED, int(_TIMED_SECONDS / one), len(alike) - 1))
    many = _seconds([replace(most, texts=alike[: 1 + further])], ability, device, compute)
    per_pair = max(many - one, 1e-6) / further
    return f"{text}; about {_ahead((len(items) * one + pairs * per_pair) / world, per_pair)}"


def _ahead(seconds: float, per_pair: float) -> str:
    return f"{_clock(seconds)} at {1 / per_pair:,.0f} a second"


def _seconds_per_pair(items: Sequence[Item], ability: Matches, device: torch.device, compute: Compute) -> float | None:
    """Of a card, for which a few texts are no more work than one: the difference between two batches, encoding of images included.

    Returns None where there are too few images to tell.
    """
    few = [replace(item, texts=item.texts[:_TEXTS_OF_A_CARD]) for item in items[: 4 * _IMAGES_OF_A_CARD]]
    count = len(few) // 4
    if not count:
        return None
    _seconds(few[:count], ability, device, compute)  # kernels are loaded, weights move
    batches = few[count : 2 * count], few[2 * count :]
    less, more = (_seconds(batch, ability, device, compute) for batch in batches)
    pairs = [sum(len(item.texts) for item in batch) for batch in batches]
    if pairs[1] <= pairs[0] or more <= less:
        return None
    return (more - less) / (pairs[1] - pairs[0])


def _of_one_length(texts: Sequence[str], reader: Reader) -> tuple[str, ...]:
    """The distinct texts of the commonest length in tokens."""
    groups: dict[int, list[str]] = {}
    for text in dict.fromkeys(texts):
        groups.setdefault(reader.length(Item(text=text)), []).append(text)
    commonest = max(groups, key=lambda length: len(groups[length]))
    return tuple(groups[commonest])


def _seconds(items: Sequence[Item], ability: Matches, device: torch.device, compute: Compute) -> float:
    import torch

    from beit3_bench.backbones.precision import arithmetic
    from beit3_bench.harness.engine.devices import to_device

    assert ability.module is not None
    ability.module.to(device).eval()
    batch = to_device(ability.reader.collate(items), device)
    start = time.perf_counter()
    with torch.inference_mode(), arithmetic(compute.dtype, device):
        ability.predict(batch)  # its values come to the CPU, so that they are there
    return time.perf_counter() - start


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
