"""Feeding the device: how fast real photographs are read by how many processes, and what a whole run makes of it.

$PHOTOS names a folder of them; a run reads each many times, from memory as a second run would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import beit3_bench.harness  # noqa: F401, I001  (before torch, as a run does)
import torch
from checks import Piece, Settings
from native import Native, make_native

from beit3_bench.backbones.beit3.checkpoint import official_state_dict
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.models import build_model
from beit3_bench.backbones.beit3.tokenizer import Tokenizer
from beit3_bench.backbones.checkpoints import METADATA_KEY
from beit3_bench.harness.bench.reader import reader_report
from beit3_bench.harness.record.provenance import cores

SIZE = 224
IMAGES = 16_000
"""Of a run: some seconds of a fast card, so that what is done once hardly counts."""
COUNTED = ("samples", "images_decoded", "images_from_cache", "batch_size", "workers", "wall_seconds")


def photographs(piece: Piece, settings: Settings, what: str) -> list[Path]:
    """Of $PHOTOS; where there are none, the piece says so. what: is skipped then."""
    folder = os.environ.get("PHOTOS")
    photos = sorted(Path(folder).glob("*.JPEG")) if folder else []
    if not photos:
        piece.skip(what, "PHOTOS names no folder with *.JPEG")
        settings.write(piece)
    return photos


def write_images(root: Path, photos: list[Path], count: int) -> None:
    """ImageNet's class folders below ``root``/val with links to the photographs in place of what is there."""
    originals = root / "photographs"
    originals.mkdir()
    copies = [Path(shutil.copy(photo, originals)) for photo in photos]
    classes = sorted((root / "val").iterdir())
    for one in classes:
        for file in one.iterdir():
            file.unlink()
    for number in range(count):
        name = f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        os.link(copies[number % len(copies)], classes[number % len(classes)] / name)


def write_checkpoint(native: Native, path: Path, quick: bool) -> None:
    """A random encoder for images and texts, of base size."""
    config = BEiT3Config.preset("tiny" if quick else "base", image_size=32 if quick else SIZE)
    config = config.replace(vocab_size=Tokenizer.load(native.world / "beit3.spm").num_pieces)
    torch.manual_seed(0)
    model = build_model("retrieval", config)
    content = {
        "model": official_state_dict(model),
        METADATA_KEY: {"config": config.to_dict(), "head": "retrieval"},
    }
    torch.save(content, path)


def evaluate(piece: Piece, settings: Settings, native: Native, folder: Path, name: str, *words: str) -> dict[str, Any]:
    """A whole run in bfloat16; what its clock says."""
    output = folder / "runs" / name
    command = [sys.executable, "-m", "beit3_bench.harness", "run", "--task", "imagenet", "--device", settings.device]
    places = ["--checkpoint", folder / "base.pth", "--tokenizer", native.world / "beit3.spm"]
    finished = subprocess.run(
        [*command, *map(str, places), "--data-root", str(native.root("imagenet")), "--dtype", "bf16", "--output", str(output), *words],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    failure = "" if finished.returncode == 0 else finished.stderr.strip()[-300:]
    piece.require(f"run, {name} {failure}".rstrip(), not failure)
    if failure:
        return {}
    timing = json.loads((output / "result.json").read_text())["timing"]
    return {
        **{name: timing[name] for name in COUNTED},
        "seconds": timing["seconds"],
        "samples_per_second": timing["samples_per_second"],
    }


def main() -> None:
    settings = Settings.parse()
    piece = Piece("feeding")
    photos = photographs(piece, settings, "reading and whole runs")
    if not photos:
        return
    counts = sorted({1, 2} if settings.quick else {1, cores() // 2, cores()})
    piece.figures["reader"] = reader_report(photos[0].parent, 32 if settings.quick else SIZE, counts)
    settings.write(piece)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        native = make_native(folder)
        write_checkpoint(native, folder / "base.pth", settings.quick)
        write_images(native.root("imagenet"), photos, 40 if settings.quick else IMAGES)
        cache = ("--image-cache", str(folder / "cache"))
        ways: dict[str, tuple[str, ...]] = {
            "as it is": (),
            "filling the image cache": cache,
            "from the image cache": cache,
        }
        piece.figures["runs"] = {}
        for way, words in ways.items():
            piece.figures["runs"][way] = evaluate(piece, settings, native, folder, way.replace(" ", "-"), *words)
            settings.write(piece)


if __name__ == "__main__":
    main()
