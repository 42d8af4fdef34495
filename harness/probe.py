"""Probing: how much of ImageNet's classes lies in frozen image features, by k-nearest neighbours or a linear classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.file_kinds import checkpoint_file
from beit3_bench.harness.inputs import (
    RunRequest,
    first_examples,
    load_model,
    open_image_cache,
    read_split,
    world_of,
)
from beit3_bench.harness.record import card
from beit3_bench.harness.record.fingerprints import data_fingerprint
from beit3_bench.harness.record.provenance import provenance
from beit3_bench.harness.record.released import data_notes, read_data
from beit3_bench.harness.reuse.features import Features, KeepingSink
from beit3_bench.harness.scoring import metric_values
from beit3_bench.tasks.contract import Example, Row, Task
from beit3_bench.tasks.probing import FEATURES, Classifier

if TYPE_CHECKING:
    import torch

TRAIN, EVALUATED = "train", "val"


@dataclass(frozen=True)
class Encoded:
    """Rows of a split by id; how many the store had and how many were computed."""

    examples: list[Example]
    rows: dict[str, Row]
    from_store: int
    computed: int


def probe(request: RunRequest, features: str, classifier: Classifier) -> dict[str, Any]:
    """Encode train and val of ImageNet folders, classify val from train, and score.

    Args:
        request: its checkpoint, data root, device, dtype, batch size, workers, seed, features and image cache count; with
            ``limit``, that many images of either split, spread evenly over the classes.
        features: of `tasks.probing.FEATURES`.

    Returns:
        ``metrics`` as in `schema.Result`, and what they were made from and with.

    Raises:
        BenchError: bad input; see `read_examples`, `load_model`, `ImageEmbeddings.fit`.
    """
    import torch

    from beit3_bench.harness.engine.devices import resolve_device

    request = replace(request, checkpoint=checkpoint_file(request.checkpoint))
    task = FEATURES[features](request.data_root)
    whole = {name: read_split(task, name) for name in (TRAIN, EVALUATED)}
    data = {name: read_data(task, name, examples) for name, examples in whole.items()}
    splits = {name: first_examples(task, examples, request.limit) for name, examples in whole.items()}
    device = resolve_device(request.device)
    torch.manual_seed(request.seed)
    loaded = load_model(task, request)
    task.bind(loaded.preprocessing, None)
    task.image_cache = open_image_cache(request.image_cache, loaded.preprocessing)
    store = None
    if request.features is not None:
        store = Features(request.features, task, loaded, device, request.dtype, request.compile)
    try:
        train, val = (_encode(task, loaded.model, splits[n][0], request, device, store) for n in (TRAIN, EVALUATED))
    finally:
        if store is not None:
            store.close()
    chosen = task.fit(train.rows, train.examples, classifier, device, request.seed)
    scores = task.score(val.rows, val.examples)
    metrics, notes = metric_values(task, scores, request.seed)
    for name in (TRAIN, EVALUATED):
        notes += [f"split {name}: {line}" for line in data_notes(task, name, data[name])]
    if chosen.get("C") in (tried := sorted(map(float, chosen.get("held_out_top1", ()))))[:1] + tried[-1:]:
        notes.append(f"C = {chosen['C']:g} is the end of those tried; try more with -C")
    return {
        "probe": classifier.method,
        "features": features,
        "metrics": metrics,
        "counts": scores.counts,
        "chosen": chosen,
        "notes": [*loaded.report.notes, *notes],
        "subset": {"limit": request.limit} if any(subset for _, subset in splits.values()) else None,
        "data": data,
        "world": world_of(request.data_root),
        "model": card.model_card(request, loaded),
        "features_from_store": train.from_store + val.from_store,
        "features_computed": train.computed + val.computed,
        "provenance": provenance(
            seed=request.seed,
            dtype=request.dtype,
            device=str(device),
            data_root=str(request.data_root.absolute()),
            data={name: data_fingerprint(found, request.data_root) for name, (found, _) in splits.items()},
            preprocessing=loaded.preprocessing.to_dict(),
            config=loaded.config.to_dict(),
        ),
    }


def _encode(
    task: Task,
    model: torch.nn.Module,
    examples: list[Example],
    request: RunRequest,
    device: torch.device,
    store: Features | None,
) -> Encoded:
    from beit3_bench.harness.engine.predict import MemoryStore, RowSink, predict_all

    memory = MemoryStore()
    served = store.serve(examples, memory) if store is not None else 0
    sink: RowSink = memory if store is None else KeepingSink(memory, store)
    facts = predict_all(
        task, model, examples, sink, device, request.dtype, request.batch_size, request.workers, request.compile
    )
    return Encoded(examples, memory.rows, served, facts.samples)
