"""From a checkpoint file to a segmentor, and back to a file that both mmseg and this project read."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from torch import Tensor, nn

from beit3_bench.backbones.beit3.checkpoint import LoadReport
from beit3_bench.backbones.beit3.mmseg_adapter.mmseg_config import config_dict
from beit3_bench.backbones.beit3.mmseg_adapter.settings import SegmentationSettings, variant
from beit3_bench.backbones.checkpoints import METADATA_KEY, Checkpoint
from beit3_bench.errors import BenchError
from beit3_bench.files import save_atomic

RESIZES = ("Resize", "ResizeToMultiple")
SETTINGS_KEY = "segmentation"
"""Where a fine-tuned checkpoint's metadata hold its settings."""


@dataclasses.dataclass(frozen=True)
class SegmentationPreprocessing:
    """How an image becomes the network's input; done by mmseg's pipeline and data preprocessor.

    pipeline: mmseg's transforms, as in the config.  size: side of the windows.
    config: SHA-256 of the model's config.
    """

    size: int
    pipeline: tuple[Mapping[str, Any], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "pipeline": [dict(step) for step in self.pipeline],
            "mean": self.mean,
            "std": self.std,
            "config": self.config,
        }

    def compose(self, from_files: bool = True) -> Any:
        """The pipeline as a callable: {"img_path": file} -> {"inputs", "data_samples"}.

        from_files: False = it takes {"img": uint8 (H, W, 3), BGR} instead, as mmseg's own inferencer does.
        """
        from mmengine.dataset import Compose

        # copies: a transform may build its own parts in place
        steps = [copy.deepcopy(dict(step)) for step in self.pipeline]
        if not from_files:
            steps = [{"type": "LoadImageFromNDArray"} if s["type"] == "LoadImageFromFile" else s for s in steps]
        with DefaultScope.overwrite_default_scope("mmseg"):
            return Compose([TRANSFORMS.build(step) for step in steps])

    def canary_hash(self) -> str:
        """SHA-256 of a resized synthetic image: changes when OpenCV's resampling or the configured sizes do."""
        import numpy as np

        y, x = np.mgrid[0:97, 0:131]
        image = np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (x * x + 5 * y) % 251], axis=-1).astype(np.uint8)
        digest = hashlib.sha256(repr((self.mean, self.std, self.size, self.config)).encode())
        with DefaultScope.overwrite_default_scope("mmseg"):
            for step in self.pipeline:
                for resize in _resizes(step):
                    record = {"img": image, "img_shape": image.shape[:2], "ori_shape": image.shape[:2]}
                    digest.update(np.ascontiguousarray(TRANSFORMS.build(dict(resize))(record)["img"]).tobytes())
        return digest.hexdigest()


def _resizes(step: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The resizing transforms in a step of a pipeline, those of test-time augmentation included."""
    if step["type"] == "TestTimeAug":
        return [inner for stage in step["transforms"] for inner in stage if inner["type"] in RESIZES]
    return [step] if step["type"] in RESIZES else []


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What evaluation may change; None = as the config says. multi_scale: all ratios, plain and flipped."""

    mode: str | None = None
    crop: int | None = None
    stride: int | None = None
    multi_scale: bool = False


def evaluation_config(source: Checkpoint, config: str | None, protocol: Protocol) -> Config:
    """The mmseg config of a checkpoint: a file or a variant that is named, or the settings that it carries.

    Raises:
        BenchError: nothing says how the model was built.
    """
    if config is not None and config.endswith(".py"):
        if not Path(config).is_file():
            raise BenchError(f"{config}: config file not found; give an mmseg config, or the name of a variant")
        cfg = Config.fromfile(config)
        changes = {k: getattr(protocol, k) for k in ("mode", "crop", "stride") if getattr(protocol, k) is not None}
        if changes:
            raise BenchError(
                f"{config}: sets {', '.join(changes)} itself; change it there, or leave out -o {next(iter(changes))}"
            )
        return cfg
    if config is not None:
        settings = variant(config)
    elif SETTINGS_KEY in source.metadata:
        settings = SegmentationSettings.from_dict(source.metadata[SETTINGS_KEY], str(source.path))
    else:
        raise BenchError(
            f"{source.path}: does not say how its segmentation head was built; "
            "name its mmseg config with -o config=FILE.py (or a variant: -o config=large-896)"
        )
    if protocol.mode is not None:
        settings = settings.replace(mode=protocol.mode)
    return Config(config_dict(settings.cropped(protocol.crop or settings.crop, protocol.stride)))


def pipeline_of(cfg: Config, multi_scale: bool) -> list[dict[str, Any]]:
    """The test pipeline without labels: those are read, and checked, outside.

    Raises:
        BenchError: a config without the pipeline that is asked for.
    """
    key = "tta_pipeline" if multi_scale else "test_pipeline"
    steps = cfg.to_dict().get(key)
    if not steps:
        raise BenchError(f"{cfg.filename}: has no {key}; add it")
    kept = []
    for step in steps:
        step = dict(step)
        if step["type"] == "TestTimeAug":
            step["transforms"] = [s for s in step["transforms"] if s[0]["type"] != "LoadAnnotations"]
        if step["type"] != "LoadAnnotations":
            kept.append(step)
    return kept


def preprocessing_of(cfg: Config, multi_scale: bool) -> SegmentationPreprocessing:
    """What a config does with an image before the network sees it."""
    data = cfg.model.data_preprocessor
    size = data.get("size") or (0, 0)
    config = hashlib.sha256(json.dumps(cfg.model.to_dict(), sort_keys=True, default=str).encode()).hexdigest()
    return SegmentationPreprocessing(
        int(size[0]),
        tuple(pipeline_of(cfg, multi_scale)),
        tuple(data.get("mean", ())),
        tuple(data.get("std", ())),
        config,
    )


def build_segmentor(cfg: Config) -> nn.Module:
    """The network of an mmseg config, in eval mode, with the weights that it is built with.

    Raises:
        BenchError: its backbone is not one of this project's.
    """
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(cfg.model)
    tower = getattr(model.backbone, "net", None)
    if not hasattr(tower, "config"):
        raise BenchError(
            f"{cfg.filename or 'config'}: its backbone is {type(model.backbone).__name__}; this task evaluates BEiT3 and BEiT3Adapter"
        )
    return model.eval()


def load_segmentor(
    model: nn.Module, tensors: Mapping[str, Tensor], origin: str, allow_missing: Sequence[str] = ()
) -> LoadReport:
    """Load a segmentor's weights, whole.

    Args:
        tensors: by mmseg's names (``backbone.net...``, ``decode_head...``).
        allow_missing: patterns of names that may be missing, unexpected or of another shape.

    Raises:
        BenchError: no head in it, another number of classes, or any tensor that does not fit; nothing was changed.
    """
    own = model.state_dict()
    # The class weights of the loss are a constant of the config in some versions, and a buffer in others.
    tensors = {name: value for name, value in tensors.items() if not name.endswith("loss_cls.class_weight")}
    classes, embedding = model.num_classes, tensors.get("decode_head.cls_embed.weight")
    if not any(name.startswith("decode_head.") for name in tensors):
        raise BenchError(
            f"{origin}: holds no segmentation head; train one first: beit3-bench finetune --task ade20k-seg --checkpoint {origin}"
        )
    if embedding is not None and embedding.ndim == 2 and len(embedding) != classes + 1:
        raise BenchError(
            f"{origin}: was trained for {len(embedding) - 1} classes, this model has {classes}; give a checkpoint of this data set"
        )
    report = LoadReport()
    wrong: list[str] = []
    for name, value in own.items():
        if name not in tensors:
            report.missing.append(name)
        elif tensors[name].shape != value.shape:
            report.missing.append(name)
            wrong.append(f"{name} {tuple(tensors[name].shape)} instead of {tuple(value.shape)}")
        else:
            report.loaded.append(name)
    report.unexpected = sorted(set(tensors) - set(own))

    def refused(names: Sequence[str]) -> list[str]:
        return [n for n in names if not any(fnmatch.fnmatchcase(n.split(" ")[0], p) for p in allow_missing)]

    misshapen = {text.split(" ")[0] for text in wrong}
    problems = {
        "of another shape": refused(wrong),
        "missing": refused([n for n in report.missing if n not in misshapen]),
        "unexpected": refused(report.unexpected),
    }
    if any(problems.values()):
        counted = ", ".join(f"{len(v)} {what} ({', '.join(v[:3])})" for what, v in problems.items() if v)
        raise BenchError(
            f"{origin}: does not fit this model: tensors {counted}; name its own mmseg config with -o config=FILE.py"
        )
    with torch.no_grad():
        for name in report.loaded:
            own[name].copy_(tensors[name])
    return report


def save_segmentor(path: Path, model: nn.Module, settings: SegmentationSettings, metadata: Mapping[str, Any]) -> None:
    """Write a checkpoint that `run` reads without further flags, and mmseg's `init_model` with the settings' config.

    Plain values and tensors only, whole or not at all.
    """
    with DefaultScope.overwrite_default_scope("mmseg"):
        dataset: Any = DATASETS.get(settings.dataset_facts.type)
    classes, palette = dataset.METAINFO["classes"], dataset.METAINFO["palette"]
    content = {
        "state_dict": {name: value.detach().cpu().clone() for name, value in model.state_dict().items()},
        "meta": {"dataset_meta": {"classes": list(classes), "palette": [list(colour) for colour in palette]}},
        METADATA_KEY: {**metadata, SETTINGS_KEY: settings.to_dict()},
    }
    save_atomic(path, content)
