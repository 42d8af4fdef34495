"""A run that stops when its number is precise enough (`run --until-ci`): an estimate from clusters in random order.

Whole clusters are drawn (all questions of an image), in an order that the seed and their names decide, whatever the order of the files.
After numbers of them that the split alone decides, process 0 looks at the interval of the headline (`tasks.metrics.sequential`), and tells
the others whether to go on. Rows do not depend on what else was asked, so that the same clusters make the same estimate for any batch
size and number of processes, after a kill, and in a folder that holds other rows of the split, too.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.harness.console import echo
from beit3_bench.harness.draw import Draw, estimate_of
from beit3_bench.harness.evidence.rescore import stored_rows, using_rows_of
from beit3_bench.harness.reading import Prepared
from beit3_bench.harness.record.folder import RESULT
from beit3_bench.harness.record.results import read_result
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.scoring import headline
from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.metrics.sequential import look_bound, ratio_interval

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.family import Model
    from beit3_bench.harness.engine.predict import RowSink, Throughput
    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.record.schema import Result, Subset


# ---- may it stop? -------------------------------------------------------------------------------------------------------


def check_width(request: RunRequest, task: Task) -> None:
    """Raise for a width that cannot be asked for, before anything is read.

    Raises:
        BenchError: no number above 0; beside ``--limit``; a task whose headline is no mean over samples.
    """
    width, first = request.until_ci, headline(task)
    if width is None:
        return
    if not isinstance(width, (int, float)) or not math.isfinite(width) or not 0 < width <= 100:
        raise BenchError(f"--until-ci {width}: give a width in points, above 0 and at most 100")
    if request.limit is not None:
        raise BenchError(
            "--until-ci draws from the whole split, and --limit takes its first examples; leave out one of them"
        )
    if first.ratio is None:
        raise BenchError(
            f"--until-ci: task {task.name} cannot stop early, its headline {first.name} {first.no_ratio}; leave it out"
        )


def check_truth(split: Split, task: Task) -> None:
    """Raise for a split that cannot be scored.

    Raises:
        BenchError: examples without truth.
    """
    if any(example.target is None for example in split.examples):
        raise BenchError(
            f"--until-ci: the truth of split {split.name!r} of task {task.name} is not there, and without a number there is no "
            "interval; leave it out"
        )


# ---- stopping -----------------------------------------------------------------------------------------------------------


def settled(request: RunRequest, store: RunStore) -> Result | None:
    """The result of a finished folder, where it is what is asked for: the whole, or an estimate that is precise enough. An estimate
    that the run goes on from is taken out of the folder; its rows stay.
    """
    if not store.finished:
        return None
    result = read_result(store.folder / RESULT)
    estimate = estimate_of(result["subset"])
    if estimate is None:
        return result
    if request.until_ci is not None and request.seed == estimate["seed"]:
        first = next(metric for metric in result["metrics"].values() if metric["headline"])
        low, high = first["ci95"] or (-math.inf, math.inf)
        reached = (high - low) * (100 if first["unit"] == "fraction" else 1)
        if min(reached, estimate["width"]) <= request.until_ci:
            return result
    store.reopen()
    return None


class Looks:
    """What process 0 sees of a run as it grows: every row is scored once.

    store: the run folder.
    """

    def __init__(self, task: Task, draw: Draw, store: RunStore):
        self.task, self.draw, self.store = task, draw, store
        self.metric = task.headline(draw.split)
        self.seen = 0
        self._always: dict[str, Row] | None = None
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def look(self, clusters: int) -> tuple[float, float]:
        """The interval of the headline over the first so many clusters, as fractions; more than at the last look."""
        draw, task = self.draw, self.task
        if self._always is None:
            self._always = stored_rows(self.store, task, draw.split.of(draw.examples(0, 0)), part=True)
        rows = stored_rows(self.store, task, draw.split.of(draw.examples(self.seen, clusters, always=False)), part=True)
        with using_rows_of(task, self.store):
            table = task.score({**self._always, **rows}, draw.split.of(draw.examples(self.seen, clusters))).table
            if table is None or self.metric.ratio is None or len(table.ids) != clusters - self.seen:
                raise BenchError(
                    f"task {task.name}: its table has other clusters than its examples; it cannot stop early"
                )
            self._parts.append(self.metric.ratio(table.columns))
        self.seen = clusters
        y, m = (np.concatenate(values) for values in zip(*self._parts, strict=True))
        return ratio_interval(y, m, len(draw.clusters), look_bound(draw.looks))


def predict_until(
    request: RunRequest,
    prepared: Prepared,
    model: Model,
    store: RunStore,
    sink: RowSink,
    device: torch.device,
    processes: Processes,
) -> tuple[Throughput, Prepared]:
    """Make rows until the headline's interval is narrower than the width that is asked for, or the split is at its end.

    Returns:
        What it took (of all processes), and what is to be scored.
    """
    from beit3_bench.harness.engine.predict import predict_together

    assert request.until_ci is not None
    task, width, compute = prepared.task, request.until_ci, request.compute
    draw = Draw.of(task, prepared.split, request.seed)
    done = processes.broadcast(store.done())
    left = math.ceil(sum(example.id not in done for example in prepared.split.examples) / processes.world)
    if processes.first and len(draw.looks) == 1:
        echo(
            f"--until-ci: {len(draw.clusters):,} clusters (such as the questions of an image) are too few, or of too different sizes, "
            "to stop before the end of the split",
            err=True,
        )
    looks = Looks(task, draw, store)
    total: Throughput | None = None
    title = task.name if processes.world == 1 else f"{task.name}, process 0 of {processes.world}"
    with request.reporting.meter(title, "sample", left, shown=processes.first) as meter:
        begin = 0
        for clusters in draw.looks:
            examples = prepared.split.of(draw.examples(begin, clusters))

            part = predict_together(
                *(task, examples, model.ability, sink, device, compute, request.reporting, processes),
                hash_images=True,
                meter=meter,
            )
            if part.out_of_memory:
                compute = dataclasses.replace(compute, batch_size=part.batch_size)
            total = part if total is None else total.followed_by(part)
            if clusters == len(draw.clusters):
                break
            low, high = processes.broadcast(processes.on_first(lambda end=clusters: looks.look(end)))  # type: ignore[misc]
            points = 100 * (high - low)
            meter.show(width=f"{points:.2f} of {width:g}")
            if points < width:
                subset: Subset = {"estimate": draw.estimate(clusters, width)}
                return total, dataclasses.replace(prepared, split=draw.part(clusters), subset=subset)
            begin = clusters
    assert total is not None
    if processes.first and len(draw.looks) > 1:
        echo(f"--until-ci: the interval was not narrower than {width:g} points before the end of the split", err=True)
    return total, prepared
