"""Loader of tests/golden/peers/{albef,blip}: what the official code of ALBEF and BLIP gave for random weights."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from exactness import sums_as_golden
from goldens import COMMITTED
from safetensors.torch import load_file
from torch import Tensor

FOLDER = COMMITTED / "peers"
MANIFESTS = FOLDER / "manifests"
HEADS = {
    "retrieval": "coco-retrieval",
    "vqa": "vqav2",
    "nlvr": "nlvr2",
    "caption": "coco-caption",
    "ve": "snli-ve",
}
"""Golden name of a head -> our task."""


@cache
def document(family: str, name: str) -> Any:
    """``NAME.json`` of a family's folder."""
    return json.loads((FOLDER / family / f"{name}.json").read_text(encoding="utf-8"))


@cache
def tensors(family: str, name: str) -> dict[str, Tensor]:
    """``NAME.safetensors`` of a family's folder. Shared between tests: never write into it."""
    return load_file(FOLDER / family / f"{name}.safetensors")


def inputs(family: str, name: str) -> Tensor:
    return tensors(family, "inputs")[name]


def wanted(family: str, name: str) -> Tensor:
    return tensors(family, "outputs")[name]


def images(family: str) -> list[str]:
    return [str(path) for path in sorted((FOLDER / family / "images").glob("*.png"))]


def image_of(family: str, name: str) -> str:
    return str(FOLDER / family / "images" / name)


def heads(family: str, head: str) -> dict[str, int]:
    """What the shapes of so narrow a model do not show."""
    config = document(family, "manifest")["config"]["tasks"][head]
    text = config["bert_config" if family == "albef" else "med_config"]
    return {"num_heads": config["vision_heads"], "text_heads": text["num_attention_heads"]}


def tolerance(family: str, name: str) -> float:
    """Ten times the distance of the official code's float32 from float64; more where sums run in another order."""
    floor = document(family, "manifest")["outputs"][name]["fp32_noise_floor"]["max_abs_vs_float64"]
    return max(1e-6, 10 * floor) * (1 if sums_as_golden() else 4)


def assert_golden(family: str, name: str, actual: Tensor) -> None:
    torch.testing.assert_close(actual, wanted(family, name), rtol=0, atol=tolerance(family, name))


def write_file(folder: Path, family: str, head: str, content: dict[str, Tensor] | None = None) -> Path:
    """A file as the official code writes it, the vocabulary beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{family}_{head}.pth"
    weights = tensors(family, f"weights_{head}") if content is None else content
    torch.save({"model": dict(weights), "config": {}, "epoch": 1}, path)
    (folder / "vocab.txt").write_bytes((FOLDER / family / "vocab.txt").read_bytes())
    return path


def full_size(name: str) -> dict[str, Tensor]:
    """Tensors of an official class at full size, without values: ``NAME.txt`` of the manifests."""
    lines = (MANIFESTS / f"{name}.txt").read_text().splitlines()
    pairs = (line.split(" ", 1) for line in lines)
    return {key: torch.empty(ast.literal_eval(shape), device="meta") for key, shape in pairs}
