"""The shape of a BEiT-3 detector beside that of its tower: built from data, read back from a checkpoint, started from
pretrained weights.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.beit3.config import PRESETS, BEiT3Config
from beit3_bench.errors import BenchError
from beit3_bench.plain import fill

if TYPE_CHECKING:
    from torch import Tensor

    from beit3_bench.backbones.beit3.checkpoint import LoadReport
    from beit3_bench.backbones.beit3.detection.detector import Detector
    from beit3_bench.backbones.checkpoints import Checkpoint

NET, MASK_HEAD = "backbone.net.", "roi_heads.mask_head."
STRIDE = 16
HALF = (127.5, 127.5, 127.5)


@dataclass(frozen=True)
class DetectorPlan:
    """Everything that a checkpoint of a detector needs beside its weights and the `BEiT3Config` of its tower.

    image_size: side of the square to which images are padded.
    window_size, global_blocks: of the tower; None = four evenly spaced global blocks.
    proposals: how many an image has for the heads, after NMS; before it the same number per level, twice in training.
    cls_token, final_norm: whether the tower has them (`SpatialBEiT3`); ViTDet has no CLS.
    pixel_mean, pixel_std: RGB, in 0..255.
    """

    head: str = "cascade_mask_rcnn"
    num_classes: int = 80
    image_size: int = 1024
    window_size: int = 14
    global_blocks: tuple[int, ...] | None = None
    cls_token: bool = False
    final_norm: bool = True
    out_channels: int = 256
    fc_dim: int = 1024
    with_masks: bool = True
    proposals: int = 1000
    pixel_mean: tuple[float, ...] = HALF
    pixel_std: tuple[float, ...] = HALF

    def to_dict(self) -> dict[str, Any]:
        """Plain values, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str) -> DetectorPlan:
        """The inverse of `to_dict`.

        Raises:
            BenchError: a field that does not exist or holds another kind of value; begins with ``origin``.
        """
        return fill(cls, values, origin, "{owner}: a detector has no setting {key!r}; {known}")

    def replace(self, **changes: Any) -> DetectorPlan:
        return dataclasses.replace(self, **changes)

    def build(self, tower: BEiT3Config, **inference: Any) -> Detector:
        """The detector, untrained, in evaluation mode.

        Args:
            tower: patch size 16; its ``grid`` is the size at which positions are stored.
            inference: of `build_detector`: ``score_threshold``, ``nms_threshold``, ``soft_nms``,
                ``detections_per_image``.
        """
        from beit3_bench.backbones.beit3.detection.detector import build_detector
        from beit3_bench.backbones.beit3.spatial import SpatialBEiT3

        net = SpatialBEiT3(tower, self.window_size, self.global_blocks, self.cls_token, self.final_norm, STRIDE)
        detector = build_detector(
            net,
            self.head,
            self.num_classes,
            self.image_size,
            tower.embed_dim,
            self.out_channels,
            self.fc_dim,
            pixel_mean=self.pixel_mean,
            pixel_std=self.pixel_std,
            with_masks=self.with_masks,
            **inference,
        )
        rpn = detector.proposal_generator
        rpn.pre_nms_topk, rpn.post_nms_topk = (self.proposals, 2 * self.proposals), self.proposals
        detector.config = self.input_config(tower)  # type: ignore[assignment]
        return detector

    def input_config(self, tower: BEiT3Config) -> BEiT3Config:
        """The tower's configuration at the size at which it runs, not at which its positions are stored."""
        return tower.replace(image_size=self.image_size, drop_path_rate=0.0, checkpoint_activations=False)


def strided(config: BEiT3Config, **changes: Any) -> BEiT3Config:
    """A tower of patch 16 with the same grid of stored positions, whatever the patch size of ``config``."""
    return config.replace(patch_size=STRIDE, image_size=config.grid * STRIDE, **changes)


def tower_of(state: Mapping[str, Tensor], source: str, num_heads: int | None = None) -> BEiT3Config:
    """The tower that a detector's state dict holds; the number of heads shows only where its size is a preset's.

    Raises:
        BenchError: another backbone, or a width that is no preset's and no ``num_heads``.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        value = state.get(NET + name)
        if value is None or value.ndim != dimensions:
            raise BenchError(f"{source}: no tensor {NET}{name} of a BEiT-3 tower; the detector has another backbone")
        return tuple(value.shape)

    _, rows, dim = shape("pos_embed", 3)
    ffn, _ = shape("blocks.0.mlp.fc1.weight", 2)
    shape("blocks.0.attn.inner_attn_ln.weight", 1)
    grid = math.isqrt(max(rows - 1, 0))
    if grid < 1 or grid**2 != rows - 1:
        raise BenchError(f"{source}: {NET}pos_embed has {rows} rows, not those of a square and CLS")
    patch = shape("patch_embed.proj.weight", 4)[-1]
    if patch != STRIDE:
        raise BenchError(f"{source}: patches of {patch} pixels; detectors have {STRIDE} (resample the kernel first)")
    depth = len({m[1] for name in state if (m := re.match(r"backbone\.net\.blocks\.(\d+)\.", name))})
    sizes = {"embed_dim": dim, "ffn_dim": ffn, "depth": depth}
    if num_heads is None:
        num_heads = next((p["num_heads"] for p in PRESETS.values() if sizes.items() <= p.items()), None)
    if num_heads is None:
        raise BenchError(
            f"{source}: the number of attention heads does not show in a tower of width {dim} and depth {depth}; "
            "give the --preset it was made from"
        )
    return BEiT3Config(image_size=grid * STRIDE, patch_size=STRIDE, num_heads=num_heads, **sizes)


def preset_of(tower: BEiT3Config) -> str | None:
    """The preset whose vision tower this is, whatever its patch and image size."""
    sizes = {key: getattr(tower, key) for key in ("embed_dim", "ffn_dim", "depth", "num_heads")}
    return next((name for name, preset in PRESETS.items() if sizes.items() <= preset.items()), None)


def plan_of(state: Mapping[str, Tensor], source: str, settings: Mapping[str, Any] | None = None) -> DetectorPlan:
    """The plan of a detector's state dict: what shows in it, over ``settings`` (of the file's metadata).

    Raises:
        BenchError: no detector, or one that contradicts its settings.
    """
    from beit3_bench.backbones.beit3.detection.weights import detector_arguments

    shown = detector_arguments(state, source)
    shown["cls_token"] = NET + "cls_token" in state
    shown["final_norm"] = NET + "norm.weight" in state
    shown.pop("embed_dim")
    for name in ("pixel_mean", "pixel_std"):  # detectron2 may store them
        if name in state:
            shown[name] = tuple(state[name].flatten().tolist())
    plan = DetectorPlan.from_dict(settings or {}, source)
    for key, value in shown.items():
        if settings and key in settings and getattr(plan, key) != value:
            raise BenchError(
                f"{source}: its tensors say {key} {value}, its settings {getattr(plan, key)}; the file was edited"
            )
    return plan.replace(**shown)


def start_detector(detector: Detector, checkpoint: Checkpoint) -> tuple[LoadReport, list[str]]:
    """Fill a new detector with pretrained weights: an official BEiT-3's vision tower, or another detector.

    From a detector everything is taken but the layers that depend on the classes, where their number differs, and but a
    mask head that only one of both has (Objects365 has boxes only).

    Returns:
        The report, and the names that stay new.

    Raises:
        BenchError: weights of another size or head; the detector is unchanged.
    """
    import torch

    from beit3_bench.backbones.beit3.checkpoint import LoadReport
    from beit3_bench.backbones.beit3.detection.weights import detector_arguments, load_detector
    from beit3_bench.backbones.beit3.spatial import load_spatial

    own, origin = detector.state_dict(), str(checkpoint.path)
    if not any(name.startswith("backbone.") for name in checkpoint.tensors):
        report = load_spatial(
            detector.backbone.net, checkpoint.tensors, ("beit3.encoder.layer_norm.A.*",), origin=origin
        )
        new = [name for name in own if not name.startswith(NET)]
        return report, [*new, *report.missing]
    state = {name: value for name, value in checkpoint.tensors.items() if name in own}
    classes, wanted = (detector_arguments(s, origin)["num_classes"] for s in (checkpoint.tensors, own))
    changed = []
    if classes != wanted:
        parts = (".cls_score.", ".bbox_pred.", "mask_head.predictor.")
        changed = [n for n in state if any(p in n for p in parts) and state[n].shape != own[n].shape]
    taken = {name: value for name, value in checkpoint.tensors.items() if name in own or not name.startswith(MASK_HEAD)}
    changed += [name for name in own if name.startswith(MASK_HEAD) and name not in taken]
    with torch.no_grad():
        load_detector(detector, {**taken, **{name: own[name].clone() for name in changed}}, origin)
    return LoadReport(loaded=[n for n in state if n not in changed], missing=changed), changed
