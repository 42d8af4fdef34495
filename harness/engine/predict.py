"""From examples to rows, and what to do when memory runs out.

`predict_all` takes the examples that the run folder does not hold yet, plans batches, lets worker processes decode and
pad them, asks the ability on the device, and stores every batch's rows before the next one counts as done. The same
rows come out for any batch size, number of workers and number of processes: bit for bit in float32 on CPUs whose products
are exact (`backbones.products`), to rounding on others and on GPUs.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from tqdm import tqdm  # of it only `write`, which leaves a bar as it is

from beit3_bench.backbones.abilities import Ability, checked_values
from beit3_bench.backbones.precision import arithmetic, full_float32
from beit3_bench.errors import BenchError
from beit3_bench.harness.console import painted
from beit3_bench.harness.engine.batches import Collated, dying_workers, load_batches
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.devices import (
    automatic_batch_size,
    compiling_pays,
    default_workers,
    failing_card,
    is_out_of_memory,
    memory_facts,
    to_device,
)
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.progress import Meter, Reporting
from beit3_bench.harness.record.rows import with_images
from beit3_bench.harness.termination import deferred, end_if_asked
from beit3_bench.tasks.contract import Example, Row, Split, Task
from beit3_bench.tasks.planning import plan_batches
from beit3_bench.text import in_words

MEASURED_BATCHES = 6
"""``--compile auto`` decides after so many."""


_SPENT = ("data_seconds", "compute_seconds", "write_seconds", "wall_seconds")
_SUMMED = (
    "samples", "samples_from_store", "images_decoded", "images_from_cache", "images_distinct", "images_encoded", "text_tokens",
    "text_tokens_real", "batches", "out_of_memory",
)  # fmt: skip


class RowSink(Protocol):
    """Where rows go: a run folder (`store.RunStore`), or a list in memory."""

    def done(self) -> set[str]:
        """Ids of the rows that are there."""

    def append(self, rows: Iterable[Row]) -> None:
        """Keep one batch of rows; under `rows.IMAGES`, the hashes of the image files that one was made from."""


class MemoryStore:
    """Rows in memory, where nothing has to outlive the process."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def done(self) -> set[str]:
        return set(self.rows)

    def append(self, rows: Iterable[Row]) -> None:
        self.rows.update((row["id"], row) for row in rows)


@dataclass
class Throughput:
    """What a prediction pass did; sums over processes, except times and memory, which are the slowest and the largest.

    data_seconds: waiting for decoded batches.  compute_seconds: copies, network and its host side.
    write_seconds: storing rows.  images_decoded, text_tokens: as computed; text_tokens_real: without padding.
    images_encoded: passes of an image through the network (a fusion encoder sees an image once per question).
    images_from_cache: taken from the cache of preprocessed images instead of being decoded.
    samples_from_store: rows that the feature store had; like resumed ones they are not among ``samples``.
    batch_size: the one in use at the end.
    gflop_per_sample, joules, energy_source: see `cost`; joules of the whole pass.
    """

    samples: int = 0
    resumed_samples: int = 0
    samples_from_store: int = 0
    images_decoded: int = 0
    images_from_cache: int = 0
    images_distinct: int = 0
    images_encoded: int = 0
    text_tokens: int = 0
    text_tokens_real: int = 0
    batches: int = 0
    batch_size: int = 0
    out_of_memory: int = 0
    data_seconds: float = 0.0
    compute_seconds: float = 0.0
    write_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_memory_bytes: int = 0
    peak_device_memory_bytes: int | None = None
    workers: int = 0
    processes: int = 1
    gflop_per_sample: dict[str, float] = field(default_factory=dict)
    joules: float | None = None
    energy_source: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def followed_by(self, later: Throughput) -> Throughput:
        """This pass and another one after it, as one."""
        total = Throughput(**asdict(later))
        for name in (*_SUMMED, *_SPENT):
            setattr(total, name, getattr(self, name) + getattr(later, name))
        total.resumed_samples = self.resumed_samples
        total.peak_memory_bytes = max(self.peak_memory_bytes, later.peak_memory_bytes)
        device = [p.peak_device_memory_bytes for p in (self, later) if p.peak_device_memory_bytes is not None]
        total.peak_device_memory_bytes = max(device) if device else None
        total.batch_size, total.workers = self.batch_size, self.workers
        total.gflop_per_sample = {**self.gflop_per_sample, **later.gflop_per_sample}
        return total

    @classmethod
    def merged(cls, parts: Sequence[Throughput]) -> Throughput:
        """One record for all processes."""
        total = cls(**asdict(parts[0]))
        for name in (*_SPENT, "peak_memory_bytes", "resumed_samples"):
            setattr(total, name, max(getattr(p, name) for p in parts))
        for name in _SUMMED:
            setattr(total, name, sum(getattr(p, name) for p in parts))
        total.batch_size = min(p.batch_size for p in parts)
        device = [p.peak_device_memory_bytes for p in parts if p.peak_device_memory_bytes is not None]
        total.peak_device_memory_bytes = max(device) if device else None
        total.processes = len(parts)
        return total


def _halve(batches: Sequence[list[Example]], size: int) -> list[list[Example]]:
    return [batch[i : i + size] for batch in batches for i in range(0, len(batch), size)]


def predict_all(
    task: Task,
    split: Split,
    ability: Ability,
    store: RowSink,
    device: torch.device,
    compute: Compute | None = None,
    reporting: Reporting | None = None,
    processes: Processes | None = None,
    hash_images: bool = False,
    title: str | None = None,
    meter: Meter | None = None,
) -> Throughput:
    """Predict every example whose row the run folder does not hold yet, and store the rows batch by batch.

    Args:
        ability: its network in eval mode, on any device; moved to ``device``. The reader has been prepared.
        compute: its device is ``device`` already.
        reporting: how progress is told on stderr; None = by a bar on a terminal, by lines elsewhere.
        processes: the group; each takes every world-th batch of the same plan, without padding or duplicates.
        hash_images: rows for ``store`` hold the hashes of their image files, too.
        title: of a pass within other work, whose bar goes when it is full; None = the task's name, as the whole work.
        meter: of work that this pass is a piece of, and which it advances; None = one of its own.

    Raises:
        BenchError: from reader or task (an image that does not decode, ...), weights or a single example that do not fit
            into memory, rows that are not finite, or a folder that cannot be written.
        DeviceFailed: the card failed; the batches so far are stored.
        Terminated: SIGTERM came; the batches so far are stored.
    """
    compute, reporting = compute or Compute(), reporting or Reporting()
    batch_size, workers = compute.batch_size, compute.workers
    processes = processes or Processes()
    started = time.perf_counter()
    size = (task.batch_size or automatic_batch_size(device, ability)) if batch_size == "auto" else int(batch_size)
    # What process 0 sees, so that all cut the same plan: a fast one may be writing when a slow one looks.
    done, size = processes.broadcast((store.done(), size))
    pending = [example for example in split.examples if example.id not in done]
    planned = plan_batches(pending, size, lambda example: ability.reader.length(task.item(example)))
    plan = planned[processes.rank :: processes.world]
    if workers is None:
        workers = default_workers(device, len(plan), processes.world)
    facts = Throughput(resumed_samples=len(done), batch_size=size, workers=workers, processes=processes.world)
    facts.images_distinct = len({path for batch in plan for e in batch for path in e.images})
    if plan:
        pass_ = _Pass(task, split, ability, store, device, compute, facts, hash_images)
        total = sum(map(len, plan))
        of = "" if processes.world == 1 else f", process 0 of {processes.world}"
        with (
            reporting.meter(f"{title or task.name}{of}", "sample", total, leave=title is None, shown=processes.first)
            if meter is None
            else nullcontext(meter) as shown,
            dying_workers(workers),
            failing_card(device),
            deferred(),
            # An object of the caller's computes as it likes.
            full_float32() if ability.module is not None else nullcontext(),
        ):
            pass_.over(plan, shown)
    facts.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    if device.type == "cuda":
        facts.peak_device_memory_bytes = torch.cuda.max_memory_allocated(device)
    facts.wall_seconds = time.perf_counter() - started
    return facts


def predict_together(
    task: Task,
    split: Split,
    ability: Ability,
    store: RowSink,
    device: torch.device,
    compute: Compute,
    reporting: Reporting,
    processes: Processes,
    **more: Any,
) -> Throughput:
    """`predict_all` on all processes, an error of one being that of all; what it took of them together."""

    def step() -> Throughput:
        return predict_all(task, split, ability, store, device, compute, reporting, processes, **more)

    return Throughput.merged(processes.gather(processes.together(step)))


class _Pass:
    """One pass over planned batches on one process."""

    def __init__(
        self,
        task: Task,
        split: Split,
        ability: Ability,
        store: RowSink,
        device: torch.device,
        compute: Compute,
        facts: Throughput,
        hash_images: bool,
    ):
        self.task, self.split, self.ability, self.store = task, split, ability, store
        self.device, self.facts, self.hash_images = device, facts, hash_images
        self.warned = False
        self.first_seconds = 0.0
        self.no_memory: BaseException | None = None
        if ability.module is not None:
            self._move(ability.module)
        self.may_compile = compute.compile == "auto"
        if compute.compile == "on":
            ability.compile()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.dtype = compute.dtype
        self.precision = arithmetic(compute.dtype, device)

    def _move(self, module: torch.nn.Module) -> None:
        try:
            with failing_card(self.device):
                module.to(self.device).eval()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size = in_words(sum(p.numel() * p.element_size() for p in module.parameters()))
            raise BenchError(
                f"not enough memory on {self.device} for the weights of {size} ({memory_facts(self.device, error)}); "
                "stop what else uses it, or use another --device"
            ) from error

    def over(self, plan: list[list[Example]], meter: Meter) -> None:
        """Predict and store all batches; where memory runs out, go on with halves from the batch that did not fit."""
        queue, workers = plan, self.facts.workers
        while queue:
            finished = 0
            clock = time.perf_counter()
            fits = True
            pin = self.device.type == "cuda"
            loader = load_batches(
                self.task, self.ability.reader, queue, min(workers, len(queue)), pin, self.hash_images
            )
            for collated in loader:
                clock = self._spent("data_seconds", clock)
                rows = self._predict(collated, queue[finished])
                clock = self._spent("compute_seconds", clock)
                if not finished:  # holds what is done once: kernels are loaded, weights move
                    self.first_seconds = self.facts.compute_seconds
                if rows is None:
                    fits = False
                    break
                self.store.append(with_images(rows, collated.images))
                clock = self._spent("write_seconds", clock)
                self._count(collated, queue[finished])
                meter.advance(len(queue[finished]))
                finished += 1
                end_if_asked()
                if self.may_compile and finished == MEASURED_BATCHES:
                    self._compile_if_it_pays(len(queue) - finished)
                    clock = time.perf_counter()
            if fits:
                return
            del loader, collated  # stops the workers and frees what they decoded ahead
            queue = self._smaller(queue[finished:])

    def _compile_if_it_pays(self, batches_left: int) -> None:
        """Once, after the first batches have shown how long one takes."""
        self.may_compile = False
        per_batch = (self.facts.compute_seconds - self.first_seconds) / (MEASURED_BATCHES - 1)
        if compiling_pays(self.device, self.dtype, per_batch * batches_left):
            self.ability.compile()

    def _predict(self, collated: Collated, examples: list[Example]) -> list[Row] | None:
        """Rows of a batch, checked; None where it does not fit into memory."""
        try:
            with torch.inference_mode(), self.precision:
                values = self.ability.predict(to_device(collated.batch, self.device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.no_memory = error.with_traceback(None)  # which holds what did not fit
            return None
        if len(values) != len(examples):
            raise RuntimeError(
                f"task {self.task.name}: the model gave {len(values)} values for {len(examples)} items of a batch"
            )
        values = checked_values(self.ability, values, [e.id for e in examples])
        rows = self.task.rows(examples, values, self.split, collated.ahead)
        if [row["id"] for row in rows] != [e.id for e in examples]:
            raise RuntimeError(f"task {self.task.name}: its rows have other ids than the examples of the batch")
        return rows

    def _smaller(self, rest: list[list[Example]]) -> list[list[Example]]:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()
        if len(rest[0]) == 1:
            facts = memory_facts(self.device, self.no_memory)
            smaller = "a smaller --image-size" if self.dtype != "fp32" else "--dtype bf16, a smaller --image-size"
            raise BenchError(
                f"example {rest[0][0].id}: not enough memory on {self.device} even for a batch of one ({facts}); "
                f"use {smaller}, or another --device"
            )
        self.facts.out_of_memory += 1
        self.facts.batch_size = len(rest[0]) // 2
        line = f"warning: not enough memory for a batch of {len(rest[0])}; going on with {self.facts.batch_size}"
        tqdm.write(painted(line, err=True), file=sys.stderr)
        return _halve(rest, self.facts.batch_size)

    def _spent(self, name: str, since: float) -> float:
        now = time.perf_counter()
        setattr(self.facts, name, getattr(self.facts, name) + now - since)
        return now

    def _count(self, collated: Collated, examples: list[Example]) -> None:
        batch = collated.batch
        self.facts.batches += 1
        self.facts.samples += len(examples)
        self.facts.images_encoded += sum(len(e.images) for e in examples)
        images = sum(
            len(value)
            for value in (batch.values() if isinstance(batch, dict) else ())
            if isinstance(value, torch.Tensor) and value.ndim == 4 and value.dtype == torch.uint8
        )
        images = images or len({path for e in examples for path in e.images})  # lists of images of any size
        self.facts.images_decoded += max(images - collated.from_cache, 0)
        self.facts.images_from_cache += collated.from_cache
        if collated.trouble and not self.warned:
            self.warned = True
            tqdm.write(painted(f"warning: {collated.trouble}", err=True), file=sys.stderr)
        ids, padding = batch.get("token_ids"), batch.get("padding_mask")
        if isinstance(ids, torch.Tensor):
            self.facts.text_tokens += ids.numel()
            real = ids.numel() if padding is None else int(padding.numel() - padding.bool().sum())
            self.facts.text_tokens_real += real
