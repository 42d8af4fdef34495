"""Loader of tests/golden/peers: what VLMo's official code gave for random weights, and the names of its released files."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from exactness import sums_as_golden
from goldens import COMMITTED
from safetensors.torch import load_file
from torch import Tensor

from beit3_bench.backbones.vlmo.config import Settings, shape_of_file
from beit3_bench.backbones.vlmo.loading import build
from beit3_bench.backbones.vlmo.model import VLMo

FOLDER = COMMITTED / "peers" / "vlmo"
MANIFESTS = COMMITTED / "peers" / "manifests"
VOCABULARY = FOLDER / "vocab.txt"
ARCHITECTURES = ("relpos", "abspos")
HEADS = {"irtr": "retrieval", "pretrain": "retrieval", "vqa": "vqav2", "nlvr2": "nlvr2"}
IMAGES = tuple(str(FOLDER / "images" / f"{n:02d}.png") for n in range(12))


@cache
def document(name: str) -> Any:
    """``NAME.json`` of the folder."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@cache
def tensors(name: str) -> dict[str, Tensor]:
    """``NAME.safetensors`` of the folder. Shared between tests: never write into it."""
    return load_file(FOLDER / f"{name}.safetensors")


def state(architecture: str, task: str) -> dict[str, Tensor]:
    """The official state dict of a task."""
    return {**tensors(f"{architecture}.weights_backbone"), **tensors(f"{architecture}.weights_{task}")}


def model(architecture: str, task: str, image_size: int | None = None, **changed: Tensor) -> VLMo:
    """The network with the golden weights."""
    weights = {**state(architecture, task), **changed}
    config = document("manifest")["config"]["archs"][architecture]
    settings = Settings(image_size=image_size, num_heads=config["num_heads"], max_text_length=config["max_text_len"])
    outputs = {"vqa": config["num_answers"], "nlvr2": 2}.get(task, 0)
    return build(HEADS[task], shape_of_file(weights, "golden", settings), outputs, weights, "golden")[0]


def inputs(architecture: str, name: str) -> Tensor:
    return tensors("inputs")[f"{architecture}.{name}"]


def tolerance(name: str) -> float:
    """Ten times the distance of the official code's float32 from float64; more where sums run in another order."""
    floor = document("manifest")["outputs"][name]["fp32_noise_floor"]["max_abs_vs_float64"]
    return max(1e-6, 10 * floor) * (1 if sums_as_golden() else 4)


def assert_golden(name: str, actual: Tensor) -> None:
    torch.testing.assert_close(actual, tensors("outputs")[name], rtol=0, atol=tolerance(name))


def write_file(path: Path, weights: dict[str, Tensor]) -> Path:
    """A file as the official code writes it, the vocabulary beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, path)
    (path.parent / "vocab.txt").write_bytes(VOCABULARY.read_bytes())
    return path


def for_answers(count: int, architecture: str = "relpos") -> dict[str, Tensor]:
    """The golden state dict for VQAv2 with a head of another length: its rows again, fainter each time."""
    weights = state(architecture, "vqa")
    for name in ("vqa_classifier.3.weight", "vqa_classifier.3.bias"):
        rows = weights[name]
        weights[name] = torch.stack([rows[n % len(rows)] * 0.9 ** (n // len(rows)) for n in range(count)])
    return weights
