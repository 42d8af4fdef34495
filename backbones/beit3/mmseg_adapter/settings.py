"""What decides a Mask2Former on BEiT-3: one frozen dataclass, the named variants, and the mmseg config made from it.

Settings follow two published recipes: mmseg's Mask2Former configs (512 and 640, whole images, 100 queries, 160k steps) for
the variants with a pyramid, and ViT-Adapter's (AdamW with layer decay, linear warm-up, sliding windows, 200 queries at 896,
80k steps) for those with an adapter. Batches are 16 = 8 processes x 2 (ViT-Adapter at 896: 16 x 1).

Where they depart from their source, all of them: images are normalised with mean = std = 0.5, as BEiT-3 was pretrained;
absolute positions instead of relative ones, and positions and CLS are not decayed, as BEiT-3 fine-tunes. Those with a
pyramid: layer decay and drop path are the adapter's, since mmseg has no plain vision transformer under Mask2Former, and no
bias is decayed. Those with an adapter: images whose longer side is more than four times the shorter one are padded to a
window; base is ViT-Adapter's COCO-Stuff recipe; the rest is stated at the variants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.errors import BenchError
from beit3_bench.plain import fill
from beit3_bench.spelling import did_you_mean

CLASSES = 150
IGNORE = 255
MODES = ("slide", "whole")
NECKS = ("adapter", "pyramid")
RESIZINGS = ("range", "choice")


@dataclass(frozen=True)
class DatasetFacts:
    """A data set of mmseg.  splits: ours -> its folder's name.  ignores_zero: label 0 is no class."""

    type: str
    root: str
    classes: int
    splits: Mapping[str, str]
    ignores_zero: bool


DATASETS = {
    "ade20k": DatasetFacts(
        "ADE20KDataset", "data/ade/ADEChallengeData2016", CLASSES,
        {"training": "training", "validation": "validation"}, True,
    ),
    "coco-stuff": DatasetFacts(
        "COCOStuffDataset", "data/coco_stuff164k", 171, {"training": "train2017", "validation": "val2017"}, False
    ),
}  # fmt: skip
CONFIG_PREFIX = "beit3_"


@dataclass(frozen=True)
class SegmentationSettings:
    """Model, data and schedule of one variant.

    Model
        arch: preset name or fields of a `BEiT3Config`.  neck: ``"adapter"`` (ViT-Adapter) or ``"pyramid"``.
        window_size: of the tower's attention, 0 = global.  width: channels of pixel and query decoder.
        queries, encoder_layers, decoder_layers, decoder_ffn: of Mask2Former.  points: sampled per mask for the loss.
        conv_channels: of the adapter's stem.
    Data
        crop: side of training crops and of windows; images are resized so that their shorter side is ``crop`` (longer
        side at most four times that).  mode, stride: windows ``crop`` x ``crop`` every ``stride`` pixels, or whole images.
        ratios: scales of multi-scale testing, relative to ``crop``; each also flipped.  scale_range, flip,
        photometric: of training.
        dataset: ``"ade20k"`` or ``"coco-stuff"``.  longest: of the longer side at most, in pixels; None = four times ``crop``.
        resizing: of training, ``"range"`` (mmseg's RandomResize) or ``"choice"`` (RandomChoiceResize, 16 shorter sides).
        multiple: test images are stretched to multiples of this many pixels (ViT-Adapter: 32); 0 = not.
        sigmoid_first: masks go through the sigmoid before they are enlarged (ViT-Adapter), not after it (mmseg).
    Schedule
        head_embeddings_first: queries, class and mask embeddings of the head learn at the rate of the tower's first layer
        and decay (ViT-Adapter), not at the full rate without decay (mmseg).
        steps, warmup_steps, lr, min_lr, power (polynomial decay), betas, eps, weight_decay, layer_decay,
        backbone_lr_mult, clip_grad (0 = none), drop_path, checkpoint_activations, batch (per process).
    """

    arch: str | Mapping[str, Any] = "base"
    neck: str = "adapter"
    window_size: int = 0
    width: int = 256
    queries: int = 100
    encoder_layers: int = 6
    decoder_layers: int = 9
    decoder_ffn: int = 2048
    points: int = 12544
    conv_channels: int = 64
    classes: int = CLASSES

    crop: int = 512
    mode: str = "slide"
    stride: int = 341
    ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    scale_range: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    photometric: bool = True
    dataset: str = "ade20k"
    longest: int | None = None
    resizing: str = "range"
    multiple: int = 0
    sigmoid_first: bool = False

    steps: int = 160_000
    warmup_steps: int = 1500
    lr: float = 3e-5
    min_lr: float = 0.0
    power: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    layer_decay: float = 0.95
    backbone_lr_mult: float = 1.0
    head_embeddings_first: bool = False
    clip_grad: float = 0.0
    drop_path: float = 0.2
    checkpoint_activations: bool = False
    batch: int = 2

    def __post_init__(self) -> None:
        for name, known in (("neck", NECKS), ("mode", MODES), ("resizing", RESIZINGS), ("dataset", tuple(DATASETS))):
            if getattr(self, name) not in known:
                raise BenchError(
                    f"segmentation settings: {name} is {getattr(self, name)!r}; give one of: {', '.join(known)}"
                )
        for name in (
            "width",
            "queries",
            "encoder_layers",
            "decoder_layers",
            "points",
            "classes",
            "crop",
            "stride",
            "batch",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise BenchError(f"segmentation settings: {name} is {value!r}; give a whole number from 1 on")
        if self.width % 32:
            raise BenchError(f"segmentation settings: width {self.width} is not a multiple of 32")
        if self.crop % 32:
            raise BenchError(
                f"segmentation settings: crop {self.crop} is not a multiple of 32; "
                f"the nearest that is: {max(round(self.crop / 32), 1) * 32}"
            )
        if self.stride > self.crop:
            raise BenchError(
                f"segmentation settings: stride {self.stride} is larger than crop {self.crop}; pixels would be left out"
            )

    @property
    def dataset_facts(self) -> DatasetFacts:
        return DATASETS[self.dataset]

    @property
    def longest_side(self) -> int:
        """Pixels of the longer side at most, after resizing."""
        return self.longest or 4 * self.crop

    def cropped(self, crop: int, stride: int | None = None) -> SegmentationSettings:
        """The same at another crop; the stride of the windows and the longest side keep their share of it."""
        if crop == self.crop and stride is None:
            return self
        share = crop / self.crop
        longest = None if self.longest is None else round(self.longest * share)
        return self.replace(crop=crop, stride=stride or max(round(self.stride * share), 1), longest=longest)

    def config(self) -> BEiT3Config:
        """The tower's configuration."""
        if isinstance(self.arch, str):
            return BEiT3Config.preset(self.arch)
        return BEiT3Config.from_dict(dict(self.arch), "segmentation settings: arch")

    def replace(self, **changes: Any) -> SegmentationSettings:
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a checkpoint carries them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str) -> SegmentationSettings:
        """The inverse of `to_dict`.

        Raises:
            BenchError: a field that does not exist, or values that contradict each other; begins with ``origin``.
        """
        words = "segmentation settings have no field {key!r}; written by another version?"
        try:
            return fill(cls, values, "segmentation settings", words)
        except BenchError as error:
            raise BenchError(f"{origin}: {error}") from error


_PYRAMID = {  # mmseg's Mask2Former: higher rate, lower in the backbone, clipped gradients, no warm-up
    "neck": "pyramid", "mode": "whole", "lr": 1e-4, "backbone_lr_mult": 0.1, "power": 0.9, "clip_grad": 0.01,
    "warmup_steps": 0, "resizing": "choice",
}  # fmt: skip
_ADAPTER = {"multiple": 32, "sigmoid_first": True, "head_embeddings_first": True}  # ViT-Adapter's code and configs
_LARGE = {  # ViT-Adapter's Mask2Former on BEiT-L
    "arch": "large", "width": 1024, "decoder_ffn": 4096, "crop": 640, "stride": 426, "lr": 2e-5, "layer_decay": 0.9,
    "drop_path": 0.3, "checkpoint_activations": True,
}  # fmt: skip
_LARGE_896 = {
    **_LARGE, **_ADAPTER, "crop": 896, "stride": 512, "queries": 200, "steps": 80_000,
    "ratios": (640 / 896, 768 / 896, 1.0), "batch": 1,
}  # fmt: skip

VARIANTS: dict[str, SegmentationSettings] = {
    # ViT-Adapter's settings for Mask2Former on BEiT-B (COCO-Stuff), for as long as mmseg trains on ADE20K
    "base": SegmentationSettings(**_ADAPTER),
    # the same with the sizes of BEiT-L at 640; ViT-Adapter has no such config
    "base-640": SegmentationSettings(**_ADAPTER, crop=640, stride=426, longest=2048),
    "base-pyramid": SegmentationSettings(**_PYRAMID),
    "large": SegmentationSettings(**_LARGE, **_ADAPTER, longest=2048),
    # ViT-Adapter starts these 80k steps from its COCO-Stuff segmentor (the next variant); so must whoever compares with it
    "large-896": SegmentationSettings(**_LARGE_896),
    "large-896-coco-stuff": SegmentationSettings(**_LARGE_896, dataset="coco-stuff", classes=171),
    "large-pyramid": SegmentationSettings(**{**_LARGE, "width": 256, "decoder_ffn": 2048, **_PYRAMID}),
    # for the tiny world: seconds on two cores
    "tiny": SegmentationSettings(
        arch="tiny", width=64, queries=16, encoder_layers=1, decoder_layers=2, decoder_ffn=128, points=400, conv_channels=16,
        crop=64, mode="whole", stride=48, ratios=(0.75, 1.0, 1.25), scale_range=(0.8, 1.25), photometric=False,
        steps=140, warmup_steps=20, lr=2e-3, layer_decay=1.0, drop_path=0.0, batch=8, clip_grad=1.0,
    ),
}  # fmt: skip


def variant(name: str) -> SegmentationSettings:
    """Named settings; a config's file name is understood, too.

    Raises:
        BenchError: an unknown name, with the nearest known one.
    """
    key = name.removesuffix(".py").removeprefix(CONFIG_PREFIX).replace("_", "-")
    if key not in VARIANTS:
        raise BenchError(f"no segmentation config {name!r}; {did_you_mean(key, VARIANTS)}")
    return VARIANTS[key]
