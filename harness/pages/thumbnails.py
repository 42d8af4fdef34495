"""Pictures inside of a page: as large as they are shown, and all of them together no larger than they may be."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from beit3_bench.backbones.corruptions import Corruption, library, parse_corruption
from beit3_bench.errors import BenchError
from beit3_bench.harness.pictures.colours import Colour
from beit3_bench.harness.pictures.opening import open_corrupted, open_upright
from beit3_bench.harness.record.provenance import cores

if TYPE_CHECKING:
    from PIL import Image

    from beit3_bench.harness.record.schema import Result

LADDER = ((1.0, 78), (1.0, 65), (0.85, 60), (0.7, 55), (0.55, 50), (0.45, 40), (0.35, 35))
"""Share of the side, and WebP's quality; the first at which everything fits is taken, or the last."""


@dataclass(frozen=True)
class Thumbnail:
    """uri: a data URI, "" where the file could not be read.  width, height: of the upright image, in pixels.

    problem: why there is no picture.
    """

    uri: str
    width: int = 4
    height: int = 3
    problem: str = ""


def corruption_shown(results: Iterable[Result]) -> tuple[Corruption | None, str]:
    """What the pictures of runs are shown corrupted with, and a line where that is not what their models saw."""
    labels = list(dict.fromkeys(result.get("corrupt") for result in results))
    if len(labels) > 1:
        seen = ", ".join(f"corrupted {label}" if label else "as they are" for label in labels)
        return None, f"Pictures are shown as they are; the models saw them {seen}."
    if not labels or labels[0] is None:
        return None, ""
    try:
        library()
    except BenchError as error:
        return None, f"Pictures are shown as they are; the model saw them corrupted {labels[0]} ({error})."
    return parse_corruption(labels[0], "result.json: corrupt"), ""


def thumbnails(
    wanted: Iterable[tuple[str, int]], budget: int, corruption: Corruption | None = None
) -> dict[tuple[str, int], Thumbnail]:
    """Upright thumbnails of image files.

    Args:
        wanted: file and longest side in pixels.  budget: bytes that all data URIs together may have.
        corruption: of the pictures, as the model saw them.
    """
    distinct = list(dict.fromkeys(wanted))
    with ThreadPoolExecutor(cores()) as pool:
        shrunk = dict(zip(distinct, pool.map(lambda one: _shrunk(one[0], one[1], corruption), distinct), strict=True))
        images = {key: value for key, value in shrunk.items() if not isinstance(value, str)}
        encoded: dict[tuple[str, int], str] = {}
        for share, quality in LADDER:
            jobs = [(image, round(side * share), quality) for (_, side), (image, _) in images.items()]
            encoded = dict(zip(images, pool.map(lambda job: _encoded(*job), jobs), strict=True))
            if sum(map(len, encoded.values())) <= budget:
                break
    return {
        key: Thumbnail("", problem=value) if isinstance(value, str) else Thumbnail(encoded[key], *value[1])
        for key, value in shrunk.items()
    }


def overlay_uri(classes: np.ndarray, colours: Mapping[int, Colour]) -> str:
    """A label map as a PNG data URI, transparent where no colour is given. classes: integer (H, W)."""
    from PIL import Image

    present, numbers = np.unique(classes, return_inverse=True)
    palette = np.array([(*colours.get(c, (0, 0, 0)), 255 * (c in colours)) for c in present.tolist()], dtype=np.uint8)
    return _uri(Image.fromarray(palette[numbers].reshape(*classes.shape, 4), "RGBA"), "PNG", optimize=True)


def _shrunk(path: str, side: int, corruption: Corruption | None) -> tuple[Image.Image, tuple[int, int]] | str:
    """The image, no larger than will be needed, and its size; or why it cannot be read."""
    try:
        image = open_upright(path, side=side) if corruption is None else open_corrupted(path, corruption)
    except BenchError as error:
        return str(error)
    size = image.size
    image.thumbnail((side, side), reducing_gap=2.0)
    return image, size


def _encoded(image: Image.Image, side: int, quality: int) -> str:
    smaller = image
    if max(image.size) > side:
        smaller = image.copy()
        smaller.thumbnail((side, side))
    return _uri(smaller, "WEBP", quality=quality, method=4)


def _uri(image: Image.Image, form: str, **how: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **how)  # type: ignore[arg-type]
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
