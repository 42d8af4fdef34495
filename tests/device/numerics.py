"""Every native head on the device, in float32 and in half precision, against the tensors of the official code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import beit3_bench.harness  # noqa: F401, I001  (before torch, as a run does)
import beit3_golden as golden
import torch
from checks import Piece, Settings
from torch import Tensor, nn

from beit3_bench.backbones.beit3.decoding_graphs import keep_graphs
from beit3_bench.backbones.beit3.generation import Decoding, search
from beit3_bench.backbones.beit3.native import compile_layers
from beit3_bench.backbones.precision import DTYPES
from beit3_bench.harness.evidence.numerics import measure

LIMITS = {"bf16": 3e-2, "fp16": 4e-3}
"""Largest relative error (Frobenius norm) in half precision: about 4 roundings of 8 or 11 bits. float32 has the goldens' own."""


def heads(device: torch.device) -> dict[str, Callable[[nn.Module], dict[str, Tensor]]]:
    """Per official class: the outputs of its model, under the goldens' names."""
    given = {name: tensor.to(device) for name, tensor in golden.inputs().items()}

    def images(task: str, side: str | None = None) -> Tensor:
        rows = golden.rows(task)
        return given["images"][rows if side is None else rows[side]]

    def text(task: str) -> tuple[Tensor, Tensor]:
        return given[f"{task}.tokens"], given[f"{task}.padding_mask"]

    return {
        "retrieval": lambda m: {
            "retrieval.vision_cls": m.encode_image(images("retrieval")),
            "retrieval.language_cls": m.encode_text(*text("retrieval")),
        },
        "vqav2": lambda m: {"vqav2.logits": m(images("vqav2"), *text("vqav2"))},
        "nlvr2": lambda m: {"nlvr2.logits": m(images("nlvr2", "a"), images("nlvr2", "b"), *text("nlvr2"))},
        "imagenet": lambda m: {"imagenet.logits": m(images("imagenet"))},
        "captioning": lambda m: {
            "captioning.masked_logits": m(
                images("captioning"),
                given["captioning.masked_tokens"],
                given["captioning.padding_mask"],
                given["captioning.language_masked_pos"],
            )
        },
    }


def compare(piece: Piece, device: torch.device, dtype: str, compiled: bool = False, only: tuple[str, ...] = ()) -> None:
    """All heads in one precision, or some of them."""
    label = f"{dtype}{', compiled' if compiled else ''}"
    for task, call in heads(device).items():
        if only and task not in only:
            continue
        model = golden.build(task).to(device)
        if compiled:
            compile_layers(model)
        with torch.inference_mode(), torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "fp32"):
            outputs = call(model)
        for name, ours in outputs.items():
            expected = golden.outputs()[name]
            if dtype == "fp32":
                # Another processor adds up in another order: three times what is allowed on a CPU.
                piece.check(f"{name} ({label})", (ours.cpu() - expected).abs().max(), 3 * golden.tolerance(name))
            else:
                error = (ours.float().cpu() - expected).norm() / expected.norm()
                piece.check(f"{name} ({label})", error, LIMITS[dtype])


def captions(piece: Piece, device: torch.device) -> None:
    """Beam search in float32, step by step and from captured graphs: the ids of the official decoder, its scores."""
    images = golden.images("captioning").to(device)
    for case in golden.document("beam"):
        decoding = Decoding(case["num_beams"], case["max_len"], case["length_penalty"])
        name = f"beams {decoding.num_beams}, penalty {decoding.length_penalty}, length {decoding.max_length}"
        expected = golden.tensors("beam")[case["tensor"]].tolist()
        model = golden.build("captioning").to(device)
        for way in ("plain", "graphs"):
            if way == "graphs":
                keep_graphs(model)
            hypotheses = search(model, images, decoding) if way == "plain" else model.hypotheses(images, decoding)
            pad = golden.CONFIG.pad_token_id
            padded = [h.ids + [pad] * (decoding.max_length - len(h.ids)) for h in hypotheses]
            piece.require(f"caption ids ({way}; {name})", padded == expected)
            apart = max(abs(h.score - s) for h, s in zip(hypotheses, case["normalised_score"], strict=True))
            piece.check(f"caption scores ({way}; {name})", apart, 1e-4)


def stages(piece: Piece, device: str, dtypes: list[str]) -> None:
    """Stage by stage what users are asked for: `beit3-bench doctor --numerics`."""
    for one in measure(device, dtypes).comparisons:
        name = f"{one.stage} of {one.head} ({one.dtype}, doctor --numerics)"
        piece.check(name, one.difference, one.most)
        piece.require(f"{name}: at least {one.least:.2g}", one.difference >= one.least)


def main() -> None:
    settings = Settings.parse()
    device = torch.device(settings.device)
    piece = Piece("numerics")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    computed = []
    for dtype in DTYPES:
        if dtype == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
            piece.skip("bf16", "this card does not compute in it")
            continue
        compare(piece, device, dtype)
        computed.append(dtype)
        settings.write(piece)
    captions(piece, device)
    settings.write(piece)
    stages(piece, settings.device, computed)
    settings.write(piece)
    if settings.quick:
        piece.skip("compiled layers", "asked for the quick form")
    else:
        for dtype in ("fp32", "bf16"):
            compare(piece, device, dtype, compiled=True, only=("vqav2",))  # each kind of input takes its time
    settings.write(piece)


if __name__ == "__main__":
    main()
