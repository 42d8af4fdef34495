"""How fast images are read: from files to the uint8 pixels that a batch holds, and how many cores of it one card takes.

The reader is Pillow: decoding with libjpeg-turbo, bicubic resizing with a filter as wide as the reduction, as the official
transforms do. Other decoders are measured beside it, with the hand-over to Pillow that resizing needs, and their pixels compared:
what does not give the same bytes on every picture is no choice, however fast. What resizes faster (Pillow-SIMD, torch's antialiased
kernels on uint8, a JPEG that is decoded at a fraction of its size) gives other bytes and is not measured.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.backbones.images import FORMATS, opened, read_image_file
from beit3_bench.backbones.preprocess import Preprocessing, decode, planes
from beit3_bench.errors import BenchError

REPEATS = 5
LEAST_READ = 200
"""Images that the workers read: a folder of few is gone through several times, so that their start does not count."""

Decoder = Callable[[bytes], np.ndarray]


def reader_report(folder: Path, image_size: int, workers: Sequence[int] | None = None) -> dict[str, Any]:
    """Read every picture of a folder, step by step, whole, by several processes and from an image cache.

    Args:
        image_size: side of the square input, pixels.
        workers: numbers of decoding processes; None = one, and one per core.

    Returns:
        ``images``, ``bytes``, ``median_pixels`` (width x height); ``milliseconds`` per image of each step, medians of `REPEATS`
        rounds in one process; ``images_per_second`` of that process; ``workers``: ``{"workers", "images_per_second"}`` each;
        ``cache``: from an image cache; ``decoders``: ``{"name", "milliseconds", "equal", "of"}``, equal = on how many of the JPEGs
        the bytes are Pillow's.

    Raises:
        BenchError: no picture in the folder, or one that does not decode.
    """
    from beit3_bench.harness.record.provenance import cores

    files = _pictures(folder)
    contents = [read_image_file(file) for file in files]
    preprocessing = Preprocessing(image_size)
    images = [decode(file, content) for file, content in zip(files, contents, strict=True)]
    resized = [preprocessing.square(image) for image in images]
    steps: dict[str, Callable[[], Any]] = {
        "read": lambda: [read_image_file(file) for file in files],
        "decode": lambda: [decode(file, content) for file, content in zip(files, contents, strict=True)],
        "resize": lambda: [preprocessing.square(image) for image in images],
        "planes": lambda: [planes(image) for image in resized],
        "whole": lambda: [preprocessing.load(file) for file in files],
    }
    milliseconds = {name: _milliseconds(step, len(files)) for name, step in steps.items()}
    return {
        "folder": str(folder),
        "images": len(files),
        "bytes": sum(map(len, contents)),
        "median_pixels": statistics.median(image.width * image.height for image in images),
        "image_size": image_size,
        "milliseconds": milliseconds,
        "images_per_second": 1e3 / milliseconds["whole"],
        "workers": [
            {"workers": count, "images_per_second": _by_workers(files, preprocessing, count)}
            for count in workers or sorted({1, cores()})
        ],
        "cache": {"images_per_second": _from_cache(files, preprocessing)},
        "decoders": _decoders(files, contents, images),
    }


def reader_text(report: dict[str, Any]) -> list[list[str]]:
    """Two columns: what, and how fast."""
    steps = report["milliseconds"]
    lines = [[f"{name}, ms per image", f"{value:.2f}"] for name, value in steps.items()]
    lines.append(["one process, images/s", f"{report['images_per_second']:.0f}"])
    lines += [[f"--workers {w['workers']}, images/s", f"{w['images_per_second']:.0f}"] for w in report["workers"]]
    lines.append(["one process from --image-cache, images/s", f"{report['cache']['images_per_second']:.0f}"])
    lines += [
        [
            f"{d['name']} for Pillow's decoder, ms",
            f"{d['milliseconds']:.2f}, equal bytes on {d['equal']} of {d['of']} JPEGs",
        ]
        for d in report["decoders"]
    ]
    return lines


def _pictures(folder: Path) -> list[Path]:
    """Raises: BenchError: there is none."""
    if not folder.is_dir():
        raise BenchError(f"--reader {folder}: is no folder; give one with pictures")
    suffixes = {".jpg", ".jpeg", *(f".{name.lower()}" for name in FORMATS)}
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    if not files:
        raise BenchError(f"--reader {folder}: holds no picture ({', '.join(FORMATS)}); give a folder with pictures")
    return files


def _milliseconds(step: Callable[[], Any], count: int) -> float:
    """Per image, the median of `REPEATS` rounds after one that warms up."""
    step()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / count * 1e3


def _by_workers(files: Sequence[Path], preprocessing: Preprocessing, workers: int) -> float:
    """Images per second that arrive in this process from decoding processes, from the first that came on."""
    from torch.utils.data import Dataset

    from beit3_bench.harness.engine.batches import decode_ahead

    class Pixels(Dataset):
        def __getitem__(self, place: int) -> Any:
            return preprocessing.load(files[place % len(files)])

    count = max(LEAST_READ * workers, len(files))
    arrivals: Iterator[Any] = decode_ahead(Pixels(), range(count), workers, pin=False)
    waiting = 4 * workers  # decoded before the clock starts
    for _ in range(waiting):
        next(arrivals)
    start = time.perf_counter()
    left = sum(1 for _ in arrivals)
    return left / (time.perf_counter() - start)


def _from_cache(files: Sequence[Path], preprocessing: Preprocessing) -> float:
    """Images per second of one process that finds all of them in an image cache."""
    from beit3_bench.harness.reuse.image_cache import ImageCache

    with tempfile.TemporaryDirectory() as folder:
        cache = ImageCache(folder, preprocessing)
        per_image = _milliseconds(lambda: [cache.load(file) for file in files], len(files))
        if cache.misses > len(files):
            raise BenchError(f"{os.fspath(folder)}: the image cache keeps nothing ({cache.trouble}); set TMPDIR")
    return 1e3 / per_image


def _decoders(files: Sequence[Path], contents: Sequence[bytes], images: Sequence[Any]) -> list[dict[str, Any]]:
    """Other decoders of JPEG that are installed, over the files that are JPEG and whose pixels Pillow has as they lie in the file."""
    from PIL import Image

    chosen = []
    for file, content, image in zip(files, contents, images, strict=True):
        with opened(file, content) as header:
            if header.format == "JPEG" and header.mode in ("RGB", "L"):
                chosen.append((content, image))
    rows = []
    for name, decoder in _others():
        if not chosen:
            break
        equal = sum(np.array_equal(decoder(content), np.asarray(image)) for content, image in chosen)
        taken = _milliseconds(lambda d=decoder: [Image.fromarray(d(content)) for content, _ in chosen], len(chosen))  # type: ignore[misc]
        rows.append({"name": name, "milliseconds": taken, "equal": equal, "of": len(chosen)})
    return rows


def _others() -> list[tuple[str, Decoder]]:
    """Name, and bytes -> uint8 (h, w, 3)."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    def by_torchvision(content: bytes) -> np.ndarray:
        file = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(file, mode=ImageReadMode.RGB).permute(1, 2, 0).contiguous().numpy()

    others: list[tuple[str, Decoder]] = [("torchvision", by_torchvision)]
    if find_spec("simplejpeg"):
        import simplejpeg

        others.append(("simplejpeg", lambda content: simplejpeg.decode_jpeg(content, "RGB", False, False)))
    return others
