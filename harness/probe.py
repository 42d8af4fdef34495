"""Probing: how much of ImageNet's classes lies in frozen image features, by k-nearest neighbours or a linear classifier."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.errors import BenchError
from beit3_bench.harness import card
from beit3_bench.harness.features import Features, KeepingSink
from beit3_bench.harness.fingerprint import data_fingerprint
from beit3_bench.harness.inputs import RunRequest, load_model, open_image_cache, read_examples, world_of
from beit3_bench.harness.provenance import provenance
from beit3_bench.harness.scoring import metric_values
from beit3_bench.tasks.base import Example, Scores, Task
from beit3_bench.tasks.imagenet import ranked_scores

if TYPE_CHECKING:
    import torch

METHODS = ("knn", "linear")
TRAIN, EVALUATED = "train", "val"


@dataclass(frozen=True)
class ProbeOptions:
    """method: of `METHODS`.  features: of `tasks.probing.FEATURES`.

    k, temperature: of the vote among neighbours (None = DINO's 20 and 0.07).
    strengths: candidates for C of the logistic regression; empty = `linear_probe.STRENGTHS`.
    """

    method: str = "knn"
    features: str = "embedding"
    k: int | None = None
    temperature: float | None = None
    strengths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Encoded:
    """Features of a split: float32 (n, D), labels int64 (n,); how many the store had and how many were computed."""

    examples: list[Example]
    features: np.ndarray
    labels: np.ndarray
    from_store: int
    computed: int


def probe(request: RunRequest, options: ProbeOptions) -> dict[str, Any]:
    """Encode train and val of ImageNet folders, classify val from train, and score.

    Args:
        request: its checkpoint, data root, device, dtype, batch size, workers, seed, features and image cache count; with
            ``limit``, that many images of either split, spread evenly over the classes.

    Returns:
        ``metrics`` as in `schema.Result`, and what they were made from and with.

    Raises:
        BenchError: bad input; see `read_examples`, `load_model`, `knn_ranks`, `fit_probe`.
    """
    import torch

    from beit3_bench.harness.devices import resolve_device
    from beit3_bench.tasks.probing import FEATURES

    if not request.checkpoint.is_file():
        raise BenchError(
            f"{request.checkpoint}: checkpoint not found; released files are listed by: beit3-bench models"
        )
    task = FEATURES[options.features](request.data_root)
    splits = {name: read_examples(task, name, request.limit) for name in (TRAIN, EVALUATED)}
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
    scores, chosen = _classify(train, val, len(task.classes()), options, device, request.seed)  # type: ignore[attr-defined]
    metrics, notes = metric_values(task, scores, request.seed)
    if chosen.get("C") in (tried := sorted(map(float, chosen.get("held_out_top1", ()))))[:1] + tried[-1:]:
        notes.append(f"C = {chosen['C']:g} is the end of those tried; try more with -C")
    return {
        "probe": options.method,
        "features": options.features,
        "metrics": metrics,
        "counts": scores.counts,
        "chosen": chosen,
        "notes": notes,
        "subset": {"limit": request.limit} if any(subset for _, subset in splits.values()) else None,
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
    from beit3_bench.harness.engine import MemoryStore, RowSink, predict_all

    memory = MemoryStore()
    served = store.serve(examples, memory) if store is not None else 0
    sink: RowSink = memory if store is None else KeepingSink(memory, store)
    facts = predict_all(
        task, model, examples, sink, device, request.dtype, request.batch_size, request.workers, request.compile
    )
    assert task.feature is not None
    features = np.stack([memory.rows[e.id][task.feature] for e in examples])
    return Encoded(examples, features, np.array([e.target for e in examples]), served, facts.samples)


def _classify(
    train: Encoded, val: Encoded, num_classes: int, options: ProbeOptions, device: torch.device, seed: int
) -> tuple[Scores, dict[str, Any]]:
    """Scores of val, and the settings that were chosen."""
    import torch

    from beit3_bench.tasks.metrics import knn, linear_probe
    from beit3_bench.tasks.metrics.topk import class_ranks

    gallery, queries = (torch.from_numpy(part.features).to(device) for part in (train, val))
    labels = torch.from_numpy(train.labels).to(device)
    chosen: dict[str, Any]
    if options.method == "knn":
        k, temperature = options.k or knn.NEIGHBOURS, options.temperature or knn.TEMPERATURE
        ranks = knn.knn_ranks(gallery, labels, queries, val.labels, num_classes, k, temperature)
        chosen = {"k": k, "temperature": temperature}
    else:
        strengths = options.strengths or linear_probe.STRENGTHS
        fitted = linear_probe.fit_probe(gallery, labels, num_classes, strengths, seed, _say)
        ranks = _ranks_in_blocks(fitted, queries, val.labels, class_ranks)
        chosen = {"C": fitted.strength, "held_out_top1": {f"{c:g}": value for c, value in fitted.held_out.items()}}
    counts = {"images": len(val.examples), "training images": len(train.examples), "classes": num_classes}
    return ranked_scores(ranks, val.examples, counts), chosen


def _ranks_in_blocks(fitted: Any, queries: torch.Tensor, labels: np.ndarray, class_ranks: Any) -> np.ndarray:
    size = 8192
    blocks: Sequence[int] = range(0, len(queries), size)
    return np.concatenate(
        [class_ranks(fitted.scores(queries[i : i + size]).cpu().numpy(), labels[i : i + size]) for i in blocks]
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)
