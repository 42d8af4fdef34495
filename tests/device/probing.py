"""The dense probe: what its patches and its steps take, and what that makes of ADE20K as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import beit3_bench.harness  # noqa: F401, I001  (before torch, as a run does)
from checks import Piece, Settings
from feeding import photographs, write_checkpoint
from native import make_native
from PIL import Image

from beit3_bench.tasks.metrics.dense_probe import ITERATIONS

TRAINED_ON, EVALUATED = 20_210, 2_000
"""Images of ADE20K."""
IMAGES, FEW, MANY = 320, 100, 1_100
"""Images of either split here; steps of two fits, whose difference is that of their times."""
SECONDS_AT_MOST = 3600


def write_scenes(root: Path, photos: list[Path], count: int) -> None:
    """ADE20K's folders below ``root`` with photographs in place of what is there, and labels of 8 bands."""
    for split, name in (("training", "ADE_train"), ("validation", "ADE_val")):
        images, annotations = root / "images" / split, root / "annotations" / split
        for old in (*images.iterdir(), *annotations.iterdir()):
            old.unlink()
        for number in range(count):
            photo = photos[number % len(photos)]
            stem = f"{name}_{number + 1:08d}"
            if number < len(photos):
                with Image.open(photo) as picture:
                    picture = picture.convert("RGB")
                    picture.save(images / f"{stem}.jpg", quality=90)
                    bands = Image.frombytes("L", (1, 8), bytes(range(1, 9)))
                    bands.resize(picture.size, Image.Resampling.NEAREST).save(annotations / f"{stem}.png")
            else:
                first = f"{name}_{number % len(photos) + 1:08d}"
                os.link(images / f"{first}.jpg", images / f"{stem}.jpg")
                os.link(annotations / f"{first}.png", annotations / f"{stem}.png")


def main() -> None:
    settings = Settings.parse()
    piece = Piece("probing")
    photos = photographs(piece, settings, "the dense probe")
    if not photos:
        return
    count, few, many = (12, 2, 6) if settings.quick else (IMAGES, FEW, MANY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        native = make_native(folder)
        write_checkpoint(native, folder / "base.pth", settings.quick)
        root = native.world / "ADEChallengeData2016"
        write_scenes(root, photos, count)
        command = [sys.executable, "-m", "beit3_bench.harness", "probe", "--task", "ade20k-seg"]
        places = ["--checkpoint", folder / "base.pth", "--data-root", root, "--features", folder / "patches"]
        seconds = {}
        for steps in (few, many):
            output = folder / f"run-{steps}"
            words = ["--device", settings.device, "--dtype", "bf16", "--iterations", steps, "--output", output]
            started = time.perf_counter()
            finished = subprocess.run(
                [*command, *map(str, (*places, *words))], capture_output=True, text=True, check=False
            )
            seconds[steps] = time.perf_counter() - started
            failure = "" if finished.returncode == 0 else finished.stderr.strip()[-300:]
            piece.require(f"probe, {steps} steps {failure}".rstrip(), not failure)
            if failure:
                settings.write(piece)
                return
            if steps == few:
                clock = json.loads((output / "result.json").read_text())["timing"]
        features = clock["seconds"]["features"]  # which the second finds
        step = (seconds[many] - (seconds[few] - features)) / (many - few)
        patches = features / count
        evaluated = clock["wall_seconds"] / count
        whole = patches * TRAINED_ON + step * ITERATIONS + evaluated * EVALUATED
        piece.figures = {
            "seconds_per_image_of_patches": patches,
            "seconds_per_step": step,
            "seconds_per_image_evaluated": evaluated,
            "seconds_of_all_commands": seconds,
            "seconds_of_ade20k": whole,
            "clock": clock,
        }
        if not settings.quick:
            piece.check("ADE20K as a whole, seconds", whole, SECONDS_AT_MOST)
    settings.write(piece)


if __name__ == "__main__":
    main()
