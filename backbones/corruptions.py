"""The fifteen corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), of any image at its own size.

The pixels come from `imagecorruptions` (Michaelis et al., 2019, "Benchmarking Robustness in Object Detection", whose Pascal-C, COCO-C and
Cityscapes-C are made with it), in the fork that runs with current libraries (``imagecorruptions-imaug``). An image is corrupted as
it is decoded, before the model's own transform, as there: severities are pixels of the original, so that a large picture suffers less
once it is made small. ImageNet-C itself corrupts what has been resized and cropped to 224 x 224, and stores it as JPEG of quality 85;
numbers measured here are none on its files.

On a square of 224 pixels the library gives what the official code of ImageNet-C gives, from the same random numbers and to the last bit
(fog: to one level in one of 100,000 values), for eleven of the fifteen; the others are in `UNLIKE_IMAGENET_C`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from beit3_bench.errors import INSTALL_LINES, BenchError, requires
from beit3_bench.spelling import did_you_mean

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from beit3_bench.backbones.abilities import PixelTransform

GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""The corruptions, in the order and groups of the paper's tables."""
NAMES = tuple(name for names in GROUPS.values() for name in names)
ALL = "all"
ALIASES = {
    "gaussian": "gaussian_noise",
    "shot": "shot_noise",
    "impulse": "impulse_noise",
    "defocus": "defocus_blur",
    "glass": "glass_blur",
    "motion": "motion_blur",
    "zoom": "zoom_blur",
    "bright": "brightness",
    "elastic": "elastic_transform",
    "pixel": "pixelate",
    "jpeg": "jpeg_compression",
}
"""Short names, those of the tables of papers."""
SEVERITIES = range(1, 6)
USUAL_SEVERITY = 3
"""Where none is named: the middle one."""
SMALLEST = 32
"""Pixels of a side; smaller pictures the library does not take."""
DISTRIBUTION = "imagecorruptions-imaug"
LIBRARIES = (DISTRIBUTION, "opencv-python", "opencv-python-headless", "scikit-image", "scipy", "numba")
"""What computes the pixels; numpy and Pillow are stated of every run."""
UNLIKE_IMAGENET_C = {
    "motion_blur": "drawn without ImageMagick, which ImageNet-C used",
    "snow": "its flakes are blurred without ImageMagick, which ImageNet-C used",
    "frost": "ImageNet-C's pictures, enlarged to cover any image, and six of them where ImageNet-C and COCO-C draw from five",
    "elastic_transform": "other amplitudes than in ImageNet-C, and no affine part",
}
"""Name -> in what the library's output is not that of ImageNet-C's code. Of these, all but frost are as in COCO-C."""

NOTE = "images corrupted:"
"""How the note on a result begins."""

_SEEDED = ("impulse_noise", "glass_blur")
"""Those that draw from a generator of their own."""
_drawing = threading.Lock()  # the others draw from numpy's global one


@dataclass(frozen=True)
class Corruption:
    """name: one of `NAMES`.  severity: 1 to 5."""

    name: str
    severity: int

    @property
    def label(self) -> str:
        """``gaussian_noise:3``, as options, records and tables say it."""
        return f"{self.name}:{self.severity}"

    @property
    def slug(self) -> str:
        """The label in a file's name."""
        return f"{self.name}-{self.severity}"

    @property
    def note(self) -> str:
        """What a reader of a number must know, in a line."""
        unlike = UNLIKE_IMAGENET_C.get(self.name)
        return (
            f"{NOTE} {self.name} of severity {self.severity}, at their own size before the model's transform, as in COCO-C "
            f"({DISTRIBUTION} {version(DISTRIBUTION)}); not ImageNet-C's own files" + (f" ({unlike})" if unlike else "")
        )

    @property
    def fingerprint(self) -> str:
        """What must be the same for two corrupted images to be one."""
        return f"{self.label} {DISTRIBUTION} {version(DISTRIBUTION)}"

    def seed(self, content: bytes) -> int:
        """Of the random numbers for an image; content: SHA-256 of its file, so that neither order nor process nor path matters."""
        return int.from_bytes(hashlib.sha256(self.label.encode() + content).digest()[:4], "big")

    def of(self, image: Image.Image, content: bytes, origin: str = "image") -> Image.Image:
        """A corrupted copy of an image.

        Args:
            image: RGB.  content: SHA-256 of its file.  origin: names it in messages.

        Raises:
            BenchError: it is smaller than `SMALLEST`; the library is missing.
        """
        import numpy as np
        from PIL import Image as images

        if min(image.size) < SMALLEST:
            raise BenchError(
                f"{origin}: is {image.width} x {image.height} pixels; corruptions take images of {SMALLEST} x {SMALLEST} or more: "
                "leave it out of the data"
            )
        corrupt, seed = library().corrupt, self.seed(content)
        more = {"seed": seed} if self.name in _SEEDED else {}
        # The library prints where zoom_blur and snow meet an odd size; what they do then is its published output, too.
        with _drawing, contextlib.redirect_stdout(io.StringIO()):
            state = np.random.get_state()
            try:
                np.random.seed(seed)
                pixels = corrupt(np.asarray(image), self.severity, self.name, **more)
            finally:
                np.random.set_state(state)
        return images.fromarray(pixels)

    def decoded(self, path: str | Path, content: bytes | None = None, upright: bool = False) -> Image.Image:
        """A corrupted image file, RGB. content: its bytes, where they have been read.  upright: see `preprocess.decode`.

        Raises:
            BenchError: it is missing or does not decode; see `of`.
        """
        from beit3_bench.backbones.preprocess import decode

        content = read(path) if content is None else content
        return self.of(decode(path, content, upright), hashlib.sha256(content).digest(), str(path))

    def given(self, image: Image.Image) -> Image.Image:
        """A corrupted copy of an image that is no file: its pixels stand for its content."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        return self.of(image, hashlib.sha256(image.tobytes()).digest())

    def facts(self) -> dict[str, Any]:
        """Everything that a corrupted image depends on beside the decoded one, as plain values."""
        from beit3_bench.backbones.preprocess import canary

        seen = hashlib.sha256(self.given(canary()).tobytes()).hexdigest()
        return {"corruption": self.label, "libraries": library_versions(), "canary": seen}


class CorruptedPixels:
    """A `PixelTransform` of corrupted images: corrupted first, then transformed.

    A picture that is grey or has a palette is made RGB before, as the library takes it.
    """

    as_rgb: ClassVar[bool] = True

    def __init__(self, transform: PixelTransform, corruption: Corruption):
        self.transform, self.corruption = transform, corruption
        self._facts = {**transform.pixel_facts(), "corrupted": corruption.facts()}

    @property
    def size(self) -> int:
        return self.transform.size

    def load(self, path: str | Path, content: bytes | None = None) -> Tensor:
        """Image file -> uint8 (3, S, S)."""
        return self.transform.pixels(self.corruption.decoded(path, content))

    def pixels(self, image: Image.Image) -> Tensor:
        """PIL image -> uint8 (3, S, S)."""
        return self.transform.pixels(self.corruption.given(image))

    def pixel_facts(self) -> dict[str, Any]:
        """As the transform's, and those of the corruption: neither an image cache nor a feature store takes one for the other."""
        return self._facts


def read(path: str | Path) -> bytes:
    """The bytes of an image file, their hash noted as `preprocess.decode` does.

    Raises:
        BenchError: there is no such file, or it cannot be read.
    """
    from beit3_bench.backbones.image_hashes import note_content
    from beit3_bench.backbones.images import opened, read_image_file

    try:
        content = read_image_file(path)
    except OSError:
        with opened(path):  # says what is wrong with it
            raise
    note_content(path, content)
    return content


@cache
def library() -> Any:
    """The module `imagecorruptions`, in the fork that runs here.

    Raises:
        BenchError: it is missing, or the original of the name is there, which needs libraries of 2021.
    """
    purpose = "--corrupt"
    module = requires("imagecorruptions", purpose)
    try:
        version(DISTRIBUTION)
    except PackageNotFoundError as error:
        raise BenchError(
            f"{purpose} needs {DISTRIBUTION}, another imagecorruptions is installed; "
            f"pip uninstall imagecorruptions && {INSTALL_LINES['imagecorruptions']}"
        ) from error
    import cv2

    cv2.setNumThreads(1)  # decoding processes are forked, and its threads do not live on in them
    return module


def library_versions() -> dict[str, str]:
    """Versions of the installed `LIBRARIES`."""
    versions = {}
    for name in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


# ---- as they are asked for -----------------------------------------------------------------------------------------------


def parse_corruption(label: str, origin: str) -> Corruption:
    """The corruption of a `Corruption.label`.

    Raises:
        BenchError: it is none, or several.
    """
    parsed = parse_corruptions(label, origin)
    if len(parsed) != 1:
        raise BenchError(f"{origin}: {label!r:.60} is not one corruption; give NAME:SEVERITY")
    return parsed[0]


def parse_corruptions(text: str, origin: str = "--corrupt") -> list[Corruption]:
    """``gaussian_noise:3,jpeg:1-5``: names, aliases, groups or ``all``, each with a severity or a range of them (3 without any).

    Returns:
        Each corruption once, in the order of the text.

    Raises:
        BenchError: an unknown name, a severity beyond 1 to 5, one that comes twice, or none; begins with ``origin``.
    """
    listed = [
        Corruption(name, severity)
        for part in filter(None, map(str.strip, text.split(",")))
        for severity in _severities(part, origin)
        for name in _names(part.partition(":")[0].strip(), origin)
    ]
    if not listed:
        raise BenchError(f"{origin}: names no corruption; give NAME:SEVERITY, e.g. gaussian_noise:3, or {ALL}:1-5")
    if twice := _first_twice(listed):
        raise BenchError(f"{origin}: {twice.label} is there twice; name it once")
    return listed


def _names(name: str, origin: str) -> tuple[str, ...]:
    known = {
        ALL: NAMES,
        **GROUPS,
        **{short: (whole,) for short, whole in ALIASES.items()},
        **{whole: (whole,) for whole in NAMES},
    }
    names = known.get(name.lower().replace("-", "_"))
    if names is None:
        raise BenchError(
            f"{origin}: no corruption {name!r:.40}; {did_you_mean(name, known, otherwise='known: ' + ', '.join(NAMES))}"
        )
    return names


def _severities(part: str, origin: str) -> list[int]:
    _, colon, text = part.partition(":")
    if not colon:
        return [USUAL_SEVERITY]
    low, dash, high = (piece.strip() for piece in text.partition("-"))
    ends = [low, high] if dash else [low, low]
    if not all(end.isascii() and end.isdecimal() and int(end) in SEVERITIES for end in ends) or int(ends[0]) > int(
        ends[1]
    ):
        raise BenchError(
            f"{origin}: severity {text!r:.20} of {part.partition(':')[0]!r:.40} is none; give 1 to 5, or a range such as 1-5"
        )
    return list(range(int(ends[0]), int(ends[1]) + 1))


def _first_twice(listed: Iterable[Corruption]) -> Corruption | None:
    seen: set[Corruption] = set()
    for one in listed:
        if one in seen:
            return one
        seen.add(one)
    return None
