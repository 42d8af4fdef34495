"""What the Python API is given, as it is expected, or one line that says how it is instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from beit3_bench.backbones.abilities import Item
from beit3_bench.errors import BenchError


@dataclass(frozen=True)
class Loading:
    """Options of `load` that say how a file is to be loaded."""

    preset: str | None = None
    image_size: int | None = None
    allow_missing: tuple[str, ...] | str | None = ()

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; give pixels, 1 or more")

    @property
    def patterns(self) -> tuple[str, ...]:
        """``allow_missing``, of which one alone need not be in a list."""
        return (self.allow_missing,) if isinstance(self.allow_missing, str) else self.allow_missing or ()


def as_device(device: Any) -> str:
    import torch

    if not isinstance(device, (str, torch.device)):
        raise BenchError(f"device: is a {type(device).__name__}; give 'auto', 'cpu', 'cuda' or 'cuda:N'")
    return str(device)


def as_dtype(dtype: Any) -> str:
    from beit3_bench.backbones.precision import DTYPES

    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BenchError(f"dtype {dtype!r} is not known; give one of: {', '.join(DTYPES)}")
    return dtype


def as_answers(answers: Any) -> tuple[str, ...]:
    """Answers in the order of the outputs."""
    if isinstance(answers, (Set, Mapping)) or not isinstance(answers, Iterable):
        raise BenchError(f"answers: a {type(answers).__name__} has no order; give a list, in the order of the outputs")
    listed = tuple(answers)
    for n, answer in enumerate(listed):
        if not isinstance(answer, str):
            raise BenchError(f"answers[{n}]: is a {type(answer).__name__}; give texts")
    if len(set(listed)) < len(listed):
        twice = next(answer for answer in listed if listed.count(answer) > 1)
        raise BenchError(f"answers: {twice!r} is there twice; every output has an answer of its own")
    return tuple(str(answer) for answer in listed)


def as_list(values: Any, name: str) -> list[Any]:
    """Anything that can be gone through, but a single thing where many are asked for."""
    if isinstance(values, (str, bytes, Path, Image.Image, Mapping, Set)) or not isinstance(values, Iterable):
        raise BenchError(f"{name}: is a {type(values).__name__}; give a list, of one where there is one")
    return list(values)


def as_texts(values: Any, name: str) -> list[str]:
    texts = as_list(values, name)
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise BenchError(f"{name}[{n}]: is a {type(text).__name__}; give a text")
    return texts


def image_items(images: Any) -> list[Item]:
    """Items with an image each, or with several where one is a tuple or list of images."""
    return [Item(str(n), _tuple(image)) for n, image in enumerate(as_list(images, "images"))]


def _tuple(image: Any) -> tuple[Any, ...]:
    many = isinstance(image, (tuple, list)) or (isinstance(image, np.ndarray) and image.dtype.kind in "UO")
    return tuple(image) if many else (image,)


def pair_items(images: Any, texts: Any, what: str) -> list[Item]:
    """Items with images and a text each. what: the texts are called."""
    images, texts = as_list(images, "images"), as_texts(texts, what)
    if len(images) != len(texts):
        raise BenchError(f"{len(images)} images and {len(texts)} texts; give one text per image")
    return [Item(str(n), _tuple(image), text) for n, (image, text) in enumerate(zip(images, texts, strict=True))]


def check_image(image: Any, name: str) -> None:
    """Raise for a PIL image that has no pixels, or none that can be read; nothing for a path."""
    if not isinstance(image, Image.Image):
        return
    try:
        image.load()
        if image.mode not in ("La",) and 0 not in image.size:
            return
        words = f"it is {image.width} x {image.height} of mode {image.mode}"
    except Exception as error:  # Pillow raises errors of many kinds on damaged bytes, and of images that were closed
        words = " ".join(str(error).split())[:150] or type(error).__name__
    raise BenchError(f"{name}: image does not decode ({words}); give another, or its path")
