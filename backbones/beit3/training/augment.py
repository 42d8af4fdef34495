"""Training transforms of the official recipes; what happens to an image follows from a seed and the image alone.

Vision-language tasks (official `datasets.build_transform`): random resized crop (area 0.5 to 1, bicubic), horizontal
flip, and where the recipe says so RandAugment(2, 7) over ten operations. The linear ImageNet head
(`build_imagenet_transform`): timm's training transform with rand-m9-mstd0.5-inc1 and random erasing, then mixup and
cutmix per batch.

A `torch.Generator` is given to every transform and only its seed is read, never its state: each image, text and batch
draws from a stream of its own. So the same sample is treated alike in any order, batch or process.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from beit3_bench.backbones.preprocess import IMAGENET_MEAN
from beit3_bench.backbones.recipe import Recipe
from beit3_bench.backbones.seeds import seed_of, seeded
from beit3_bench.errors import BenchError

FILL = (128, 128, 128)  # behind what a geometric operation moves away
MAX_LEVEL = 10
SHEAR, TRANSLATE, ROTATE = 0.3, 10.0, 30.0  # slope, pixels and degrees at the highest level

# ---- RandAugment -------------------------------------------------------------------------------------------------


def affine(image: Image.Image, matrix: Sequence[Sequence[float]]) -> Image.Image:
    """Move pixel (x, y) to ``matrix @ (x, y, 1)``, bilinear, grey behind; coordinates count pixel centres from 0.

    As OpenCV's warpAffine, but for the last bit of its fixed-point weights and pixels that mix with the background.
    """
    inverse = np.linalg.inv(np.vstack([np.asarray(matrix, dtype=np.float64), [0.0, 0.0, 1.0]]))
    (a, b, c), (d, e, f) = inverse[:2]
    # Pillow's coordinates have pixel centres at 0.5.
    data = (a, b, c + 0.5 - 0.5 * (a + b), d, e, f + 0.5 - 0.5 * (d + e))
    return image.transform(
        image.size, Image.Transform.AFFINE, tuple(float(v) for v in data), Image.Resampling.BILINEAR, fillcolor=FILL
    )


def rotate(image: Image.Image, degrees: float) -> Image.Image:
    """Counter-clockwise around (W / 2, H / 2)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = image.width / 2, image.height / 2
    return affine(image, [[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]])


def _enhance(level: float) -> float:
    return level / MAX_LEVEL * 1.8 + 0.1


def _signed(value: float) -> float:
    return -value if random.random() < 0.5 else value


RANDAUGMENT: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, level: image,
    "AutoContrast": lambda image, level: ImageOps.autocontrast(image),
    "Equalize": lambda image, level: ImageOps.equalize(image),
    "Brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(_enhance(level)),
    "Sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(_enhance(level)),
    "ShearX": lambda image, level: affine(image, [[1, _signed(level / MAX_LEVEL * SHEAR), 0], [0, 1, 0]]),
    "ShearY": lambda image, level: affine(image, [[1, 0, 0], [_signed(level / MAX_LEVEL * SHEAR), 1, 0]]),
    "TranslateX": lambda image, level: affine(image, [[1, 0, _signed(level / MAX_LEVEL * TRANSLATE)], [0, 1, 0]]),
    "TranslateY": lambda image, level: affine(image, [[1, 0, 0], [0, 1, _signed(level / MAX_LEVEL * TRANSLATE)]]),
    "Rotate": lambda image, level: rotate(image, _signed(level / MAX_LEVEL * ROTATE)),
}
"""The operations of the official vision-language recipes; colours other than brightness stay, captions name them."""


def randaugment(image: Image.Image, count: int = 2, level: float = 7) -> Image.Image:
    """``count`` operations drawn with replacement, each applied with probability 0.5 (official `RandomAugment`)."""
    for name in random.choices(list(RANDAUGMENT), k=count):
        if random.random() <= 0.5:
            image = RANDAUGMENT[name](image, level)
    return image


# ---- whole transforms --------------------------------------------------------------------------------------------


class TrainingTransform:
    """PIL RGB image -> uint8 (3, S, S), not yet normalised.

    crop_scale: (least, greatest) share of the area that a random crop takes; aspect ratios 3/4 to 4/3.
    flip: probability of a horizontal flip.
    vl_randaugment: `randaugment` of the vision-language recipes.
    auto_augment, color_jitter: of timm's `create_transform`; color_jitter counts only where auto_augment is empty.
    """

    def __init__(
        self,
        size: int,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        flip: float = 0.5,
        vl_randaugment: bool = False,
        auto_augment: str = "",
        color_jitter: float = 0.0,
    ):
        from timm.data import create_transform

        primary, secondary, _ = create_transform(
            size,
            is_training=True,
            scale=crop_scale,
            ratio=(3 / 4, 4 / 3),
            hflip=flip,
            color_jitter=color_jitter,
            auto_augment=auto_augment or None,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            separate=True,
        )
        self.primary, self.secondary, self.vl_randaugment = primary, secondary, vl_randaugment

    def __call__(self, image: Image.Image, generator: torch.Generator) -> Tensor:
        with seeded(seed_of(generator.initial_seed(), zlib.crc32(image.tobytes()))):
            image = self.secondary(self.primary(image))
            if self.vl_randaugment:
                image = randaugment(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def mixes_samples(recipe: Recipe) -> bool:
    """Whether a recipe asks for `BatchMixing`."""
    return bool(recipe.erase or recipe.mixup or recipe.cutmix)


def refuse_mixing(recipe: Recipe, task: str) -> None:
    """Raise for a recipe that mixes samples, on behalf of a task whose samples cannot be mixed."""
    if mixes_samples(recipe):
        raise BenchError(f"task {task}: erase, mixup and cutmix need class labels; set them to 0")


class BatchMixing:
    """Random erasing, then mixup or cutmix, of a normalised batch (timm's classes, as the official ImageNet recipe).

    A batch is mixed with itself in reverse order, so that its size must be even.

    num_classes: width of the soft targets.  label_smoothing: goes into them.
    """

    def __init__(
        self,
        num_classes: int,
        erase: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        switch: float = 0.5,
        label_smoothing: float = 0.1,
    ):
        from timm.data import Mixup
        from timm.data.random_erasing import RandomErasing

        self.erase = RandomErasing(erase, mode="pixel", max_count=1, device="cpu") if erase > 0 else None
        self.mix = None
        if mixup > 0 or cutmix > 0:
            self.mix = Mixup(mixup, cutmix, None, 1.0, switch, "batch", True, label_smoothing, num_classes)

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """images float (B, 3, S, S), normalised; labels int64 (B,) -> the same; where mixed, labels (B, classes)."""
        if self.mix is not None and len(images) % 2:
            raise BenchError(f"mixup needs batches of even size, a process got {len(images)} images; change -o batch")
        with seeded(seed):
            if self.erase is not None:
                self.erase.device = str(images.device)
                images = self.erase(images)
            if self.mix is not None:
                images, labels = self.mix(images, labels)
        return images, labels
