"""Tiny ViLTs with random weights, under the names of the official files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from native import Native
from torch import nn

from beit3_bench.backbones.vilt.loading import random_model
from beit3_bench.backbones.vilt.model import ViLTConfig
from beit3_bench.backbones.vlmo.specimens import vocabulary
from beit3_bench.tasks.retrieval import Flickr30K
from beit3_bench.tasks.vqav2 import VQAv2


def scrambled(model: nn.Module) -> nn.Module:
    """Every parameter drawn anew, so that no part of the network is near zero or one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15 + (parameter.ndim == 1) * 0.3)
    return model


def save_vilts(folder: Path, native: Native) -> Path:
    """``vqav2.ckpt``, ``nlvr2.ckpt`` and ``retrieval.ckpt`` for the mini world, ``pretrained.ckpt`` with the same head as the last has,
    and their vocabulary.
    """
    questions = native.root("vqav2") / "vqa" / "v2_OpenEnded_mscoco_val2014_questions.json"
    texts = [q["question"] for q in json.loads(questions.read_text())["questions"]]
    texts += [e.text for e in Flickr30K(native.root("flickr30k")).read("test").examples if e.kind == "text"]
    pieces = vocabulary(texts)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    answers = len(VQAv2(native.root("vqav2")).vocabulary())
    for head, outputs, types in (("vqav2", answers, 2), ("nlvr2", 2, 3), ("retrieval", 1, 2)):
        config = ViLTConfig(
            width=64, depth=2, heads=1, ffn=128, patch_size=8, grid=4, vocab_size=len(pieces), token_types=types
        )
        state = scrambled(random_model(head, config, outputs)).state_dict()
        state["text_embeddings.position_ids"] = torch.arange(40)[None]
        state["mlm_score.bias"] = torch.zeros(len(pieces))
        torch.save({"state_dict": state, "epoch": 1}, folder / f"{head}.ckpt")
    for part in ("weight", "bias"):
        ranking = state.pop(f"rank_output.{part}")
        state[f"itm_score.fc.{part}"] = torch.cat([torch.full_like(ranking, 7), ranking])
    torch.save({"state_dict": state, "epoch": 1}, folder / "pretrained.ckpt")
    return folder
