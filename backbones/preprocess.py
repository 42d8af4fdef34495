"""Image preprocessing: part of the weights, never a flag.

Vision-language heads: bicubic resize to S x S, mean = std = 0.5. The linear ImageNet head: shorter side to
int(S / crop_pct), bicubic, centre crop, ImageNet mean and std. Both as the official evaluation transforms (PIL resampling
on uint8, then `ToTensor` and `Normalize`); images stay uint8 until they are on the device.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import PIL
from PIL import ExifTags, Image, features

from beit3_bench.backbones.crop import resized_crop
from beit3_bench.backbones.images import opened
from beit3_bench.errors import BenchError
from beit3_bench.plain import fill

if TYPE_CHECKING:
    from torch import Tensor

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CODECS = ("jpg", "libjpeg_turbo", "webp", "libtiff", "zlib")


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what puts the pixels upright."""
ON_ITS_SIDE = (5, 6, 7, 8)


def decode(path: str | Path, content: bytes | None = None, upright: bool = False) -> Image.Image:
    """Open an image file as RGB.

    Args:
        content: the file's bytes, where they have been read already.
        upright: turn it by its EXIF orientation, as detectron2 and annotation tools do; the official loader of BEiT-3's
            own tasks does not.

    Raises:
        BenchError: missing or undecodable file, or one of another format or size than `images.opened` reads.
    """
    with opened(path, content) as image:
        image.load()
        if upright and (turn := TURNS.get(orientation(image))) is not None:
            return image.transpose(turn).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy an RGB image, too


def decode_in_own_mode(path: str | Path, content: bytes | None = None) -> Image.Image:
    """As `decode`, but a grey image stays grey, and one with a palette or a mask keeps it."""
    with opened(path, content) as image:
        image.load()
        return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none that can be read, as detectron2 takes it."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises errors of many kinds on damaged EXIF; the pixels are whole
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file once it is upright, from its header.

    Raises:
        BenchError: as `images.opened`.
    """
    with opened(path) as image:
        if image.format == "TIFF":  # Pillow turns it, and drops the tag, when it decodes
            image.load()
        width, height = image.size
        return (height, width) if orientation(image) in ON_ITS_SIDE else (width, height)


def upright(image: Image.Image) -> Image.Image:
    """A PIL image as RGB, turned by its EXIF orientation as `decode` turns a file."""
    image.load()  # Pillow turns a TIFF, and drops the tag, when it decodes
    turn = TURNS.get(orientation(image))
    image = image if turn is None else image.transpose(turn)
    return image if image.mode == "RGB" else image.convert("RGB")


def wrong_size(path: str | Path, size: tuple[int, int], expected: tuple[int, int]) -> str | None:
    """What is wrong with an upright image of ``size`` (width, height), in words; None where its annotations say the same."""
    if size == expected:
        return None
    line = f"{path}: is {size[0]}x{size[1]} pixels, the annotations say {expected[0]}x{expected[1]}"
    if size == expected[::-1]:
        line += " (an EXIF orientation counts, as in detectron2: annotations are those of the upright image)"
    return f"{line}; give image and annotations of one data set"


class PixelScale(Protocol):
    """How a family's pixels become the network's input: what an ability, a card and an identity take from a preprocessing."""

    @property
    def size(self) -> int:
        """Side of the input, pixels; of the shorter one where images keep their aspect."""

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (..., 3, h, w) -> float32."""

    def to_dict(self) -> dict[str, Any]:
        """Its settings."""

    def canary_hash(self) -> str:
        """SHA-256 of a preprocessed synthetic image."""


@dataclass(frozen=True)
class Preprocessing:
    """size: pixels of the square input.  mode: ``"squash"`` (resize to S x S) or ``"crop"`` (resize, centre crop)."""

    size: int
    mode: str = "squash"
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF
    crop_pct: float = 1.0

    as_rgb: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.mode not in ("squash", "crop"):
            raise BenchError(f"preprocessing mode {self.mode!r} is not known; give 'squash' or 'crop'")

    @classmethod
    def for_head(cls, head: str, size: int) -> Preprocessing:
        """What the official code does for a head."""
        if head == "imagenet-linear":
            return cls(size, "crop", IMAGENET_MEAN, IMAGENET_STD)
        return cls(size)

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str = "preprocessing") -> Preprocessing:
        """The inverse of `to_dict`.

        Raises:
            BenchError: a missing or unknown field; begins with ``origin``.
        """
        try:
            return fill(cls, values, "preprocessing", whole=True)
        except BenchError as error:
            raise BenchError(
                f"{origin}: not readable ({error}); fine-tune again, or give the original checkpoint"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def resized(self, size: int) -> Preprocessing:
        """The same for another input size."""
        return dataclasses.replace(self, size=size)

    def square(self, image: Image.Image) -> Image.Image:
        """PIL RGB -> PIL RGB of S x S."""
        s = self.size
        if self.mode == "squash":
            return image.resize((s, s), Image.Resampling.BICUBIC)
        short = int(s / self.crop_pct)
        w, h = image.size
        # torchvision's Resize(int): the longer side is truncated; CenterCrop rounds half to even.
        size = (short, int(short * h / w)) if w <= h else (int(short * w / h), short)
        left, top = round((size[0] - s) / 2.0), round((size[1] - s) / 2.0)
        return resized_crop(image, size, (left, top, left + s, top + s))

    def pixels(self, image: Image.Image) -> Tensor:
        """PIL RGB -> uint8 (3, S, S)."""
        return planes(self.square(image))

    def load(self, path: str | Path, content: bytes | None = None) -> Tensor:
        """Image file -> uint8 (3, S, S)."""
        return self.pixels(decode(path, content))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> float32; see `normalised`."""
        return normalised(images, self.mean, self.std)

    def canary_hash(self) -> str:
        """SHA-256 of a preprocessed synthetic image: changes when Pillow's resampling or our arithmetic does."""
        tensor = self.normalise(self.pixels(canary()).unsqueeze(0))
        return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()

    def pixel_facts(self) -> dict[str, Any]:
        """What the uint8 pixels of an image file depend on, beside its bytes: two preprocessings with equal facts make
        equal pixels. Mean and standard deviation are not among them: they act later.
        """
        settings = {name: value for name, value in self.to_dict().items() if name not in ("mean", "std")}
        return {
            "kind": type(self).__qualname__,
            **settings,
            **decoder_facts(),
            "canary": hashlib.sha256(self.pixels(canary()).numpy().tobytes()).hexdigest(),
        }


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (B, 3, S, S) -> float32, the same arithmetic as torchvision's ToTensor and Normalize."""
    means = images.new_tensor(mean, dtype=_float()).view(-1, 1, 1)
    stds = images.new_tensor(std, dtype=_float()).view(-1, 1, 1)
    return images.float().div_(255).sub_(means).div_(stds)


def decoder_facts() -> dict[str, Any]:
    """Versions of what decodes and resizes images."""
    return {"pillow": PIL.__version__, "codecs": {name: features.version(name) for name in CODECS}}


def planes(image: Image.Image) -> Tensor:
    """PIL RGB (w, h) -> uint8 (3, h, w), its own memory."""
    import torch

    content = bytearray().join([channel.tobytes() for channel in image.split()])
    return torch.frombuffer(content, dtype=torch.uint8).view(3, image.height, image.width)


def canary() -> Image.Image:
    """A synthetic image, 131 x 97."""
    import numpy as np

    y, x = np.mgrid[0:97, 0:131]
    return Image.fromarray(np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (x * x + 5 * y) % 251], -1).astype(np.uint8))


def _float() -> Any:
    import torch

    return torch.float32
