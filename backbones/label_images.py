"""Label maps as files: grey PNG images whose pixels are class numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from beit3_bench.backbones.images import opened
from beit3_bench.errors import BenchError

MENDS = {
    "annotation": "download it again, or replace it by a grey PNG whose pixels are class numbers",
    "prediction": "write it as a grey PNG whose pixels are class numbers",
}
GREY = ("L", "I;16", "I")  # Pillow's modes of grey PNG files


def read_map(path: str | Path, what: str) -> np.ndarray:
    """A grey PNG of class numbers: integer (H, W).

    what: ``"annotation"`` or ``"prediction"``, for messages.

    Raises:
        BenchError: missing or undecodable, no PNG, a palette (its indexes may mean anything), or colours.
    """
    with opened(path, formats=("PNG",), what=what, mend=MENDS[what]) as image:
        _check_mode(image.mode, path, what)
        return np.asarray(image)


def check_map(path: str | Path, what: str) -> None:
    """Raise, as `read_map` does, by the header alone."""
    with opened(path, formats=("PNG",), what=what, mend=MENDS[what]) as image:
        _check_mode(image.mode, path, what)


def _check_mode(mode: str, path: str | Path, what: str) -> None:
    if mode not in GREY:
        kind = "a palette image" if mode == "P" else f"an image of mode {mode}"
        raise BenchError(f"{path}: {what} is {kind}; it has to be a grey PNG whose pixels are class numbers")
