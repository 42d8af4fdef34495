"""Opening image files: a few formats, of bounded size, and nothing that a file can start.

Pillow knows some forty formats and chooses by content, whatever a file is called: EPS is given to Ghostscript, others are read
by decoders that no data set needs. Every image and label map of the project is opened here, as one of `FORMATS`.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from beit3_bench.backbones.archives.members import Member, member_at
from beit3_bench.backbones.image_hashes import note_content, read_noted
from beit3_bench.errors import BenchError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
"""What torchvision's image folders hold (JPEG is MPO, too; PPM is PGM and PBM, too), and GIF, which stands in web data sets
under the name of JPEG. Of several frames the first is read."""

MAX_PIXELS = 178_956_970  # where Pillow, too, takes an image for a decompression bomb
MAX_BYTES = 8 * MAX_PIXELS  # of a file: as many pixels, four channels of 16 bits, not compressed
MAX_SIDE = 65_535  # JPEG's own limit; resizing keeps whole rows of the longer side in memory

# Pillow warns of attacks from half of the limit on, and of damaged metadata that nobody here asks for; what counts is raised.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_KINDS = {  # how files begin that are often called .jpg or .png
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"<!DOCTYPE": "a web page",
    b"<!doctype": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML or SVG",
    b"<svg": "SVG",
    b"{": "JSON",
    b"version https://git-lfs": "a Git LFS pointer; fetch the files with git lfs pull",
    b"\x00\x05\x16\x07": "what macOS keeps beside a file",
    b"8BPS": "a Photoshop file",
    b"\x00\x00\x00\x0cjP": "JPEG 2000",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
}


_SIGNS = {  # how the accepted formats begin
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"RIFF": "WEBP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"GIF8": "GIF",
}

DEEP = {"I;16": "16-bit grey", "I;16B": "16-bit grey", "I;16L": "16-bit grey", "I": "32-bit grey", "F": "floats"}
"""Pillow's modes whose conversion to RGB cuts values at 255: in the official loader as here."""


class TooLargeError(BenchError):
    """An image whose size is beyond `MAX_PIXELS` or `MAX_SIDE`."""


@contextlib.contextmanager
def opened(
    path: str | Path,
    content: bytes | None = None,
    formats: Sequence[str] = FORMATS,
    what: str = "image",
    mend: str = "download it again, or replace it",
) -> Iterator[Image.Image]:
    """An image whose header has been read and whose size is bounded; decode it inside of the ``with``.

    Args:
        path: a file, or a member of an archive (see `archives.members`).
        content: the file's bytes, where they have been read already.
        formats: Pillow's names of the formats that are accepted.
        what: the file's name in messages, e.g. ``"annotation"``.  mend: for a file that does not decode.

    Raises:
        BenchError: no such file, none of the formats, or damaged (inside of the ``with``, too).
        TooLargeError: more pixels than are read.
    """
    try:
        member = member_at(path) if content is None else None
        if member is not None:
            content = _read_member(member, path, what)
            note_content(path, content)
        elif content is None:
            _check_file(os.stat(path), path, what)
            content = read_noted(path)
        with Image.open(path if content is None else io.BytesIO(content), formats=tuple(formats)) as image:
            _check_size(image, path, what)
            yield image
    except BenchError:
        raise
    except FileNotFoundError as error:
        raise BenchError(f"{path}: {what} not found; download it, or check --data-root") from error
    except Image.DecompressionBombError as error:
        raise _too_large(path, what, str(error).split(" exceeds")[0].removeprefix("Image size ").strip("()")) from error
    except UnidentifiedImageError as error:
        raise BenchError(
            f"{path}: {what} does not decode ({_kind(path, content, formats)}; read are {', '.join(formats)}); {mend}"
        ) from error
    except MemoryError as error:
        raise BenchError(f"{path}: {what} does not fit into memory; make it smaller, or leave it out") from error
    except PermissionError as error:
        raise BenchError(f"{path}: {what} cannot be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # Pillow's decoders raise errors of many kinds on damaged bytes
        words = " ".join(str(error).split())[:150] or type(error).__name__
        raise BenchError(f"{path}: {what} does not decode ({words}); {mend}") from error


def read_image_file(path: str | Path) -> bytes:
    """The bytes of an image file or a member of an archive, for `opened`.

    Raises:
        OSError: it cannot be read.
        BenchError: no file, but a folder or a device; or larger than any image that is read.
    """
    member = member_at(path)
    if member is not None:
        return _read_member(member, path, "image")
    with open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        _check_file(os.fstat(file.fileno()), path, "image")
        return file.read()


def check_header(path: str | Path) -> None:
    """Raise, as `opened` does, for a file that is no image of an accepted format and size; its pixels are not decoded."""
    with opened(path):
        pass


def _check_file(state: os.stat_result, path: str | Path, what: str) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise BenchError(f"{path}: {what} does not decode (it is a folder or a device); put a file there")
    _check_bytes(state.st_size, path, what)


def _check_bytes(size: int, path: str | Path, what: str) -> None:
    if size > MAX_BYTES:
        raise _too_large(path, what, f"a file of {size:,} bytes")


def _read_member(member: Member, path: str | Path, what: str) -> bytes:
    _check_bytes(member.size, path, what)
    return member.read()


def _check_size(image: Image.Image, path: str | Path, what: str) -> None:
    """Bound what decoding will allocate. Pillow keeps at most four bytes per pixel, so that pixels bound bytes, too; but its
    TIFF decoder makes room for whole tiles, whose size is independent of the image's.
    """
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_large(path, what, f"{width:,} x {height:,} pixels")
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is not None:
        tile = [tags.get(tag) for tag in (322, 323)]  # TileWidth, TileLength
        if all(isinstance(side, int) for side in tile) and tile[0] * tile[1] > MAX_PIXELS:
            raise _too_large(path, what, f"tiles of {tile[0]:,} x {tile[1]:,} pixels")


def _too_large(path: str | Path, what: str, size: str) -> TooLargeError:
    return TooLargeError(
        f"{path}: {what} is too large ({size}; at most {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side are read); "
        "make it smaller, or leave it out"
    )


def _kind(path: str | Path, content: bytes | None, formats: Sequence[str]) -> str:
    """What a file is that is no image of these formats, by its first bytes."""
    if content is None:
        with open(path, "rb") as file:
            content = file.read(64)
    start = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        return "not an image: " + ("blanks" if content else "an empty file")
    form = next((name for sign, name in _SIGNS.items() if content.startswith(sign)), None)
    if form is not None:
        return "cut off, or its header is damaged" if form in formats else f"it is {form} by its content"
    if start[4:8] == b"ftyp":
        return "not an image: HEIC, AVIF or a film"
    known = next((name for sign, name in _KINDS.items() if start.startswith(sign)), None)
    return f"not an image: {known or ('an unknown kind of file' if content[:64].strip(bytes(1)) else 'zero bytes')}"
