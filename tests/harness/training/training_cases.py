"""What the tests of fine-tuning share: the golden models and batches, and a mini world with requests on it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from goldens import COMMITTED
from safetensors.torch import load_file

from beit3_bench.backbones.beit3.checkpoint import load_checkpoint
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.backbones.beit3.training.losses import (
    captioning_loss,
    classification_loss,
    contrastive_loss,
    nlvr2_loss,
    vqa_loss,
)
from beit3_bench.backbones.checkpoints import read_checkpoint
from beit3_bench.harness.training.session import finetune
from beit3_bench.harness.training.start import FinetuneRequest
from beit3_bench.harness.training.state import LAST
from beit3_bench.tasks.registry import get_task

FOLDER = COMMITTED / "beit3"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())
DEPTH = MANIFEST["config"]["layers"]
HEADS = {
    "retrieval": ("retrieval", {}),
    "vqav2": ("vqav2", {"num_classes": 17}),
    "nlvr2": ("nlvr2", {"num_classes": 2}),
    "imagenet": ("imagenet-linear", {"num_classes": 10}),
    "captioning": ("coco-caption", {}),
}


def golden_json(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def golden_model(name: str) -> torch.nn.Module:
    """The golden network of a task, with its weights, in training mode."""
    c = MANIFEST["config"]
    config = BEiT3Config(
        image_size=c["img_size"], patch_size=c["patch_size"], embed_dim=c["embed_dim"], num_heads=c["heads"],
        ffn_dim=c["ffn_dim"], depth=c["layers"], vocab_size=c["vocab_size"], mask_token_id=c["tokens"]["mask"],
    )  # fmt: skip
    head, arguments = HEADS[name]
    model = build_model(head, config, **arguments)
    absent = MANIFEST["classes"][name]["backbone_keys_absent"]
    tensors = {k: v for k, v in load_file(FOLDER / "weights_backbone.safetensors").items() if k not in absent}
    load_checkpoint(model, {**tensors, **load_file(FOLDER / f"weights_{name}.safetensors")})
    return model.train()


def golden_loss(name: str, model: torch.nn.Module, step: int = 0) -> torch.Tensor:
    """The loss of the golden training batch."""
    x = load_file(FOLDER / "inputs.safetensors")
    rows = MANIFEST["rows"][name]
    if name == "nlvr2":
        logits = model(x["images"][rows["a"]], x["images"][rows["b"]], x["nlvr2.tokens"], x["nlvr2.padding_mask"])
        return nlvr2_loss(logits, x["nlvr2.label"])
    images = x["images"][rows]
    if name == "imagenet":
        return classification_loss(model(images), x["imagenet.label"])
    padding = x[f"{name}.padding_mask"]
    if name == "retrieval":
        image, text, scale = model(images, x["retrieval.tokens"], padding)
        return contrastive_loss(image, text, scale)
    if name == "vqav2":
        return vqa_loss(model(images, x["vqav2.tokens"], padding), x["vqav2.labels"])
    masked = x["captioning.language_masked_pos"]
    logits = model(images, x["captioning.masked_tokens"], padding, masked)
    return captioning_loss(logits, x["captioning.tokens"][masked.bool()], 0.1, 0.2, 12000, step)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch: sums come out in the same order as in a process of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mini_world(folder: Path) -> Path:
    """A tiny world of the smallest size."""
    from beit3_bench.tasks.tinyworld import write_tiny_world

    write_tiny_world(folder, seed=0, size="mini")
    return folder


# ---- requests on the mini world ------------------------------------------------------------------------------------

ROOTS = {
    "flickr30k": "flickr30k", "coco-retrieval": "coco", "imagenet": "imagenet", "imagenet-linear": "imagenet", "vqav2": "coco",
    "nlvr2": "nlvr2", "coco-caption": "coco",
}  # fmt: skip
HEAD_OF = {
    "flickr30k": "retrieval", "coco-retrieval": "retrieval", "imagenet": "retrieval", "imagenet-linear": "imagenet-linear",
    "vqav2": "vqav2", "nlvr2": "nlvr2", "coco-caption": "coco-caption",
}  # fmt: skip
SHORT = {"steps": "4", "warmup_steps": "1", "batch": "8", "log_steps": "1", "validate_epochs": "0", "drop_path": "0"}


def request_for(
    world: Path, output: Path, task: str = "flickr30k", options: dict[str, str] | None = None, **changes
) -> FinetuneRequest:
    base = FinetuneRequest(
        task, world / ROOTS[task], preset="tiny", tokenizer=world / "beit3.spm", output=output, device="cpu", workers=0,
        options={**SHORT, **(options or {})},
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def train(request: FinetuneRequest) -> dict:
    return finetune(request, get_task(request.task))


def weights(folder: Path, name: str = LAST) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / name).tensors


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], noise: bool = True) -> float:
    """Largest difference of a weight. noise=False: without k_proj.bias, whose gradient in a single modality is zero but
    for rounding, of which Adam makes steps of full size.
    """
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max()) for n in a if noise or ".k_proj." not in n or not n.endswith("bias"))


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def finetune_words(request: FinetuneRequest) -> list[str]:
    """The command line, behind the program's name, that asks for a request."""
    words = ["finetune", "--task", request.task, "--data-root", str(request.data_root), "--preset", "tiny"]
    words += ["--tokenizer", str(request.tokenizer), "--output", str(request.output), "--device", "cpu"]
    words += ["--workers", "0", *(["--parallel", request.parallel] if request.parallel else [])]
    return words + [word for key, value in request.options.items() for word in ("-o", f"{key}={value}")]


def launched(request: FinetuneRequest, processes: int, *extra: str) -> subprocess.CompletedProcess:
    command_line = [*LAUNCH, str(processes), "-m", "beit3_bench.harness", *finetune_words(request), *extra]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command_line, capture_output=True, text=True, timeout=300, check=False, env=env)
