"""Probing: how much of ImageNet's classes lies in frozen image features, by k-nearest neighbours or a linear classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.family import Model
from beit3_bench.harness.clock import Clock
from beit3_bench.harness.engine.predict import MemoryStore, RowSink, Throughput, predict_all
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.first_pass import serve
from beit3_bench.harness.models import Located
from beit3_bench.harness.reading import Prepared, prepare
from beit3_bench.harness.record import card
from beit3_bench.harness.record.fingerprints import data_fingerprint
from beit3_bench.harness.record.provenance import provenance
from beit3_bench.harness.record.worlds import world_of
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.reuse.features import KeepingSink
from beit3_bench.harness.scoring import metric_values
from beit3_bench.harness.session import load
from beit3_bench.tasks.contract import Row
from beit3_bench.tasks.probing import Classifier, ImageEmbeddings, fit

if TYPE_CHECKING:
    import torch

TRAIN, EVALUATED = "train", "val"
_AT_ONCE = 8192
"""Rows of a process on their way to the first one."""


class _Divided(MemoryStore):
    """Rows in memory, of which every process has a part."""

    def __init__(self, processes: Processes):
        super().__init__()
        self.processes = processes

    def done(self) -> set[str]:
        """Ids of the rows of all processes, which all ask together."""
        return set().union(*self.processes.gather(super().done()))


@dataclass(frozen=True)
class Encoded:
    """Rows of a split by id, on the first process; how many the store had and how many were computed, on all together."""

    rows: dict[str, Row]
    from_store: int
    computed: int


def probe(
    request: RunRequest, features: str, classifier: Classifier, processes: Processes | None = None
) -> dict[str, Any]:
    """Encode train and val of ImageNet folders, classify val from train, and score.

    Images are encoded by all processes. The first one fits the classifier; the others leave then, so that nobody waits for it.

    Args:
        request: its checkpoint, data root, device, dtype, batch size, workers, seed, features and image cache count; with
            ``limit``, that many images of either split, spread evenly over the classes.
        features: ``"embedding"`` or ``"patches"``, see `tasks.probing.ImageEmbeddings`.

    Returns:
        ``metrics`` as in `schema.Result`, and what they were made from and with; empty on other processes than the first.

    Raises:
        BenchError: bad input; see `reading.prepare`, `models.load_model`, `tasks.probing.fit`.
    """
    processes, clock = processes or Processes(), Clock()
    processes.together(lambda: request.compute.check(processes))
    located = processes.together(lambda: Located.of(request.checkpoint))
    task = ImageEmbeddings(request.data_root, {"features": features})
    splits = {
        name: processes.together(lambda name=name: prepare(task, name, request.limit))  # type: ignore[misc]
        for name in (TRAIN, EVALUATED)
    }
    model, device = processes.together(lambda: load(request, located, splits[TRAIN], processes, clock))
    model.ability.make_ready(device, request.compute.compile == "on")
    data = {n: data_fingerprint(prepared.split.examples, request.data_root) for n, prepared in splits.items()}
    processes.agree({**model.identity.fingerprints(), **data}, "what the probe stands on")
    train, val = (_encode(splits[name], model, request, device, processes) for name in (TRAIN, EVALUATED))
    if not processes.first:
        return {}
    classes = len(task.classes())
    fitted = fit(train.rows, splits[TRAIN].split, classes, classifier, device, request.seed)
    scores, chosen = fitted.score(val.rows, splits[EVALUATED].split), fitted.chosen
    metrics, notes = metric_values(task, scores, request.seed)
    for name, prepared in splits.items():
        notes += [f"split {name}: {line}" for line in prepared.notes]
    if chosen.get("C") in (tried := sorted(map(float, chosen.get("held_out_top1", ()))))[:1] + tried[-1:]:
        notes.append(f"C = {chosen['C']:g} is the end of those tried; try more with -C")
    return {
        "probe": classifier.method,
        "features": features,
        "metrics": metrics,
        "counts": scores.counts,
        "chosen": chosen,
        "notes": [*model.notes, *notes],
        "subset": {"limit": request.limit} if any(prepared.subset for prepared in splits.values()) else None,
        "data": {name: prepared.data for name, prepared in splits.items()},
        "world": world_of(request.data_root),
        "model": card.model_card(request, model.card),
        "features_from_store": train.from_store + val.from_store,
        "features_computed": train.computed + val.computed,
        "provenance": provenance(
            seed=request.seed,
            dtype=request.compute.dtype,
            device=str(device),
            data_root=str(request.data_root.absolute()),
            data=data,
            preprocessing=dict(model.card.preprocessing),
            config=dict(model.card.settings),
        ),
    }


def _encode(
    prepared: Prepared, model: Model, request: RunRequest, device: torch.device, processes: Processes
) -> Encoded:
    """Embed a split: take what the feature store has, and compute the rest, on all processes."""
    memory = _Divided(processes)
    sink: RowSink = memory
    features, served = None, 0
    if request.features is not None:
        features, served = serve(request, prepared, model, memory, device, processes)
        sink = KeepingSink(memory, features)
    try:
        part = processes.together(
            lambda: predict_all(
                prepared.task,
                prepared.split,
                model.ability,
                sink,
                device,
                request.compute,
                request.reporting,
                processes,
            )
        )
    finally:
        if features is not None:
            features.close()
    computed = Throughput.merged(processes.gather(part)).samples
    return Encoded(_collected(memory.rows, processes), served, computed)


def _collected(rows: dict[str, Row], processes: Processes) -> dict[str, Row]:
    """The rows of all processes, on the first one; blocks are on their way at a time."""
    if processes.world == 1:
        return rows
    mine = list(rows.values())
    whole: dict[str, Row] = {}
    for start in range(0, max(processes.gather(len(mine))), _AT_ONCE):
        for block in processes.gather(mine[start : start + _AT_ONCE]):
            if processes.first:
                whole.update((row["id"], row) for row in block)
    return whole
