"""A rectangle of an image, read as if it were a file of its own: ``photo.jpg#xywh=10,20,30,40`` (W3C Media Fragments, pixels).

Whatever reads images reads it by this name: caches and hashes see the pixels of the rectangle alone. Beyond the image it is black, as
PIL's `Image.crop`.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from beit3_bench.backbones.archives.archive import Archive

MARK = "#xywh="
_NAMED = re.compile(r"(.+)#xywh=(\d+),(\d+),(\d+),(\d+)", re.DOTALL)


class Box(NamedTuple):
    """Pixels from the top left corner."""

    x: int
    y: int
    width: int
    height: int


def cropped(path: str, box: Box) -> str:
    """The name of a rectangle of an image."""
    return f"{path}{MARK}{','.join(map(str, box))}"


def parse(text: str) -> tuple[str, Box] | None:
    """The image and the rectangle that a name says; None for any other name."""
    match = _NAMED.fullmatch(text)
    return None if match is None else (match[1], Box(*map(int, match.groups()[1:])))


class Crop(Archive):
    """One image, whose one member is the rectangle. path: of the file that the image lies in."""

    def __init__(self, source: str, file: str, box: Box):
        super().__init__(file, os.stat(file))
        self.source, self.box = source, box

    def __contains__(self, name: object) -> bool:
        from beit3_bench.backbones.archives.members import exists

        return name == self.name and exists(self.source)

    def __iter__(self) -> Iterator[str]:
        yield self.name

    @property
    def name(self) -> str:
        return ",".join(map(str, self.box))

    def size(self, name: str) -> int:
        """Bytes of the whole image's file."""
        from beit3_bench.backbones.archives.members import size_of

        return size_of(self.source)

    def read(self, name: str) -> bytes:
        """The pixels as a PPM file."""
        from beit3_bench.backbones.preprocess import decode

        x, y, width, height = self.box
        buffer = io.BytesIO()
        decode(self.source).crop((x, y, x + width, y + height)).save(buffer, "PPM")
        return buffer.getvalue()
