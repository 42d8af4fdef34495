"""Fine-tuning a segmentor with mmengine's Runner, from official weights, and writing what `run` reads.

The output folder holds ``best.pth`` (weights of the best validation, and what belongs to them), ``mmseg_config.py`` (for
mmseg's own tools: ``init_model("mmseg_config.py", "best.pth")``), ``training.json`` (what was decided), mmengine's log and
scalars in a folder by time, and its last two states, from which a training is resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from beit3_bench.backbones.beit3.checkpoint import PRESETS, config_from_tensors
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.plan import NET
from beit3_bench.backbones.beit3.detection.plan import tower_of as detector_tower
from beit3_bench.backbones.beit3.mmseg_adapter.loading import SETTINGS_KEY, load_segmentor, save_segmentor
from beit3_bench.backbones.beit3.mmseg_adapter.mmseg_config import config_dict
from beit3_bench.backbones.beit3.mmseg_adapter.resuming import VALIDATED, Watching, placed
from beit3_bench.backbones.beit3.mmseg_adapter.settings import SegmentationSettings
from beit3_bench.backbones.beit3.mmseg_adapter.tower import load_official
from beit3_bench.backbones.checkpoints import Checkpoint, read_checkpoint
from beit3_bench.backbones.environment import announced_processes, loading_tensors_only
from beit3_bench.backbones.training import Watcher
from beit3_bench.errors import BenchError
from beit3_bench.files import make_folder, read_limited, refuse_link, write_atomic

BEST, CONFIG, JOB, LAST = "best.pth", "mmseg_config.py", "training.json", "last_checkpoint"
_MADE = re.compile(r"iter_\d+\.pth|\d{8}_\d{6}(\.py)?|\..*\.part")  # states, and logs and configs by time
TOWER_FIELDS = (
    "image_size",
    "patch_size",
    "embed_dim",
    "num_heads",
    "ffn_dim",
    "depth",
    "shared_attention",
    "layer_norm_eps",
)
"""What the vision tower alone is made of."""


@dataclass(frozen=True)
class TrainingJob:
    """One training.

    settings: ``batch`` is that of one forward pass on one process.  accumulate: forward passes per optimizer step.
    source: the checkpoint to start from, or None.  metadata: what the result carries beside its settings.
    validate_steps: steps between validations, 0 = at the end only.  save_steps: between saved states, 0 = as validations.
    watcher: is told of steps and scores, and asked whether to end.
    """

    settings: SegmentationSettings
    data_root: Path
    output: Path
    source: Checkpoint | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    device: str = "auto"
    dtype: str = "fp32"
    workers: int = 0
    seed: int = 0
    resume: bool = False
    validate_steps: int = 0
    save_steps: int = 0
    log_steps: int = 50
    watcher: Watcher = field(default=Watcher(), repr=False)


# ---- what it starts from ---------------------------------------------------------------------------------------------


def tower_of(source: Checkpoint, preset: str | None) -> dict[str, Any]:
    """The fields of the tower's configuration that a checkpoint was made with.

    Raises:
        BenchError: not a BEiT-3, or not the preset's.
    """
    origin = str(source.path)
    if SETTINGS_KEY in source.metadata:
        config = SegmentationSettings.from_dict(source.metadata[SETTINGS_KEY], origin).config()
    elif "config" in source.metadata:
        config = BEiT3Config.from_dict(source.metadata["config"], origin)
    elif any(name.startswith(NET) for name in source.tensors):  # a segmentor of mmseg's own tools
        heads = BEiT3Config.preset(preset).num_heads if preset else None
        config = detector_tower(source.tensors, origin, heads)
    else:
        config = config_from_tensors(source.tensors, origin, preset)
    if preset is not None and preset != "tiny" and config.embed_dim != PRESETS[preset]["embed_dim"]:
        raise BenchError(
            f"{origin}: is {config.embed_dim} wide, preset {preset} is {PRESETS[preset]['embed_dim']}; give the right --preset"
        )
    return {name: getattr(config, name) for name in TOWER_FIELDS}


def initialise(model: torch.nn.Module, source: Checkpoint | None) -> dict[str, Any]:
    """Load what a checkpoint has for this model: official vision weights, or a whole segmentor (of another data set, say).

    Returns:
        what was done, in plain values.
    """
    if source is None:
        return {"checkpoint": None, "sha256": None, "missing": [], "unexpected": [], "resized": {}}
    if any(name.startswith("decode_head.") for name in source.tensors):
        # The classifier and its query embeddings belong to the old classes and to the old number of queries.
        fitting = ("decode_head.cls_embed.*", "decode_head.query_*", "*.num_batches_tracked")
        tensors = {
            n: v
            for n, v in source.tensors.items()
            if not n.startswith("decode_head.cls_embed.") or len(v) == model.num_classes + 1
        }
        report = load_segmentor(model, tensors, str(source.path), fitting)
    else:
        report = load_official(model.backbone.net, source.tensors, str(source.path))
    return {
        "checkpoint": source.path.name,
        "sha256": source.sha256,
        "missing": list(report.missing),
        "unexpected": list(report.unexpected),
        "resized": dict(report.resized),
    }


# ---- the folder ------------------------------------------------------------------------------------------------------


def open_output(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make the folder; an earlier training in it must be meant.

    Raises:
        BenchError: an earlier training and neither resume nor overwrite, nothing to resume, somebody else's folder, or a link
            in it.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        refuse_link(path)
    if resume and not (folder / LAST).is_file():
        raise BenchError(f"{folder}: no training to resume here; leave out --resume, or give its folder with --output")
    there = sorted(p.name for p in folder.iterdir() if p.name != "lock") if folder.is_dir() else []
    ours = [name for name in there if name in (BEST, CONFIG, JOB, LAST, VALIDATED)]
    if there and not ours:
        raise BenchError(f"{folder}: holds something else ({', '.join(there[:3])}); give a new folder with --output")
    if ours and not (resume or overwrite):
        raise BenchError(
            f"{folder}: holds a training already; go on with --resume, discard it with --overwrite, or give another --output"
        )
    if ours and not resume:
        for path in folder.iterdir():
            if path.name in ours or _MADE.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    make_folder(folder)
    if resume:  # mmengine writes these in place: not into the other names that a file may have (hard links)
        for path in (folder / LAST, folder / CONFIG):
            if path.is_file() and path.stat().st_nlink > 1:
                write_atomic(path, path.read_bytes())


def resumable_state(folder: Path) -> Path:
    """mmengine's last state in a folder, once it is known to hold plain values only.

    Raises:
        BenchError: missing, damaged, or a file that asks to run something.
    """
    named = read_limited(folder / LAST, 4096).decode("utf-8", "replace").strip()
    path = folder / Path(named).name  # beside it, wherever the folder was when it was written
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a damaged file; each means the same to the user
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        line = f"asks to run {culprit[1]}" if culprit else "damaged"
        raise BenchError(
            f"{path}: not a whole training state of plain values ({line}); start again with --overwrite"
        ) from error
    return path


def decided(job: TrainingJob) -> dict[str, Any]:
    """What has to be the same for a training to be resumed."""
    settings = {k: v for k, v in job.settings.to_dict().items() if k not in ("checkpoint_activations", "batch")}
    return {
        "settings": settings,
        "samples_per_step": job.settings.batch * job.accumulate * announced_processes(),
        "seed": job.seed,
        "dtype": job.dtype,
        "start": job.metadata.get("start"),
    }


def resumed_settings(job: TrainingJob) -> SegmentationSettings:
    """The job's settings, but for those that its state was trained without: they keep what they stood for then."""
    stored = _stored_job(job.output)
    known = stored.get("settings", {}) if isinstance(stored, Mapping) else {}
    later = [f for f in fields(SegmentationSettings) if f.name not in known]
    return job.settings.replace(
        **{f.name: f.default for f in later if f.name not in ("batch", "checkpoint_activations")}
    )


def _stored_job(folder: Path) -> Any:
    path = folder / JOB
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: cannot be read ({error}); start again with --overwrite") from error


def check_same(job: TrainingJob) -> None:
    """Raise if the folder's training was made with other settings; names what differs.

    Raises:
        BenchError: the first differences as "key old -> new".
    """
    path, stored = job.output / JOB, _stored_job(job.output)
    now = json.loads(json.dumps(decided(job)))
    flat = [{**{k: v for k, v in d.items() if k != "settings"}, **d.get("settings", {})} for d in (stored, now)]
    differing = [f"{k} {flat[0].get(k)} -> {flat[1].get(k)}" for k in flat[1] if flat[0].get(k) != flat[1][k]]
    if differing:
        first = ", ".join(differing[:5])
        raise BenchError(
            f"{path}: was made with other settings ({first}); give the old ones, or start again with --overwrite"
        )


# ---- training --------------------------------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Numpy's numbers as Python's, in nested containers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return type(value)(_plain(v) for v in value) if type(value) in (list, tuple) else value


class KeepBest(Hook):
    """After each validation: write the best weights so far."""

    def __init__(self, job: TrainingJob, metadata: Mapping[str, Any], best: dict[str, Any] | None) -> None:
        self.job, self.metadata, self.best = job, metadata, best

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Leave plain values only, so that a state can be read without running anything: no history of scalars."""
        hub = checkpoint["message_hub"]
        info = {k: v for k, v in _plain(dict(hub["runtime_info"])).items() if type(v) in (str, int, float)}
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": info, "resumed_keys": {}}
        for name in ("meta", "optimizer", "param_schedulers"):
            checkpoint[name] = _plain(checkpoint.get(name))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        value = float((metrics or {})["mIoU"]) / 100
        step = runner.iter // self.job.accumulate
        if self.best is not None and not value > self.best["value"]:
            return
        self.best = {"metric": "mIoU", "value": value, "step": step}
        if runner.rank == 0:
            model = getattr(runner.model, "module", runner.model)
            save_segmentor(
                self.job.output / BEST, model, self.job.settings, {**self.metadata, "step": step, "best": self.best}
            )


class StopAtNaN(Hook):
    """Stops where the loss is no number any more."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        loss = (outputs or {}).get("loss")
        if loss is not None and batch_idx % 10 == 0 and not torch.isfinite(loss).all():
            raise BenchError(
                f"the loss is not finite at step {runner.iter}; use a lower lr, --dtype bf16, or clip_grad"
            )


def training_config(job: TrainingJob) -> Config:
    """The Runner's config."""
    settings = job.settings
    validate = job.validate_steps or settings.steps
    content = config_dict(settings, str(job.data_root), job.workers, validate * job.accumulate)
    content["train_cfg"]["max_iters"] *= job.accumulate
    for rate in content["param_scheduler"]:
        rate.update(begin=rate["begin"] * job.accumulate, end=rate["end"] * job.accumulate)
    wrapper = content["optim_wrapper"]
    wrapper["accumulative_counts"] = job.accumulate
    if job.dtype != "fp32":
        wrapper.update(type="AmpOptimWrapper", dtype={"bf16": "bfloat16", "fp16": "float16"}[job.dtype])
    if not torch.cuda.is_available():
        content["env_cfg"]["dist_cfg"] = {"backend": "gloo"}
    content["train_dataloader"] = placed(content["train_dataloader"], job.seed, job.watcher)
    hooks = content["default_hooks"]
    hooks["checkpoint"] = {
        "type": "CheckpointHook",
        "by_epoch": False,
        "interval": (job.save_steps or validate) * job.accumulate,
        "max_keep_ckpts": 2,  # mmengine removes before it writes
    }
    hooks["logger"]["interval"] = job.log_steps * job.accumulate
    hooks.pop("visualization")
    name = f"ade20k-seg-{uuid.uuid4().hex[:8]}"
    content["visualizer"]["name"] = name  # mmengine keeps it under that name, with the folder of its first training
    content.update(
        work_dir=str(job.output),
        experiment_name=name,
        randomness={"seed": job.seed},
        launcher="pytorch" if announced_processes() > 1 else "none",
        resume=job.resume,
    )
    if job.resume:
        content["load_from"] = str(resumable_state(job.output))
    return Config(content)


def train(job: TrainingJob) -> dict[str, Any]:
    """Train, or go on with it; the folder is open (`open_output`).

    Returns:
        ``{"steps", "best": {"metric", "value", "step"}, "seconds", "seconds_per_step", "checkpoint", "source"}``; mIoU is
        a fraction, of mmseg's own evaluation on the validation split.

    Raises:
        BenchError: weights that do not fit, a state that cannot be resumed, a loss that is not finite.
    """
    started = time.perf_counter()
    if job.resume:
        job = replace(job, settings=resumed_settings(job))
        check_same(job)
    cfg = training_config(job)
    previous = None
    if job.resume and (job.output / BEST).is_file():
        previous = read_checkpoint(job.output / BEST).metadata.get("best")
    # mmengine's logger keeps the stream that is stdout when it is made: what it says goes to its file only.
    with (
        open(os.devnull, "w") as console,
        contextlib.redirect_stdout(console),
        DefaultScope.overwrite_default_scope("mmseg"),
        warnings.catch_warnings(),  # type: ignore[type-var]
    ):
        warnings.simplefilter("ignore")
        runner = Runner.from_cfg(cfg)
        if job.device != "auto":
            runner.model.to(job.device)
        model = getattr(runner.model, "module", runner.model)
        model.init_weights()
        source = initialise(model, None if job.resume else job.source)
        # The Runner would initialise again, over the weights just loaded.
        model.init_weights = lambda: None
        metadata = {**job.metadata, "source": source}
        keeper = KeepBest(job, metadata, previous)
        runner.register_hook(keeper)
        validate = job.validate_steps or job.settings.steps
        watching = Watching(job.watcher, job.output, job.seed, job.accumulate, job.settings.steps, validate)
        runner.register_hook(watching, priority="LOWEST")  # behind the schedule and the saved states
        runner.register_hook(StopAtNaN())
        if runner.rank == 0:
            cfg_for_tools = Config(config_dict(job.settings, str(job.data_root)))
            cfg_for_tools.dump(str(job.output / CONFIG))
            write_atomic(job.output / JOB, (json.dumps(decided(job), indent=2) + "\n").encode())
        begun = time.perf_counter()
        with contextlib.closing(watching), loading_tensors_only():  # tensors of the state to resume from
            runner.train()
        steps = (runner.iter) // job.accumulate
    seconds = time.perf_counter() - begun
    assert keeper.best is not None
    return {
        "steps": steps,
        "best": keeper.best,
        "seconds": time.perf_counter() - started,
        "training_seconds": seconds,
        "checkpoint": str(job.output / BEST),
        "source": source,
    }
