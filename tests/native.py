"""A mini world and random tiny checkpoints for tests of the native tasks, made once per session."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

ROOTS = {
    "flickr30k": "flickr30k",
    "coco-retrieval": "coco",
    "imagenet": "imagenet",
    "imagenet-linear": "imagenet",
    "vqav2": "coco",
    "nlvr2": "nlvr2",
    "snli-ve": "flickr30k",
    "coco-caption": "coco",
    "nocaps": "nocaps",
    "sugarcrepe": "coco",
    "winoground": "winoground",
}
ALL_ROOTS = {**ROOTS, "coco-det": "coco", "ade20k-seg": "ADEChallengeData2016"}
"""With the dense tasks, for which there is no checkpoint here."""
HEADS = {
    **dict.fromkeys(("flickr30k", "coco-retrieval", "imagenet", "sugarcrepe", "winoground"), "retrieval"),
    "nocaps": "coco-caption",
}


@dataclass(frozen=True)
class Native:
    """world: the mini world.  checkpoints: ``<head>.pth``, beside them ``beit3.spm``."""

    world: Path
    checkpoints: Path

    def root(self, task: str) -> Path:
        return self.world / ROOTS[task]

    def checkpoint(self, task: str) -> Path:
        return self.checkpoints / f"{HEADS.get(task, task)}.pth"

    def copy(self, task: str, to: Path) -> Path:
        """The task's data root, copied so that a test may spoil it."""
        shutil.copytree(self.root(task), to / ROOTS[task])
        return to / ROOTS[task]


def make_native(folder: Path) -> Native:
    """Write the mini world and a random checkpoint per head."""
    import torch

    from beit3_bench.backbones.beit3.checkpoint import official_state_dict
    from beit3_bench.backbones.beit3.config import BEiT3Config
    from beit3_bench.backbones.beit3.models import build_model
    from beit3_bench.backbones.beit3.tokenizer import Tokenizer
    from beit3_bench.backbones.checkpoints import METADATA_KEY
    from beit3_bench.tasks.tinyworld import write_tiny_world
    from beit3_bench.tasks.vqav2 import VQAv2

    world, checkpoints = folder / "world", folder / "checkpoints"
    write_tiny_world(world, size="mini")
    checkpoints.mkdir()
    shutil.copy(world / "beit3.spm", checkpoints)
    config = BEiT3Config(
        image_size=32,
        embed_dim=32,
        num_heads=4,
        ffn_dim=64,
        depth=2,
        vocab_size=Tokenizer.load(world / "beit3.spm").num_pieces,
    )
    heads: dict[str, dict[str, Any]] = {
        "retrieval": {},
        "imagenet-linear": {"num_classes": 10},
        "vqav2": {"num_classes": len(VQAv2(world / "coco").vocabulary())},
        "nlvr2": {},
        "snli-ve": {},
        "coco-caption": {},
    }
    torch.manual_seed(0)
    for head, arguments in heads.items():
        model = build_model(head, config, **arguments)
        with torch.no_grad():
            for parameter in model.parameters():  # the official initialisation is so small that all outputs are alike
                if parameter.ndim > 1:
                    parameter.mul_(4)
        content = {"model": official_state_dict(model), METADATA_KEY: {"config": config.to_dict(), "head": head}}
        torch.save(content, checkpoints / f"{head}.pth")
    return Native(world, checkpoints)


def invoke(*words: object) -> Result:
    """The command line, in this process."""
    from beit3_bench.harness.cli import main

    return CliRunner().invoke(main, [str(word) for word in words])


def run_words(native: Native, task: str, data_root: Path | None = None) -> list[object]:
    """The beginning of a `run` command."""
    root = data_root or native.root(task)
    checkpoint = native.checkpoint(task)
    return ["run", "--task", task, "--checkpoint", checkpoint, "--data-root", root, "--workers", 0, "--device", "cpu"]


def edit_json(path: Path, change: Any) -> None:
    """Rewrite a JSON file after ``change(content)`` (in place, or returning the new content)."""
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))
