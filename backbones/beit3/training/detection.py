"""Detectors under training, after ViTDet: large-scale jitter, layer decay by name, the losses of RPN, boxes and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from beit3_bench.backbones.abilities import Batch, Item
from beit3_bench.backbones.beit3.checkpoint import LoadReport, config_from_tensors, official_state_dict
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.ability import HEAD, Detection, build, preprocessing_of
from beit3_bench.backbones.beit3.detection.described import describe_detector
from beit3_bench.backbones.beit3.detection.options import DetectorOptions
from beit3_bench.backbones.beit3.detection.plan import NET, DetectorPlan, start_detector, strided
from beit3_bench.backbones.beit3.detection.reading import DetectionReader, checked_image
from beit3_bench.backbones.beit3.detection.recipe import param_groups
from beit3_bench.backbones.beit3.training.augment import refuse_mixing
from beit3_bench.backbones.beit3.training.memory import gathered_parts, memory_bytes
from beit3_bench.backbones.beit3.training.scale_jitter import LargeScaleJitter
from beit3_bench.backbones.beit3.training.start import find_tokenizer
from beit3_bench.backbones.beit3.weights import TOKENIZER_FILE
from beit3_bench.backbones.checkpoints import Checkpoint
from beit3_bench.backbones.family import Asked, digest
from beit3_bench.backbones.seeds import derived, seed_of
from beit3_bench.backbones.training import Training, TrainingOptions
from beit3_bench.errors import BenchError


class DetectionTraining(Training):
    """A new detector of the task's options, from pretrained BEiT-3 weights, from another detector or from nothing.

    Attributes:
        plan, config: of the detector, and of its tower at the size at which it runs.
    """

    ability: Detection
    shard_layers = ("Layer", "SpatialBlock")

    def __init__(self, asked: Asked, options: TrainingOptions):
        if asked.labels is None:
            raise BenchError(f"task {asked.task}: says no categories; a detector needs them to be trained")
        refuse_mixing(options.recipe, asked.task)
        self.options, self.recipe, self.preset = DetectorOptions.of(asked.values), options.recipe, options.preset
        self.labels = tuple(asked.labels)
        self.options.check(asked.task)
        checkpoint = options.source.checkpoint if options.source is not None else None
        self.tokenizer = known_tokenizer(asked, options, checkpoint)
        engine = self.options.chosen_engine()
        self.resolved: dict[str, Any] = {"engine": engine}
        with torch.device("meta") if options.shapes_only else nullcontext():
            torch.manual_seed(seed_of(options.seed, "weights"))
            report = self._start(checkpoint, engine)
        self.notes = list(report.notes)
        preprocessing = preprocessing_of(self.plan, self.options)
        self.ability = Detection(
            self.network, DetectionReader(preprocessing, self.options.sides), self.options.flip_test
        )
        self.jitter = LargeScaleJitter(
            self.recipe.image_size, (self.options.jitter_min, self.options.jitter_max), self.recipe.flip
        )
        self.settings = self.config.to_dict()
        self.preprocessing = preprocessing.to_dict()
        self.companions = {TOKENIZER_FILE: self.tokenizer[1]} if self.tokenizer else {}
        self.fingerprints = {
            "model": digest(self.config.replace(checkpoint_activations=False).to_dict()),
            "tokenizer": self.tokenizer[0] if self.tokenizer else "none",
            "start": checkpoint.sha256 if checkpoint is not None else "from scratch",
        }
        self.start = {
            "checkpoint": checkpoint.path.name if checkpoint is not None else None,
            "sha256": checkpoint.sha256 if checkpoint is not None else None,
            "missing": list(report.missing),
            "unexpected": list(report.unexpected),
            "resized": dict(report.resized),
        }

    def _start(self, checkpoint: Checkpoint | None, engine: str) -> LoadReport:
        """Make the network, and fill it from a checkpoint; what that lacked."""
        recipe = self.recipe
        notes: list[str] = []
        runtime = {"drop_path_rate": recipe.drop_path, "checkpoint_activations": recipe.checkpoint_activations}
        plan = self.new_plan(recipe.image_size)
        if checkpoint is None:
            base = BEiT3Config.preset(self.preset)
        elif any(name.startswith(NET) for name in checkpoint.tensors):
            base, plan, notes = self._as_described(checkpoint, plan)
        else:
            known = checkpoint.metadata.get("config") or {}
            preset, heads = None if known else self.preset, self._heads(checkpoint)
            base = config_from_tensors(checkpoint.tensors, str(checkpoint.path), preset, num_heads=heads)
            base = base.replace(layer_norm_eps=known.get("layer_norm_eps", base.layer_norm_eps))
        tower = strided(base, **runtime)
        self.plan, self.config = plan, plan.input_config(tower).replace(**runtime)
        self.network = build(plan, tower, self.options, engine)
        self.network.roi_heads.batch_size_per_image = self.options.rois_per_image
        report, self.new = start_detector(self.network, checkpoint) if checkpoint is not None else (LoadReport(), [])
        report.notes += [*notes, *(checkpoint.notes if checkpoint is not None else [])]
        return report

    def new_plan(self, image_size: int) -> DetectorPlan:
        """Of a detector that no checkpoint describes."""
        o = self.options
        given = {"head": o.head, "window_size": o.window_size, "proposals": o.proposals}
        return DetectorPlan(
            num_classes=len(self.labels),
            image_size=image_size,
            out_channels=o.out_channels,
            fc_dim=o.fc_dim,
            with_masks=o.masks,
            **{k: v for k, v in given.items() if v is not None},
        )

    def _as_described(self, checkpoint: Checkpoint, plan: DetectorPlan) -> tuple[BEiT3Config, DetectorPlan, list[str]]:
        """Tower and plan of another detector that a training goes on from, and what is not known of its own training."""
        described = describe_detector(checkpoint, checkpoint.metadata.get("head_arguments"), self._heads(checkpoint))
        chosen: dict[str, Any] = {
            "head": plan.head,
            "num_classes": plan.num_classes,
            "image_size": plan.image_size,
            "with_masks": plan.with_masks,
        }
        given = {"window_size": self.options.window_size, "proposals": self.options.proposals}
        chosen |= {name: value for name, value in given.items() if value is not None and name not in described.told}
        plan = described.plan.replace(**chosen)
        if described.config is not None:
            self.resolved |= {"window_size": plan.window_size, "proposals": plan.proposals}
        # the square is the recipe's: only what the tower was trained with matters
        return described.tower, plan, described.lines({**given, "image_size": plan.image_size})

    def _heads(self, checkpoint: Checkpoint) -> int:
        known = checkpoint.metadata.get("config") or {}
        return known.get("num_heads") or BEiT3Config.preset(self.preset).num_heads

    # ---- steps ------------------------------------------------------------------------------------------------------

    def collate(self, items: Sequence[Item], generator: torch.Generator) -> Batch:
        """Jittered images of various sizes with their targets, as `Detector.losses` takes them."""
        inputs = []
        for item in items:
            image, targets = self.jitter(
                checked_image(item), item.target, self.options.masks, derived(generator, item.id)
            )
            inputs.append({"image": image, "instances": targets})
        return {"inputs": inputs}

    def loss(self, module: torch.nn.Module, batch: Batch, gather: Callable, step: int) -> torch.Tensor:
        """Sum of the RPN, box and mask losses."""
        return sum(module.losses(batch["inputs"]).values())  # type: ignore[operator, return-value]

    def groups(self) -> list[dict[str, Any]]:
        """ViTDet's: layer decay by name, no weight decay for norms and positions."""
        groups = param_groups(self.module, 1.0, self.recipe.weight_decay, self.recipe.layer_decay, self.config.depth)
        return [{**g, "name": f"rate x{g['lr']:.3g}, decay {g['weight_decay']:g}", "lr_scale": g["lr"]} for g in groups]

    def metadata(self) -> dict[str, Any]:
        """Head, plan and tower; see `detection.described`."""
        return {
            "head": HEAD,
            "preset": self.preset,
            "config": self.config.replace(drop_path_rate=0.0, checkpoint_activations=False).to_dict(),
            "preprocessing": {k: list(v) if isinstance(v, tuple) else v for k, v in self.preprocessing.items()},
            "tokenizer": self.tokenizer[0] if self.tokenizer else None,
            "head_arguments": self.plan.to_dict(),
            "vocabulary": None,
            "labels": list(self.labels),
        }

    def state_dict(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """detectron2's names, which are the modules' own."""
        return official_state_dict(module)

    def memory(self, samples: int, dtype: str, average: bool, shards: int = 1) -> dict[str, int]:
        """Of the tower; what pyramid and heads store is not known."""
        parameters = sum(p.numel() for p in self.module.parameters())
        parts = gathered_parts(self.module, self.shard_layers)
        return memory_bytes(self.config, parameters, samples, 0, dtype, average, shards, **parts)


def known_tokenizer(asked: Asked, options: TrainingOptions, checkpoint: Checkpoint | None) -> tuple[str, Path] | None:
    """Fingerprint and file of the tokenizer beside checkpoint or data, which a detector does not need, but hands on.

    Raises:
        BenchError: the checkpoint was trained with another.
    """
    tokenizer, file = find_tokenizer(asked.task, options, needed=False)
    if tokenizer is None or file is None:
        return None
    trained = checkpoint.metadata.get("tokenizer") if checkpoint is not None else None
    if trained and trained != tokenizer.fingerprint:
        assert checkpoint is not None
        raise BenchError(
            f"{checkpoint.path}: was trained with another tokenizer than {file}; give its own with --tokenizer"
        )
    return tokenizer.fingerprint, file
