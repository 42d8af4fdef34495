"""Zip archives: members that are stored or deflated, read by their offsets."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

from beit3_bench.backbones.archives.archive import AGAIN, Archive, check_new, member_name, unreadable
from beit3_bench.errors import BenchError
from beit3_bench.files import open_regular

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL = struct.Struct("<4s22x2H")  # signature ... lengths of name and extra field
_SLACK = 128  # room for an extra field, so that most members are read in one go
_ENCRYPTED = 0x1


class Zip(Archive):
    """Offsets, sizes and checksums in arrays, so that 118,000 members travel to another process in a tenth of a second."""

    def __init__(self, path: str):
        """Raises: BenchError: cut off, encrypted, compressed in another way, members that collide or climb out."""
        try:
            with open_regular(Path(path)) as file:
                super().__init__(path, os.fstat(file.fileno()))
                self._rows: dict[str, int] = {}
                self._offsets, self._packed, self._sizes = array("q"), array("q"), array("q")
                self._checksums, self._methods = array("L"), bytearray()
                with zipfile.ZipFile(file) as archive:
                    for info in archive.infolist():
                        self._add(info)
        except OSError as error:
            raise unreadable(path, error) from error
        except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OverflowError) as error:
            why = " ".join(str(error).split())[:100]
            raise BenchError(f"{path}: is no whole zip archive ({why}); it was cut off or damaged: {AGAIN}") from error

    def _add(self, info: zipfile.ZipInfo) -> None:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.filename.endswith("/") or kind not in (0, stat.S_IFREG):  # folders; links and devices are no images
            return
        name = member_name(info.filename, self.path)
        check_new(name, self._rows, self.path)
        if info.flag_bits & _ENCRYPTED:
            raise BenchError(f"{self.path}: member {name[:80]!r} is encrypted; unpack the archive with its password")
        if info.compress_type not in _METHODS:
            raise BenchError(
                f"{self.path}: member {name[:80]!r} is compressed by method {info.compress_type}; read are stored and deflated "
                "members: unpack the archive, or pack it again with zip -0"
            )
        self._rows[name] = len(self._rows)
        self._offsets.append(info.header_offset)
        self._packed.append(info.compress_size)
        self._sizes.append(info.file_size)
        self._checksums.append(info.CRC)
        self._methods.append(info.compress_type)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def size(self, name: str) -> int:
        return self._sizes[self._row(name)]

    def _row(self, name: str) -> int:
        try:
            return self._rows[name]
        except KeyError:
            raise self.missing(name) from None

    def read(self, name: str) -> bytes:
        row = self._row(name)
        offset, packed, size = self._offsets[row], self._packed[row], self._sizes[row]
        start = self.bytes_at(offset, _LOCAL.size + len(name) + _SLACK + packed)
        if len(start) < _LOCAL.size or start[:4] != b"PK\3\4":
            raise self.damaged(name, "no member begins where the directory says")
        begin = _LOCAL.size + sum(_LOCAL.unpack_from(start)[1:])
        content = start[begin : begin + packed]
        if len(content) < packed:
            content += self.bytes_at(offset + begin + len(content), packed - len(content))
        if self._methods[row] == zipfile.ZIP_DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
            except zlib.error as error:
                raise self.damaged(name, str(error)) from error
        if len(content) != size:
            raise self.damaged(name, f"{len(content):,} bytes instead of {size:,}")
        if zlib.crc32(content) != self._checksums[row]:
            raise self.damaged(name, "its checksum is another")
        return content
