"""Milliseconds per image from file to uint8 pixels: decoding and resizing, and the cache of preprocessed images.

    python tests/benchmarks/input_benchmark.py [--images 100] [--size 384] [--folder DIR_OF_JPEGS]

Prints one JSON object: the parts of decoding, a filling cache, a warm one, and what it would cost to be certain of a
file by its bytes (read and SHA-256); bytes per cached image; whether torchvision's decoder and resize would give the same
pixels, and how fast they are. Best of three, one thread. Exit status 1 if a warm cache is not 5 times as fast as decoding or
if it gives other pixels. Without ``--folder`` the images are made up: 640 x 480, smooth colours with noise, JPEG quality 90,
130 kB, the size of COCO's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from beit3_bench.backbones.preprocess import Preprocessing, decode, planes
from beit3_bench.harness.reuse.image_cache import ImageCache
from beit3_bench.tasks.image_folders import images_below

WANTED_RATIO = 5.0


def write_images(folder: Path, count: int, width: int = 640, height: int = 480) -> list[Path]:
    """Made-up photographs."""
    paths = []
    for i in range(count):
        generator = np.random.default_rng(i)
        coarse = Image.fromarray(generator.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
        pixels = np.clip(smooth + generator.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=90)
    return paths


def milliseconds(step: Callable, items: Sequence, repeats: int = 3) -> float:
    """Per item, best of ``repeats`` passes."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for item in items:
            step(item)
        best = min(best, time.perf_counter() - start)
    return round(best / len(items) * 1000, 4)


def plain(path: Path, size: int) -> torch.Tensor:
    """The straightforward way, as a reference for the copies that `Preprocessing.load` leaves out."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def torchvision_facts(paths: Sequence[Path], size: int) -> dict[str, float]:
    """Whether torchvision's JPEG decoder and its antialiased bicubic resize equal Pillow's, and their time."""
    from torchvision.io import ImageReadMode, decode_jpeg

    def read(path: Path) -> torch.Tensor:
        return decode_jpeg(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8), mode=ImageReadMode.RGB)

    def resized(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(image[None], size=(size, size), mode="bicubic", antialias=True)[0]

    images = [read(path) for path in paths]
    decoded_equal = np.mean([torch.equal(a, planes(decode(p))) for a, p in zip(images, paths, strict=True)])
    differing = np.mean(
        [float((resized(a) != plain(p, size)).double().mean()) for a, p in zip(images, paths, strict=True)]
    )
    return {
        "decode_ms": milliseconds(read, paths),
        "resize_ms": milliseconds(resized, images),
        "images_decoded_equally": float(decoded_equal),
        "pixels_resized_differently": float(differing),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    preprocessing = Preprocessing(given.size)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        found_files = images_below(given.folder).names if given.folder else []
        paths = [given.folder / name for name in found_files[: given.images]] or write_images(root, given.images)
        cold = milliseconds(ImageCache(root / "cache", preprocessing).load, paths, 1)
        cache = ImageCache(root / "cache", preprocessing)
        pictures = [decode(path) for path in paths]
        small = [picture.resize((given.size, given.size), Image.Resampling.BICUBIC) for picture in pictures]
        entries = [path.stat().st_size for path in (root / "cache").rglob("*.px")]
        report = {
            "images": len(paths),
            "size": given.size,
            "kilobytes_per_file": round(float(np.mean([path.stat().st_size for path in paths])) / 1000, 1),
            "plain_ms": milliseconds(lambda path: plain(path, given.size), paths),
            "load_ms": milliseconds(preprocessing.load, paths),
            "of_which_decode_ms": milliseconds(decode, paths),
            "of_which_resize_ms": milliseconds(preprocessing.pixels, pictures),
            "of_which_to_planes_ms": milliseconds(planes, small),
            "cold_cache_ms": cold,
            "warm_cache_ms": milliseconds(cache.load, paths),
            "of_which_read_and_sha256_ms": milliseconds(lambda p: hashlib.sha256(p.read_bytes()).digest(), paths),
            "kilobytes_per_entry": round(float(np.mean(entries)) / 1000, 1),
            "same_pixels": all(torch.equal(cache.load(path), plain(path, given.size)) for path in paths),
            "torchvision": torchvision_facts(paths, given.size),
        }
    report["warm_ratio"] = round(report["load_ms"] / report["warm_cache_ms"], 2)
    print(json.dumps(report, indent=1))
    return 0 if report["same_pixels"] and report["warm_ratio"] >= WANTED_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
