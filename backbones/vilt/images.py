"""ViLT's images: they keep their aspect, so that those of a batch have unequal sizes (official `transforms/pixelbert.py`)."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from beit3_bench.backbones.preprocess import HALF, canary, decode, decoder_facts, normalised, planes

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

LONGEST = 1333 / 800
"""The longer side over the shorter one, at most (of Faster R-CNN's sizes)."""


@dataclass(frozen=True)
class AspectKept:
    """The shorter side to ``size`` pixels, the longer one to at most ``size * 1333 / 800``; both are floored to whole patches.

    Bicubic; mean = standard deviation = 0.5.
    """

    size: int
    patch: int

    as_rgb: ClassVar[bool] = True

    @property
    def most(self) -> int:
        """Patches of the largest image."""
        return (self.size // self.patch) * (self.longest // self.patch)

    @property
    def longest(self) -> int:
        """Pixels of the longer side, at most; 639 at 384."""
        return int(LONGEST * self.size)

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that an image is resized to (official `MinMaxResize`).

        An image so narrow that it has no whole patch gets one; the official code cannot read it.
        """
        scale = self.size / min(width, height)
        new: tuple[float, float] = (scale * width, self.size) if height < width else (self.size, scale * height)
        if max(new) > self.longest:
            new = (new[0] * self.longest / max(new), new[1] * self.longest / max(new))
        w, h = (max(int(side + 0.5) // self.patch, 1) * self.patch for side in new)
        return w, h

    def pixels(self, image: Image) -> Tensor:
        """PIL RGB -> uint8 (3, h, w)."""
        from PIL.Image import Resampling

        return planes(image.resize(self.target(*image.size), Resampling.BICUBIC))

    def load(self, path: str | Path, content: bytes | None = None) -> Tensor:
        """Image file -> uint8 (3, h, w)."""
        return self.pixels(decode(path, content))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 -> float32; see `preprocess.normalised`. Flat patches (..., 3, pixels) will do."""
        return normalised(images, HALF, HALF)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "mode": "aspect", "mean": HALF, "std": HALF}

    def canary_hash(self) -> str:
        """SHA-256 of a preprocessed synthetic image, as `Preprocessing.canary_hash`."""
        return hashlib.sha256(self.normalise(self.pixels(canary()).unsqueeze(0)).numpy().tobytes()).hexdigest()

    def pixel_facts(self) -> dict[str, Any]:
        """As `Preprocessing.pixel_facts`."""
        pixels = hashlib.sha256(self.pixels(canary()).numpy().tobytes()).hexdigest()
        return {"kind": type(self).__qualname__, **dataclasses.asdict(self), **decoder_facts(), "canary": pixels}
