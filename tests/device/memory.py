"""Memory on the device: what models take, what their batches take, and what happens when it runs out for real."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import beit3_bench.harness  # noqa: F401, I001  (before torch, as a run does)
import numpy as np
import torch
from checks import Piece, Settings
from native import make_native

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.errors import BenchError
from beit3_bench.backbones.beit3.models import blank_model, build_model
from beit3_bench.backbones.beit3.native import DualEncoder
from beit3_bench.backbones.reading import NativeReader
from beit3_bench.backbones.preprocess import Preprocessing
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.devices import automatic_batch_size
from beit3_bench.harness.engine.predict import MemoryStore, Throughput, predict_all
from beit3_bench.tasks.registry import get_task

BATCH = 128
HALVED_ROOM = 2**30
"""Bytes for activations: in float32 at base size and 384 pixels a batch of 128 takes about 2.5 GB."""
NO_ROOM = 2**20
ROUNDING = 1.03
"""The allocator rounds tensors up: at most so much in all."""


def dual_encoder(model: torch.nn.Module) -> DualEncoder:
    """Images alone."""
    preprocessing = Preprocessing(model.config.image_size)
    return DualEncoder(model, NativeReader(preprocessing), preprocessing)


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
        batch = min(32, automatic_batch_size(device, dual_encoder(model)))
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
        piece.check(f"{preset}: weights measured / estimated", weights / estimated, ROUNDING)
        del model
        torch.cuda.empty_cache()
    piece.figures["sizes"] = rows


def out_of_memory(piece: Piece, device: torch.device, model: torch.nn.Module, folder: Path, card: Card) -> None:
    """A batch that does not fit is halved until it does, and the rows are those of a small batch; a sample that does not fit is named."""
    task = get_task("imagenet")(make_native(folder).root("imagenet"))
    ability = dual_encoder(model)
    whole = task.labelled_images("val")
    images = itertools.cycle(whole.examples)
    split = whole.of([dataclasses.replace(next(images), id=str(i)) for i in range(BATCH)])

    def rows(batch: int) -> tuple[MemoryStore, Throughput]:
        store, compute = MemoryStore(), Compute(str(device), batch_size=batch, workers=0)
        return store, predict_all(task, split, ability, store, device, compute)

    calm, _ = rows(4)
    with card.room(HALVED_ROOM):
        tight, facts = rows(BATCH)
    piece.require("memory ran out and batches were halved", facts.out_of_memory > 0 and facts.batch_size < BATCH)
    piece.require("every row is there", calm.done() == tight.done())
    piece.check(
        "rows after halving against rows of a small batch",
        max(difference(row, tight.rows[name]) for name, row in calm.rows.items()),
        1e-4,
    )
    piece.figures["halving"] = {
        "room_bytes": HALVED_ROOM,
        "asked": BATCH,
        "batch_size": facts.batch_size,
        "halvings": facts.out_of_memory,
        "peak_bytes": facts.peak_device_memory_bytes,
    }
    with card.room(NO_ROOM):
        try:
            rows(2)
            message = "none"
        except BenchError as error:
            message = str(error)
    piece.require(
        f"a sample that does not fit is named in one line: {message}",
        "even for a batch of one" in message and "\n" not in message,
    )


class Card:
    """The memory of a card, which can be made short."""

    def __init__(self, device: torch.device):
        self.device = device

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Let this process have only ``size`` bytes more than what it holds now."""
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(self.device).total_memory
        held = torch.cuda.memory_reserved(self.device)
        torch.cuda.set_per_process_memory_fraction(min((held + size) / total, 1.0), self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)


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
    torch.manual_seed(0)
    model = build_model("retrieval", BEiT3Config.preset("base", image_size=384)).to(device)
    with tempfile.TemporaryDirectory() as folder:
        out_of_memory(piece, device, model, Path(folder), Card(device))
    settings.write(piece)


if __name__ == "__main__":
    main()
