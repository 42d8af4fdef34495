"""Memory on the device: what models take, what their batches take, and what happens when it runs out for real."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import beit3_bench.harness  # noqa: F401, I001  (before torch, as a run does)
import numpy as np
import torch
from checks import Piece, Settings
from native import make_native

from beit3_bench.backbones.config import BEiT3Config
from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.models import blank_model, build_model
from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.harness.devices import automatic_batch_size
from beit3_bench.harness.engine import MemoryStore, predict_all
from beit3_bench.tasks.registry import get_task

GIB = 2**30


def sizes(piece: Piece, device: torch.device, presets: tuple[str, ...]) -> None:
    """Bytes of the weights, estimated from shapes on the meta device and measured; and of the activations of one batch."""
    rows = []
    for preset in presets:
        config = BEiT3Config.preset(preset, image_size=224)
        estimated = sum(p.nbytes for p in blank_model("retrieval", config).parameters())
        before = torch.cuda.memory_allocated(device)
        with device:
            model = build_model("retrieval", config)
        weights = torch.cuda.memory_allocated(device) - before
        batch = min(32, automatic_batch_size(device, model))
        torch.cuda.reset_peak_memory_stats(device)
        with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
            model.encode_image(torch.randn(batch, 3, 224, 224, device=device))
        peak = torch.cuda.max_memory_allocated(device) - before - weights
        rows.append(
            {
                "preset": preset,
                "weights_estimated_bytes": estimated,
                "weights_bytes": weights,
                "batch": batch,
                "batch_bytes": peak,
            }
        )
        piece.check(f"{preset}: weights measured / estimated", weights / estimated, 1.02)
        del model
        torch.cuda.empty_cache()
    piece.figures["sizes"] = rows


def out_of_memory(piece: Piece, device: torch.device, folder: Path) -> None:
    """A batch that does not fit is halved until it does, and the rows are those of a small batch; a sample that does not fit is named."""
    native = make_native(folder)
    task = get_task("imagenet")(native.root("imagenet"))
    torch.manual_seed(0)
    model = build_model("retrieval", BEiT3Config.preset("base", image_size=384))
    task.bind(Preprocessing(image_size=384), None)
    images = itertools.cycle(task.labelled_images("val"))
    examples = [dataclasses.replace(next(images), id=str(i)) for i in range(128)]

    def rows(batch: int) -> tuple[MemoryStore, Any]:
        store = MemoryStore()
        return store, predict_all(task, model, examples, store, device, batch_size=batch, workers=0)

    calm, _ = rows(4)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    needed = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        torch.cuda.set_per_process_memory_fraction((needed + 1.2 * GIB) / total, device)
        tight, facts = rows(128)
        piece.require("memory ran out and batches were halved", facts.out_of_memory > 0 and facts.batch_size < 128)
        piece.require("every row is there", calm.done() == tight.done())
        apart = max(difference(calm.rows[i], tight.rows[i]) for i in calm.rows)
        piece.check("rows after halving against rows of a small batch", apart, 1e-4)
        piece.figures["halving"] = {
            "memory_bytes": int(needed + 1.2 * GIB),
            "asked": 128,
            "batch_size": facts.batch_size,
            "halvings": facts.out_of_memory,
            "peak_bytes": torch.cuda.max_memory_allocated(device),
        }
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 2**21) / total, device)
        try:
            rows(2)
            piece.require("a sample that does not fit is an error", False)
        except BenchError as error:
            piece.require(
                "a sample that does not fit is named in one line",
                "not enough memory" in str(error) and "\n" not in str(error),
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def difference(a: Any, b: Any) -> float:
    """Largest difference of the numbers in two rows."""
    if isinstance(a, dict):
        return max((difference(a[k], b[k]) for k in a), default=0.0)
    if isinstance(a, (float, list, np.ndarray)):
        return float(np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).max(initial=0.0))
    return 0.0 if a == b else float("inf")


def main() -> None:
    settings = Settings.parse()
    piece = Piece("memory")
    device = torch.device(settings.device)
    if device.type != "cuda":
        piece.skip("memory", f"{device} has no memory of its own")
        settings.write(piece)
        return
    device = torch.device("cuda", torch.cuda.current_device())
    sizes(piece, device, ("base",) if settings.quick else ("base", "large", "giant"))
    settings.write(piece)
    with tempfile.TemporaryDirectory() as folder:
        out_of_memory(piece, device, Path(folder))
    settings.write(piece)


if __name__ == "__main__":
    main()
