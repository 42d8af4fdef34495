"""Preprocessed images on disk: the second checkpoint on the same data decodes nothing.

An entry is the uint8 pixels before normalisation, named by the SHA-256 of the image file's bytes, below a folder named by
everything else that the pixels depend on (`Preprocessing.pixel_facts`). The bytes are read and hashed every time: that
costs a fiftieth of decoding, and no clock, file name or inode can be wrong about them.

    DIR/images-<hash of the facts>/about.json       the facts, for people
    DIR/images-<hash of the facts>/ab/cdef....px    one image: header with checksum, then the pixels

Any number of processes may share a folder: entries appear whole, by renaming, and equal names hold equal pixels. A damaged
entry is made again; nothing is written through a link.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import secrets
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.abilities import PixelTransform
from beit3_bench.backbones.image_hashes import note
from beit3_bench.backbones.images import read_image_file
from beit3_bench.errors import BenchError
from beit3_bench.files import open_regular, write_atomic

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

PREFIX, ABOUT, SUFFIX = "images-", "about.json", ".px"
LAYOUT = 1  # part of the folder's name: change it with the header or with what `Preprocessing.pixels` does
_HEADER = struct.Struct("<8sI3I4x")  # magic, checksum, channels, height, width
_MAGIC = b"B3BPIX01"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ImageCache:
    """Decoded and resized images of one preprocessing.

    hits, misses: images that this process took from the folder, and images that it decoded.
    trouble: one line, the first reason why something could not be stored; images are decoded all the same.
    """

    def __init__(self, root: str | Path, preprocessing: PixelTransform):
        """Raises: BenchError: ``root`` cannot be a folder here."""
        self.preprocessing = preprocessing
        self.hits = self.misses = 0
        self.trouble: str | None = None
        facts = {"layout": LAYOUT, **preprocessing.pixel_facts()}
        text = json.dumps(facts, sort_keys=True)
        self.folder = Path(root) / (PREFIX + hashlib.sha256(text.encode()).hexdigest()[:32])
        self._prepare(Path(root), text)

    def reading_only(self) -> ImageCache:
        """The same cache, which keeps nothing new and counts for itself."""
        other = copy.copy(self)
        other.trouble = "read only"
        return other

    def load(self, path: str | Path, content: bytes | None = None) -> Tensor:
        """Image file -> uint8 (3, S, S), as `PixelTransform.load`.

        Raises:
            BenchError: missing or undecodable file.
        """
        try:
            content = read_image_file(path) if content is None else content
        except OSError:
            return self.preprocessing.load(path)  # says what is wrong with it
        digest = hashlib.sha256(content).digest()
        name = digest.hex()
        note(path, name)
        entry = self.folder / name[:2] / (name[2:] + SUFFIX)
        pixels = self._read(entry, digest)
        if pixels is not None:
            self.hits += 1
            return pixels
        pixels = self.preprocessing.load(path, content)
        self.misses += 1
        if self.trouble is None:
            self._write(entry, digest, pixels)
        return pixels

    @property
    def size(self) -> int:
        return self.preprocessing.size

    @property
    def as_rgb(self) -> bool:
        return self.preprocessing.as_rgb

    def pixels(self, image: Image.Image) -> Tensor:
        """PIL RGB -> uint8 (3, S, S); an image that is no file is not kept."""
        return self.preprocessing.pixels(image)

    def pixel_facts(self) -> dict[str, Any]:
        return self.preprocessing.pixel_facts()

    # ---- entries ------------------------------------------------------------------------------------------------

    def _read(self, entry: Path, digest: bytes) -> Tensor | None:
        """The pixels, or None where there is no whole entry."""
        import torch

        size = _HEADER.size + 3 * self.preprocessing.size**2
        try:
            with open_regular(entry) as file:
                if os.fstat(file.fileno()).st_size != size:
                    return None
                content = bytearray(size)
                if file.readinto(content) != size:  # type: ignore[attr-defined]
                    return None
        except OSError:
            return None
        magic, checksum, *shape = _HEADER.unpack_from(content)
        pixels = memoryview(content)[_HEADER.size :]
        if magic != _MAGIC or shape != [3, self.preprocessing.size, self.preprocessing.size]:
            return None
        if zlib.crc32(pixels, zlib.crc32(digest + bytes(str(shape), "ascii"))) != checksum:
            return None
        return torch.frombuffer(content, dtype=torch.uint8, offset=_HEADER.size).view(shape)

    def _write(self, entry: Path, digest: bytes, pixels: Tensor) -> None:
        shape = list(pixels.shape)
        body = pixels.numpy().data.cast("B")
        checksum = zlib.crc32(body, zlib.crc32(digest + bytes(str(shape), "ascii")))
        part = entry.with_name(f".{entry.name}.{secrets.token_hex(8)}.part")
        try:
            entry.parent.mkdir(exist_ok=True)
            if entry.parent.is_symlink():
                raise OSError(errno.ELOOP, "a folder of it is a link")
            with open(part, "xb") as file:
                file.write(_HEADER.pack(_MAGIC, checksum, *shape))
                file.write(body)
            os.replace(part, entry)  # not synchronised: the checksum tells what a power cut left behind
        except OSError as error:
            self._stop(error)
        finally:
            with suppress(OSError):
                part.unlink()

    def _prepare(self, root: Path, facts: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.folder.is_symlink():
                raise OSError(errno.ELOOP, "is a link")
            if not (self.folder / ABOUT).is_file():
                write_atomic(self.folder / ABOUT, facts.encode() + b"\n")
        except (OSError, BenchError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            assert isinstance(reason, OSError)
            if reason.errno not in _FULL and not self.folder.is_dir():
                raise BenchError(
                    f"{root}: cannot be a folder of cached images ({reason.strerror}); choose another --image-cache"
                ) from error
            self._stop(reason)

    def _stop(self, error: OSError) -> None:
        """Store nothing more in this process."""
        reason = "the disk is full" if error.errno in _FULL else f"not writable ({error.strerror})"
        self.trouble = f"{self.folder}: {reason}; going on without storing images"
