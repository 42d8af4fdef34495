"""Pictures as people have them: turned by their EXIF orientation, and in the formats that phones write.

The reader of an evaluation (`backbones.images`, `backbones.preprocess.decode`) reads fewer formats, and for most tasks leaves a picture
as its sensor saw it, because the official code does, and a number must be the official one. A person who asks a model about a
picture means the picture as it is looked at: it is opened upright here, shown and given to the model so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, features

from beit3_bench.backbones.images import FORMATS, opened, read_image_file
from beit3_bench.backbones.preprocess import TURNS, orientation, upright
from beit3_bench.errors import BenchError, requires

if TYPE_CHECKING:
    from beit3_bench.backbones.corruptions import Corruption

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".heic",
    ".heif",
    ".avif",
    ".mpo",
)
"""Of the files in a folder that are taken for pictures; letter case does not matter."""

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}


def open_upright(path: str | Path, content: bytes | None = None, side: int | None = None) -> Image.Image:
    """A picture file as RGB, upright.

    Args:
        content: the file's bytes, where they have been read already.
        side: pixels, where no larger picture is needed (a thumbnail): a JPEG is then decoded at a fraction of its size, fast,
            and the result is at least so large on its longer side where the file is.

    Raises:
        BenchError: no such file; none of the formats, or damaged; of more pixels than are read; HEIC without its plug-in.
    """
    if content is None:
        content = _read(path)
    with opened(path, content, _formats(path, content), mend="give another picture") as image:
        if side is not None and image.format == "JPEG":
            image.draft("RGB", (side, side))
        return upright_copy(image)


def open_corrupted(path: str | Path, corruption: Corruption) -> Image.Image:
    """A picture file as RGB, corrupted as a model saw it (see `backbones.corruptions`), and then upright.

    Raises:
        BenchError: as `Corruption.decoded`.
    """
    content = _read(path)
    with opened(path, content) as image:
        turn = TURNS.get(orientation(image))
    corrupted = corruption.decoded(path, content)
    return corrupted if turn is None else corrupted.transpose(turn)


def upright_copy(image: Image.Image) -> Image.Image:
    """A PIL image as RGB, upright, without the metadata that say how it is to be turned (and where it was taken)."""
    copied = upright(image).copy()
    copied.info.clear()
    return copied


def _read(path: str | Path) -> bytes:
    try:
        return read_image_file(path)
    except FileNotFoundError as error:
        raise BenchError(f"{path}: picture not found; check the name") from error
    except IsADirectoryError as error:
        raise BenchError(f"{path}: is a folder, not a picture; give a file") from error
    except OSError as error:
        raise BenchError(f"{path}: picture cannot be read ({error.strerror}); check its permissions") from error


def _formats(path: str | Path, content: bytes) -> tuple[str, ...]:
    """The formats that a file may be of: those of evaluations, and by its first bytes one of those that phones write."""
    brands = {content[8:12], *(content[n : n + 4] for n in range(16, 64, 4))} if content[4:8] == b"ftyp" else set()
    if brands & _AVIF_BRANDS and features.check("avif"):
        return (*FORMATS, "AVIF")
    if brands & _HEIF_BRANDS and not brands & _AVIF_BRANDS:
        requires("pillow_heif", f"{path}: reading HEIC").register_heif_opener()
        return (*FORMATS, "HEIF")
    return FORMATS
