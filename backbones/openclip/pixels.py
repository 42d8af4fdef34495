"""open_clip's own image transform, cut where pixels stop being bytes.

All that comes before ``ToTensor`` runs in the decoding workers and can be cached; normalisation runs on the device.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from beit3_bench.backbones.crop import EXTREME
from beit3_bench.backbones.preprocess import (
    Preprocessing,
    canary,
    decode_in_own_mode,
    decoder_facts,
    normalised,
    planes,
)
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

RESIZED_AS_THEY_ARE = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")
"""Pillow's modes that open_clip's transform resizes before it makes RGB of them; others are made RGB first, as `decode` does."""
MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear", "random")


@dataclass(frozen=True)
class OpenClipPixels:
    """The fields of ``open_clip.transform.PreprocessCfg``, for square inputs.

    size: pixels.  resize_mode: ``"shortest"`` (then a centre crop), ``"longest"`` (then padding with ``fill_color``) or ``"squash"``.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    as_rgb: ClassVar[bool] = False

    @classmethod
    def of(cls, config: dict[str, Any], origin: str) -> OpenClipPixels:
        """From a ``PreprocessCfg`` as a dict.

        Raises:
            BenchError: values that no transform has; begins with ``origin``.
        """

        def wrong(key: str, mend: str) -> BenchError:
            return BenchError(f"{origin}: {key} {config.get(key)!r:.60} of its preprocessing {mend}")

        size = config.get("size")
        sides = set(size) if isinstance(size, (list, tuple)) else {size}
        side = sides.pop() if len(sides) == 1 else None
        if not isinstance(side, int) or not 0 < side < 2**15:
            raise wrong("size", "is no square of pixels; only models with a square input are evaluated")
        scales: dict[str, tuple[float, ...]] = {}
        for key in ("mean", "std"):
            value = config.get(key)
            numbers = [value] * 3 if isinstance(value, (int, float)) else value
            if (
                not isinstance(numbers, (list, tuple))
                or len(numbers) != 3
                or not all(isinstance(n, (int, float)) and (key == "mean" or n > 0) for n in numbers)
            ):
                raise wrong(key, "is no number per colour")
            scales[key] = tuple(float(n) for n in numbers)
        for key, known in (("interpolation", INTERPOLATIONS), ("resize_mode", MODES)):
            if config.get(key) not in known:
                raise wrong(key, f"is none of {', '.join(known)}")
        fill = config.get("fill_color", 0)
        if not isinstance(fill, int) or not 0 <= fill <= 255:
            raise wrong("fill_color", "is no value from 0 to 255")
        return cls(side, scales["mean"], scales["std"], config["interpolation"], config["resize_mode"], fill)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def pixels(self, image: Image.Image) -> Tensor:
        """PIL image -> uint8 (3, S, S)."""
        if image.mode not in RESIZED_AS_THEY_ARE:
            image = image.convert("RGB")
        if self._long(image):
            return Preprocessing(self.size, "crop").pixels(image)
        for step in self._steps():
            image = step(image)
        return planes(image)

    def load(self, path: str | Path, content: bytes | None = None) -> Tensor:
        """Image file -> uint8 (3, S, S)."""
        return self.pixels(decode_in_own_mode(path, content))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> float32."""
        return normalised(images, self.mean, self.std)

    def canary_hash(self) -> str:
        """SHA-256 of a preprocessed synthetic image, normalised."""
        return hashlib.sha256(self.normalise(self.pixels(canary()).unsqueeze(0)).numpy().tobytes()).hexdigest()

    def pixel_facts(self) -> dict[str, Any]:
        settings = {name: value for name, value in self.to_dict().items() if name not in ("mean", "std")}
        return {
            "kind": type(self).__qualname__,
            **settings,
            **decoder_facts(),
            "canary": hashlib.sha256(self.pixels(canary()).numpy().tobytes()).hexdigest(),
        }

    def _steps(self) -> list[Any]:
        """The steps of open_clip's evaluation transform up to RGB bytes."""
        from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
        from torchvision.transforms import Normalize

        steps = image_transform_v2(PreprocessCfg(**self.to_dict()), is_train=False).transforms
        assert isinstance(steps[-2], MaybeToTensor)
        assert isinstance(steps[-1], Normalize)
        return steps[:-2]

    def _long(self, image: Image.Image) -> bool:
        """Whether resizing the whole image would make millions of pixels of which a square is kept; the same bytes are then made
        the short way (see `crop`).
        """
        usual = (self.resize_mode, self.interpolation) == ("shortest", "bicubic")
        return usual and image.mode == "RGB" and max(image.size) >= EXTREME * min(image.size)
