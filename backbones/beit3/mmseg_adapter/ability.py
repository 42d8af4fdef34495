"""A segmentor from a file, as an ability: mmsegmentation's own model and data pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from beit3_bench.backbones.abilities import Batch, Item, Reader, Segments
from beit3_bench.backbones.archives.members import member_at
from beit3_bench.backbones.beit3.checkpoint import LoadedModel
from beit3_bench.backbones.beit3.loading import labels_in, model_of
from beit3_bench.backbones.beit3.mmseg_adapter.loading import (
    Protocol,
    SegmentationPreprocessing,
    build_segmentor,
    evaluation_config,
    load_segmentor,
    preprocessing_of,
)
from beit3_bench.backbones.beit3.mmseg_adapter.prediction import predict_classes
from beit3_bench.backbones.family import Asked, LoadOptions, Model, Outputs
from beit3_bench.backbones.images import check_header, read_image_file
from beit3_bench.backbones.preprocess import upright
from beit3_bench.backbones.released import find_released
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.corruptions import Corruption


class SegmentationReader(Reader):
    """Images through mmseg's test pipeline, which every process composes once for itself."""

    def __init__(self, preprocessing: SegmentationPreprocessing):
        self.preprocessing = preprocessing
        self._pipelines: dict[bool, Any] = {}
        self.corruption: Corruption | None = None

    def corrupt(self, corruption: Corruption) -> None:
        self.corruption = corruption

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipelines": {}}

    def collate(self, items: Sequence[Item]) -> Batch:
        """``inputs``, ``data_samples``: per image what the pipeline packs, with test-time augmentation lists over scales and flips."""
        packed = [self._packed(item.images[0]) for item in items]
        return {"inputs": [p["inputs"] for p in packed], "data_samples": [p["data_samples"] for p in packed]}

    def _packed(self, image: Any) -> dict[str, Any]:
        member = member_at(image) if isinstance(image, (str, Path)) else None
        is_file = isinstance(image, (str, Path)) and member is None and self.corruption is None
        if is_file not in self._pipelines:
            self._pipelines[is_file] = self.preprocessing.compose(from_files=is_file)
        if not is_file:
            return self._pipelines[is_file]({"img": self._bgr(image)})
        check_header(image)
        try:
            return self._pipelines[is_file]({"img_path": str(image)})
        except Exception as error:
            raise _undecodable(image, error) from error

    def _bgr(self, image: Any) -> np.ndarray:
        """The pixels that the pipeline goes on from, uint8 (H, W, 3), BGR as mmseg's are; corrupted where that is asked for."""
        if not isinstance(image, (str, Path)):
            picture = upright(image)
            picture = picture if self.corruption is None else self.corruption.given(picture)
            return np.asarray(picture)[..., ::-1].copy()
        check_header(image)
        content = read_image_file(image)
        pixels = _decoded(image, content)
        if self.corruption is None:
            return pixels
        picture = Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
        corrupted = self.corruption.of(picture, hashlib.sha256(content).digest(), str(image))
        return np.asarray(corrupted)[..., ::-1].copy()


def _decoded(image: str | Path, content: bytes) -> np.ndarray:
    """An image's bytes as mmseg's ``LoadImageFromFile`` decodes a file: uint8 (H, W, 3), BGR, by OpenCV."""
    import mmcv

    try:
        pixels = mmcv.imfrombytes(content, flag="color", backend="cv2")
    except Exception as error:
        raise _undecodable(image, error) from error
    if pixels is None:
        raise _undecodable(image, ValueError("OpenCV gives no pixels"))
    return pixels


def _undecodable(image: str | Path, error: Exception) -> BenchError:
    """OpenCV and mmcv raise many kinds for a damaged file."""
    line = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
    return BenchError(f"{image}: image does not decode ({line}); download it again, or replace it")


class Segmentation(Segments):
    """Images are predicted one at a time, as mmseg does, so that a prediction does not depend on its batch."""

    reader: SegmentationReader

    def predict(self, batch: Batch) -> list[np.ndarray]:
        return [
            predict_classes(self.module, inputs, samples).astype(np.uint8)
            for inputs, samples in zip(batch["inputs"], batch["data_samples"], strict=True)
        ]

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """On a CPU weights are laid out once for its product kernels (see `backbones.packing`)."""
        from beit3_bench.backbones.packing import pack_weights

        if device.type == "cpu" and not compiled:
            pack_weights(self.module)


def load_segmentation(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """mmseg's model with the checkpoint's weights.

    ``Asked.values``: ``config`` (mmseg config, FILE.py, or a variant of the project's; None = what the checkpoint was trained
    with), ``multi_scale``, ``mode``, ``crop`` (``LoadOptions.image_size`` is the same), ``stride``.

    Raises:
        BenchError: nothing says how the model was built, another number of classes, tensors that do not fit.
    """
    values, checkpoint = asked.values, source.checkpoint
    multi_scale = bool(values.get("multi_scale"))
    crop = values.get("crop") or options.image_size
    protocol = Protocol(values.get("mode"), crop, values.get("stride"), multi_scale)
    cfg = evaluation_config(checkpoint, values.get("config"), protocol)
    module: Any = build_segmentor(cfg)
    labels, weight = labels_in(checkpoint.metadata, checkpoint.path), find_released(checkpoint.path, "beit3")
    released = weight is not None and weight.task == asked.task
    assumptions = asked.check_outputs(
        Outputs(checkpoint.path, labels, module.num_classes, released, checkpoint.metadata)
    )
    report = load_segmentor(module, checkpoint.tensors, str(checkpoint.path), options.allow_missing)
    report.notes += checkpoint.notes
    preprocessing = preprocessing_of(cfg, multi_scale)
    config = module.backbone.net.config
    if preprocessing.size % config.patch_size == 0:
        config = config.replace(image_size=preprocessing.size)
    preset = checkpoint.metadata.get("preset") or options.preset
    loaded = LoadedModel(
        module,
        config,
        report,
        preprocessing,  # type: ignore[arg-type]  # it has what is asked of a preprocessing here
        checkpoint.metadata,
        checkpoint.sha256,
        preset,
        checkpoint.path,
    )
    ability = Segmentation(module, SegmentationReader(preprocessing))
    return model_of(
        ability,
        source,
        loaded,
        "several scales, flipped" if multi_scale else "single scale",
        assumptions=assumptions,
        allow_missing=options.allow_missing,
    )
