"""Loader of tests/golden/beit3: tensors, manifest, models with the golden weights, and the tolerance of each tensor."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from goldens import COMMITTED
from safetensors.torch import load_file
from torch import Tensor, nn

from beit3_bench.backbones import BEiT3Config, build_model, load_checkpoint  # re-exported for tests

FOLDER = COMMITTED / "beit3"
HEADS = {
    "retrieval": "retrieval",
    "vqav2": "vqav2",
    "nlvr2": "nlvr2",
    "imagenet": "imagenet-linear",
    "captioning": "coco-caption",
}
CONFIG = BEiT3Config(
    image_size=64, patch_size=16, embed_dim=48, num_heads=4, ffn_dim=192, depth=3, vocab_size=211, mask_token_id=202
)


@cache
def document(name: str) -> Any:
    """``NAME.json`` of the folder; ``manifest`` describes all others."""
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """``NAME.safetensors`` of the folder. Shared between tests: never write into it."""
    return load_file(FOLDER / f"{name}.safetensors")


def inputs() -> dict[str, Tensor]:
    return tensors("inputs")


def outputs() -> dict[str, Tensor]:
    return tensors("outputs")


def rows(task: str) -> Any:
    """Rows of ``inputs()["images"]`` that a task used (for NLVR2 a dict with ``a`` and ``b``)."""
    return document("manifest")["rows"][task]


def images(task: str) -> Tensor:
    return inputs()["images"][rows(task)]


def official_state(task: str) -> dict[str, Tensor]:
    """The official state dict of a class, in the official order."""
    record = document("manifest")["classes"][task]
    merged = {**tensors("weights_backbone"), **tensors(f"weights_{task}")}
    return {name: merged[name] for name in record["state_dict_keys_in_official_order"]}


def head_arguments(task: str) -> dict[str, int]:
    classes = document("manifest")["config"]["num_classes"]
    return {"num_classes": classes[task]} if task in ("vqav2", "imagenet") else {}


def build(task: str, config: BEiT3Config = CONFIG) -> nn.Module:
    """The golden model of an official class: ``retrieval``, ``vqav2``, ``nlvr2``, ``imagenet`` or ``captioning``."""
    model = build_model(HEADS[task], config, **head_arguments(task))
    load_checkpoint(model, official_state(task))
    return model


@cache
def model(task: str) -> nn.Module:
    """`build`, once per test session; for tests that change neither weights nor mode."""
    return build(task)


def tolerance(name: str) -> float:
    """10 x the float32 noise floor of an output tensor, at least 1e-6."""
    floor = document("manifest")["fp32_noise_floor"]
    return max(10 * floor[name]["max_abs"], 1e-6)


def assert_golden(
    name: str, ours: Tensor, expected: Tensor | None = None, where: Tensor | None = None, like: str | None = None
) -> None:
    """Compare with the output tensor ``name``.

    expected: the golden tensor where it is not in outputs.safetensors.  where: bool, the positions that mean something.
    like: name whose tolerance holds where ``name`` has none of its own.
    """
    expected = outputs()[name] if expected is None else expected
    assert ours.shape == expected.shape, f"{name}: shape {tuple(ours.shape)} instead of {tuple(expected.shape)}"
    assert ours.dtype == expected.dtype
    difference = (ours.detach() - expected).abs()
    if where is not None:
        difference = difference[where.expand_as(difference) if where.ndim == difference.ndim else where]
    assert difference.numel() > 0
    limit = tolerance(like or name)
    worst = difference.max().item()
    assert worst <= limit, f"{name}: off by {worst:.3g}, tolerance {limit:.3g}"
