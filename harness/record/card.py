"""The facts of a run that are written down: configuration, fingerprints, model card, timing, result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.harness.inputs import RunRequest, tokenizer_file, world_of
from beit3_bench.harness.record.fingerprints import (
    CODE,
    data_fingerprint,
    digest,
    names_file,
    option_fingerprints,
    source_fingerprint,
    weights_sha256,
)
from beit3_bench.harness.record.provenance import package_version, provenance
from beit3_bench.harness.record.schema import SCHEMA
from beit3_bench.tasks.contract import Example, Task
from beit3_bench.tasks.scores import Scores

if TYPE_CHECKING:
    from beit3_bench.backbones.beit3.checkpoint import LoadedModel
    from beit3_bench.backbones.beit3.tokenizer import Tokenizer
    from beit3_bench.harness.engine.predict import Throughput
    from beit3_bench.harness.record.schema import MetricValue, ReadData


COMPILE_WORDS: dict[str, bool] = {"off": False, "on": True}
"""How a card writes ``--compile``; ``auto`` stands as it is."""


def setting_of(task: str, checkpoint: Path, metadata: Mapping[str, Any]) -> str:
    """``"zero-shot"`` for a checkpoint that is known to be trained for something else, else ``"fine-tuned"``."""
    from beit3_bench.backbones.released import find_released

    weight = find_released(checkpoint)
    trained_for = weight.task if weight is not None else metadata.get("task", task)
    return "fine-tuned" if trained_for == task else "zero-shot"


def model_card(request: RunRequest, loaded: LoadedModel | None) -> dict[str, Any]:
    """What was evaluated, for result.json."""
    from beit3_bench.backbones.released import find_released

    weight = find_released(request.checkpoint)
    return {
        "preset": (loaded.preset if loaded else request.preset or (weight.preset if weight else None)) or "custom",
        "checkpoint": request.checkpoint.name,
        "sha256": loaded.sha256 if loaded else "",
        "weight": weight.name if weight else None,
        "image_size": loaded.config.image_size if loaded else (weight.image_size if weight else 0),
        "params": sum(p.numel() for p in loaded.model.parameters()) if loaded else 0,
        "allow_missing": list(request.allow_missing),
    }


def fingerprints_of(
    task: Task, request: RunRequest, loaded: LoadedModel, tokenizer: Tokenizer | None, examples: Sequence[Example]
) -> dict[str, str]:
    """What must be the same for two sets of rows to belong to one run; all that is read from a file enters by content.

    ``weights`` and ``seed`` are there where tensors are missing from the checkpoint: the seed decides their values.
    """
    labels = task.labels()
    random: dict[str, str] = {}
    if request.allow_missing and loaded.report.missing:
        random = {"weights": weights_sha256(loaded.model), "seed": str(request.seed)}
    return {
        "task": task.name,
        "checkpoint": loaded.sha256,
        "model": digest({**loaded.config.to_dict(), **loaded.shape}),
        "data": data_fingerprint(examples, request.data_root),
        "preprocessing": loaded.preprocessing.canary_hash(),
        "tokenizer": tokenizer.fingerprint if tokenizer else "none",
        **option_fingerprints(vars(task.options)),
        **({task.outputs: digest(labels)} if labels is not None else {}),
        **random,
        "dtype": request.dtype,
        "allow-missing": ",".join(request.allow_missing) or "none",
        "setting": request.setting or "default",
        "version": package_version(),
        CODE: source_fingerprint(type(task), type(loaded.model)),
    }


def resolved_config(
    task: Task,
    split: str,
    request: RunRequest,
    loaded: LoadedModel,
    setting: str,
    subset: dict[str, int] | None,
    fingerprints: dict[str, str],
) -> dict[str, Any]:
    """Everything that was decided, for config.json."""
    return {
        "schema": SCHEMA,
        "task": task.name,
        "split": split,
        "limit": request.limit,
        "subset": subset,
        "setting": setting,
        "checkpoint": str(request.checkpoint.absolute()),
        "data_root": str(request.data_root.absolute()),
        "tokenizer": str(tokenizer_file(task, request).absolute()) if task.uses_text else None,
        "options": {key: _plain(value) for key, value in vars(task.options).items()},
        "given_options": _anywhere(task, request.options),
        "given": {"preset": request.preset, "image_size": request.image_size, "setting": request.setting},
        "preset": loaded.preset,
        "model": loaded.config.to_dict(),
        "preprocessing": loaded.preprocessing.to_dict(),
        "allow_missing": list(request.allow_missing),
        "dtype": request.dtype,
        "device": request.device,
        "compile": COMPILE_WORDS.get(request.compile, request.compile),
        "batch_size": request.batch_size,
        "workers": request.workers,
        "seed": request.seed,
        "fingerprints": fingerprints,
    }


def _anywhere(task: Task, options: Mapping[str, str]) -> dict[str, str]:
    """Options as they were given, with files named so that they are found from any folder."""

    def absolute(key: str, text: str) -> str:
        value = getattr(task.options, key.replace("-", "_"))
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
        "score": stages.get("score", 0.0),
        "total": total,
    }
    busy = throughput.wall_seconds or 1.0
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "images_per_second": round((throughput.images_decoded + throughput.images_from_cache) / busy, 3),
        "samples_per_second": round(throughput.samples / busy, 3),
        **throughput.to_dict(),
    }


def chance(task: Task, examples: Sequence[Example]) -> float | None:
    """What guessing scores on the headline metric, where the task says so."""
    guess = getattr(task, "chance", None)
    value = guess(examples) if guess is not None else None
    return None if value is None else float(value)


@dataclass
class Verdict:
    """What scoring says; ``metrics`` and ``status`` as in `schema.Result`."""

    scores: Scores
    metrics: dict[str, MetricValue]
    notes: list[str]
    status: str


def result(
    task: Task,
    request: RunRequest,
    loaded: LoadedModel,
    config: Mapping[str, Any],
    verdict: Verdict,
    examples: Sequence[Example],
    data: ReadData | None,
) -> dict[str, Any]:
    """The `schema.Result` of a run, all but its timing."""
    return {
        "schema": SCHEMA,
        "task": task.name,
        "split": config["split"],
        "metrics": verdict.metrics,
        "counts": verdict.scores.counts,
        "notes": verdict.notes,
        "status": verdict.status,
        "subset": config["subset"],
        "data": data,
        "world": world_of(request.data_root),
        "setting": config["setting"],
        "model": model_card(request, loaded),
        "provenance": provenance(
            **{
                key: config[key]
                for key in ("seed", "dtype", "device", "compile", "data_root", "fingerprints", "options")
            },
            config=config["model"],
            preprocessing=config["preprocessing"],
            canary=config["fingerprints"]["preprocessing"],
            resized=dict(loaded.report.resized),
            missing=list(loaded.report.missing),
            unexpected=list(loaded.report.unexpected),
        ),
        "timing": {},
        "chance": chance(task, examples),
    }


def empty_result(task: type[Task], split: str, request: RunRequest, note: str) -> dict[str, Any]:
    """The `schema.Result` of a task whose optional stack is missing."""
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
        "setting": request.setting or setting_of(task.name, request.checkpoint, {}),
        "model": model_card(request, None),
        "provenance": provenance(seed=request.seed),
        "timing": {},
        "chance": None,
    }
