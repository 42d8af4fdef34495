"""The facts of a run that are written down: configuration, fingerprints, model card, timing, result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.family import Model, ModelCard
from beit3_bench.backbones.released import find_released
from beit3_bench.harness.models import Located
from beit3_bench.harness.reading import Prepared
from beit3_bench.harness.record.fingerprints import (
    CODE,
    IMAGES_AND_LABELS,
    data_fingerprint,
    digest,
    names_file,
    option_fingerprints,
    source_fingerprint,
    weights_sha256,
)
from beit3_bench.harness.record.provenance import package_version, provenance
from beit3_bench.harness.record.schema import SCHEMA
from beit3_bench.harness.record.worlds import world_of
from beit3_bench.harness.request import RunRequest
from beit3_bench.tasks.contract import Split, Task
from beit3_bench.tasks.facts import read_facts
from beit3_bench.tasks.scores import Scores

if TYPE_CHECKING:
    from beit3_bench.harness.engine.predict import Throughput
    from beit3_bench.harness.record.schema import MetricValue


COMPILE_WORDS: dict[str, bool] = {"off": False, "on": True}
"""How a card writes ``--compile``; ``auto`` stands as it is."""


def setting_of(task: type[Task], card: ModelCard) -> str:
    """``"zero-shot"`` for a checkpoint that is known to be trained for something else, for a task that nobody trains on, and on data of
    one's own, which nobody is known to have trained on; else ``"fine-tuned"``.
    """
    names = read_facts(task.name).names
    if names is not None and "fine-tuned" not in names.regimes:
        return "zero-shot"
    return "fine-tuned" if card.trained_for in (None, task.name) and not task.own_data else "zero-shot"


def model_card(request: RunRequest, card: ModelCard) -> dict[str, Any]:
    """What was evaluated, for result.json."""
    return {
        "family": card.family,
        "preset": card.preset or "custom",
        "checkpoint": card.checkpoint,
        "sha256": card.sha256,
        "weight": card.weight,
        "image_size": card.image_size,
        "params": card.params,
        "protocol": card.protocol,
        "allow_missing": list(request.allow_missing),
    }


def card_of_file(request: RunRequest, located: Located) -> ModelCard:
    """What is known of a checkpoint that was not loaded."""
    released = find_released(located.path)
    return ModelCard(
        family=released.family if released else located.family.name if located.family else "",
        checkpoint=located.path.name,
        sha256="",
        preset=request.preset or (released.preset if released else None),
        weight=released.name if released else None,
        image_size=released.image_size if released else 0,
        trained_for=(released.task or "") if released else None,
    )


def options_in_force(task: Task, model: Model) -> dict[str, Any]:
    """The task's options, with what the family decided where it did."""
    return {name: model.card.resolved.get(name, value) for name, value in task.options_in_force().items()}


def fingerprints_of(task: Task, request: RunRequest, model: Model, split: Split) -> dict[str, str]:
    """What must be the same for two sets of rows to belong to one run; all that is read from a file enters by content.

    ``weights`` and ``seed`` are there where tensors are missing from the checkpoint: the seed decides their values.
    """
    random: dict[str, str] = {}
    if model.random and model.module is not None:
        random = {"weights": weights_sha256(model.module), "seed": str(request.seed)}
    return {
        "task": task.name,
        **model.identity.fingerprints(),
        **data_fingerprints(task, split),
        **option_fingerprints(options_in_force(task, model)),
        **({task.outputs: digest(list(split.labels))} if split.labels is not None else {}),
        **random,
        "dtype": request.compute.dtype,
        **({"corruption": request.corruption.fingerprint} if request.corruption else {}),
        "allow-missing": ",".join(request.allow_missing) or "none",
        "setting": request.setting or "default",
        "version": package_version(),
        CODE: source_fingerprint(type(task), type(model.ability), type(model.module)),
    }


def data_fingerprints(task: Task, split: Split) -> dict[str, str]:
    """``data``, and of a task whose texts are worded by the model's family, the same without them."""
    whole = {"data": data_fingerprint(split.examples, task.data_root)}
    if not task.prompted:
        return whole
    with_images = [e for e in split.examples if e.images]
    return {**whole, IMAGES_AND_LABELS: data_fingerprint(with_images, task.data_root)}


def resolved_config(
    prepared: Prepared, request: RunRequest, located: Located, model: Model, fingerprints: dict[str, str], device: str
) -> dict[str, Any]:
    """Everything that was decided, for config.json."""
    task, compute, second = prepared.task, request.compute, model.second
    tokenizer = model.companions.get("tokenizer")
    return {
        "schema": SCHEMA,
        "task": task.name,
        "split": prepared.split.name,
        "limit": request.limit,
        "subset": prepared.subset,
        "setting": request.setting or setting_of(type(task), model.card),
        "family": model.card.family,
        "source": located.name,
        "checkpoint": str(located.path.absolute()),
        "data_root": str(request.data_root.absolute()),
        "tokenizer": str(tokenizer.absolute()) if tokenizer else None,
        "options": {key: _plain(value) for key, value in options_in_force(task, model).items()},
        "given_options": _anywhere(task, request.options),
        "given": {"preset": request.preset, "image_size": request.image_size, "setting": request.setting},
        "preset": model.card.preset,
        "model": dict(model.card.settings),
        "preprocessing": dict(model.card.preprocessing),
        "allow_missing": list(request.allow_missing),
        "corrupt": request.corruption.label if request.corruption else None,
        "dtype": compute.dtype,
        "device": device,
        "compile": COMPILE_WORDS.get(compute.compile, compute.compile),
        "batch_size": compute.batch_size,
        "workers": compute.workers,
        "seed": request.seed,
        "fingerprints": fingerprints,
        **({"resolved_from": dict(request.resolved_from)} if request.resolved_from else {}),
        **({"second_pass": {"candidates": second.candidates, "adds_first": second.adds_first}} if second else {}),
    }


def _anywhere(task: Task, options: Mapping[str, str]) -> dict[str, str]:
    """Options as they were given, with files named so that they are found from any folder."""

    values = vars(task.options)

    def absolute(key: str, text: str) -> str:
        value = values.get(key.replace("-", "_"))
        return str(Path(text).absolute()) if names_file(value) or names_file(text) else text

    return {key: absolute(key, text) for key, text in options.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def timing(stages: Mapping[str, float], throughput: Throughput, total: float) -> dict[str, Any]:
    """Seconds per stage, speed and memory; speed is that of what was computed now."""
    seconds = {
        "read": stages.get("read", 0.0),
        "load": stages.get("load", 0.0),
        "features": stages.get("features", 0.0),
        "data": throughput.data_seconds,
        "compute": throughput.compute_seconds,
        "write": throughput.write_seconds,
        "score": stages.get("score", 0.0) + stages.get("intervals", 0.0),
        "total": total,
    }
    busy = throughput.wall_seconds or 1.0
    facts = throughput.to_dict()
    joules = facts.pop("joules")
    per_sample = None if joules is None or not throughput.samples else round(joules / throughput.samples, 6)
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "images_per_second": round((throughput.images_decoded + throughput.images_from_cache) / busy, 3),
        "samples_per_second": round(throughput.samples / busy, 3),
        **facts,
        "gflop_per_sample": {kind: round(value, 6) for kind, value in throughput.gflop_per_sample.items()},
        "joules_per_sample": per_sample,
        "energy_source": None if per_sample is None else throughput.energy_source,
    }


@dataclass
class Scored:
    """What scoring says; ``metrics`` and ``status`` as in `schema.Result`."""

    scores: Scores
    metrics: dict[str, MetricValue]
    notes: list[str]
    status: str


def result(
    prepared: Prepared, request: RunRequest, model: Model, config: Mapping[str, Any], scored: Scored
) -> dict[str, Any]:
    """The `schema.Result` of a run, all but its timing."""
    return {
        "schema": SCHEMA,
        "task": prepared.task.name,
        "split": config["split"],
        "metrics": scored.metrics,
        "counts": scored.scores.counts,
        "notes": scored.notes,
        "status": scored.status,
        "subset": prepared.subset,
        "data": prepared.data,
        "world": world_of(request.data_root),
        "corrupt": config["corrupt"],
        "setting": config["setting"],
        "model": model_card(request, model.card),
        "provenance": provenance(
            **{
                key: config[key]
                for key in ("seed", "dtype", "device", "compile", "data_root", "fingerprints", "options")
            },
            config=config["model"],
            preprocessing=config["preprocessing"],
            canary=config["fingerprints"]["preprocessing"],
            resized=dict(model.resized),
            missing=list(model.missing),
            unexpected=list(model.unexpected),
        ),
        "timing": {},
        "chance": scored.scores.chance,
    }


def empty_result(task: type[Task], split: str, request: RunRequest, located: Located, note: str) -> dict[str, Any]:
    """The `schema.Result` of a task whose optional stack is missing."""
    card = card_of_file(request, located)
    return {
        "schema": SCHEMA,
        "task": task.name,
        "split": split,
        "metrics": {},
        "counts": {},
        "notes": [note],
        "status": "not installed",
        "subset": None,
        "data": None,
        "world": world_of(request.data_root),
        "corrupt": request.corruption.label if request.corruption else None,
        "setting": request.setting or setting_of(task, card),
        "model": model_card(request, card),
        "provenance": provenance(seed=request.seed),
        "timing": {},
        "chance": None,
    }
