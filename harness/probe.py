"""Probing: how much of ImageNet's classes lies in frozen image features, by k-nearest neighbours or a linear classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.family import Model
from beit3_bench.harness.models import Located, load_model
from beit3_bench.harness.reading import Prepared, prepare
from beit3_bench.harness.record import card
from beit3_bench.harness.record.fingerprints import data_fingerprint
from beit3_bench.harness.record.provenance import provenance
from beit3_bench.harness.record.worlds import world_of
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.reuse.features import Features, KeepingSink
from beit3_bench.harness.scoring import metric_values
from beit3_bench.tasks.contract import Row
from beit3_bench.tasks.probing import Classifier, ImageEmbeddings, fit

if TYPE_CHECKING:
    import torch

TRAIN, EVALUATED = "train", "val"


@dataclass(frozen=True)
class Encoded:
    """Rows of a split by id; how many the store had and how many were computed."""

    prepared: Prepared
    rows: dict[str, Row]
    from_store: int
    computed: int


def probe(request: RunRequest, features: str, classifier: Classifier) -> dict[str, Any]:
    """Encode train and val of ImageNet folders, classify val from train, and score.

    Args:
        request: its checkpoint, data root, device, dtype, batch size, workers, seed, features and image cache count; with
            ``limit``, that many images of either split, spread evenly over the classes.
        features: ``"embedding"`` or ``"patches"``, see `tasks.probing.ImageEmbeddings`.

    Returns:
        ``metrics`` as in `schema.Result`, and what they were made from and with.

    Raises:
        BenchError: bad input; see `reading.prepare`, `models.load_model`, `tasks.probing.fit`.
    """
    import torch

    from beit3_bench.harness.engine.devices import resolve_device

    device = resolve_device(request.compute.device, dtype=request.compute.dtype)
    task = ImageEmbeddings(request.data_root, {"features": features})
    located = Located.of(request.checkpoint)
    splits = {name: prepare(task, name, request.limit) for name in (TRAIN, EVALUATED)}
    torch.manual_seed(request.seed)
    model = load_model(located, task, splits[TRAIN].split, request)
    model.ability.make_ready(device, request.compute.compile == "on")
    store = None
    if request.features is not None:
        store = Features(request.features, task, model, device, request.compute)
    try:
        train, val = (_encode(splits[name], model, request, device, store) for name in (TRAIN, EVALUATED))
    finally:
        if store is not None:
            store.close()
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
            data={n: data_fingerprint(prepared.split.examples, request.data_root) for n, prepared in splits.items()},
            preprocessing=dict(model.card.preprocessing),
            config=dict(model.card.settings),
        ),
    }


def _encode(
    prepared: Prepared, model: Model, request: RunRequest, device: torch.device, store: Features | None
) -> Encoded:
    from beit3_bench.harness.engine.predict import MemoryStore, RowSink, predict_all

    memory = MemoryStore()
    served = store.serve(prepared.split.examples, memory) if store is not None else 0
    sink: RowSink = memory if store is None else KeepingSink(memory, store)
    facts = predict_all(prepared.task, prepared.split, model.ability, sink, device, request.compute, request.reporting)
    return Encoded(prepared, memory.rows, served, facts.samples)
