"""What a detector checkpoint says about its detector, and loading it strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from torch import Tensor, nn

_NOT_WEIGHTS = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.")
"""Constants that detectron2 checkpoints may hold."""


def detector_arguments(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Arguments of `build_detector` read from a state dict with detectron2's names.

    Returns:
        ``head``, ``num_classes``, ``embed_dim``, ``out_channels``, ``fc_dim`` and ``with_masks``.

    Raises:
        BenchError: not the state dict of a ViTDet detector.
    """
    cascade = "roi_heads.box_predictor.0.cls_score.weight" in state
    prefix = "roi_heads.box_predictor.0." if cascade else "roi_heads.box_predictor."
    needed = (f"{prefix}cls_score.weight", "backbone.simfp_4.0.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise BenchError(
            f"{source}: no {missing[0]}; this is not the checkpoint of a ViTDet detector with a simple feature pyramid"
        )
    logits, lateral = (state[name] for name in needed)
    return {
        "head": "cascade_mask_rcnn" if cascade else "mask_rcnn",
        "num_classes": logits.shape[0] - 1,
        "embed_dim": lateral.shape[1],
        "out_channels": lateral.shape[0],
        "fc_dim": logits.shape[1],
        "with_masks": "roi_heads.mask_head.predictor.weight" in state,
    }


def load_detector(detector: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict with detectron2's names, strictly; everything is checked before anything is changed.

    Raises:
        BenchError: another head type, names missing or unexpected, or shapes that differ; one line naming ``source``.
    """
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_NOT_WEIGHTS)}
    own = detector.state_dict()
    head = detector_arguments(state, source)["head"]
    wanted = detector_arguments(own, "the detector")["head"]
    if head != wanted:
        raise BenchError(f"{source}: holds a {head} head, the detector has {wanted}; build it with head={head!r}")

    def first(names: list[str]) -> str:
        return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"

    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        parts = [f"{what} {first(n)}" for what, n in (("lacks", missing), ("has unexpected", unexpected)) if n]
        raise BenchError(f"{source}: {' and '.join(parts)}; is it a checkpoint of this backbone?")
    shapes = [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if state[name].shape != own[name].shape
    ]
    if shapes:
        raise BenchError(
            f"{source}: {len(shapes)} shapes differ: {'; '.join(shapes[:3])}; build it with this checkpoint's sizes"
        )
    detector.load_state_dict(state, strict=True)
