"""Checkpoint files as nested plain values and tensors: PyTorch's archives, its older files, safetensors, sets of shards.

Tensors are views of the mapped file, copied by nobody until a model is filled. Nothing in a file is imported or executed:
see `inert_pickle`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import mmap
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from beit3_bench.backbones.file_kinds import again, foreign_kind, is_index
from beit3_bench.backbones.inert_pickle import Builder, DamagedPickle, InertUnpickler, Reference, UnsafePickle, shown
from beit3_bench.errors import BenchError, exhausted

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.(safetensors|bin)$")
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_LARGEST_DIMENSION = 1 << 62
_EXPANDED = 1 << 26  # elements that a tensor may repeat out of fewer stored ones


@dataclass
class FileContent:
    """content: nested plain values, tensors and stand-ins.  texts: a safetensors file's own strings.  files: all that were read."""

    content: Any
    texts: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def sha256(self) -> str:
        """Hex digest of the file; of several, of their names and digests."""
        if len(self.files) == 1:
            return file_sha256(self.files[0])
        lines = [f"{path.name} {file_sha256(path)}\n" for path in self.files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_file(path: Path) -> FileContent:
    """Read a file, or all files of a set that its index names.

    Raises:
        BenchError: cut, damaged, unsafe, or not a checkpoint; says what it is.
    """
    try:
        if is_index(path):
            return _read_shards(path)
        parts = _SHARD.search(path.name)
        if parts and parts[2] != "00001":
            raise BenchError(
                f"{path}: is one of {int(parts[2])} parts of a checkpoint; "
                "give the index beside it (....index.json), or their folder"
            )
        return _read_one(path)
    except OSError as error:
        if exhausted(error) is not None:
            raise
        raise BenchError(f"{path}: cannot be read ({error.strerror or error}); check the file and the disk") from error


def _read_one(path: Path) -> FileContent:
    with open(path, "rb") as file:
        head = file.read(9)
    if _is_safetensors(head) or (path.suffix == ".safetensors" and not head.startswith((b"PK", b"\x80"))):
        if not _is_safetensors(head) and (kind := foreign_kind(path)):
            raise BenchError(f"{path}: {kind}")
        return _read_safetensors(path)
    if kind := foreign_kind(path):
        raise BenchError(f"{path}: {kind}")
    try:
        content = read_archive(path) if head.startswith(b"PK") else _read_older(path)
    except UnsafePickle as error:
        raise BenchError(
            f"{path}: asks to run {shown(str(error))}; nothing was executed; use the official file or a safetensors copy "
            "(where you trust its source: load it there and write its tensors with safetensors.torch.save_file)"
        ) from error
    except (BenchError, OSError, MemoryError):
        raise
    except Exception as error:
        # Damaged bytes fail in the pickle, the archive or the tensors, each with errors of its own.
        if exhausted(error) is not None:  # the file may be whole, the machine cannot take it in
            raise
        line = " ".join(str(error).split())[:120] or type(error).__name__
        raise BenchError(f"{path}: not a whole PyTorch checkpoint ({line}); {again(path)}") from error
    return FileContent(content, files=[path])


# ---- tensors of PyTorch's pickles ---------------------------------------------------------------------------------------

_STORAGE_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


@dataclass
class _Storage:
    """Bytes of a file, and what their elements are; dtype None: of a kind that is not read (quantised)."""

    content: torch.UntypedStorage
    dtype: torch.dtype | None


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Any:
    """A view of a storage, its bounds checked; NotImplemented where the storage is none that can be read."""
    dtype = dtype or (storage.dtype if isinstance(storage, _Storage) else None)
    if not isinstance(storage, _Storage) or dtype is None:
        return NotImplemented
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and 0 <= n < _LARGEST_DIMENSION for n in numbers):
        raise DamagedPickle("a tensor with a shape that none has")
    there, count = storage.content.nbytes() // dtype.itemsize, math.prod(size)
    if count and offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= there:
        raise DamagedPickle("a tensor reaches beyond its bytes")
    if count > max(there, _EXPANDED):
        raise DamagedPickle(f"a tensor of {count:,} elements out of {there:,} stored ones")
    return torch.empty(0, dtype=dtype).set_(storage.content, offset if count else 0, size, stride)  # type: ignore[call-overload]


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    flags = rest[2] if len(rest) > 2 else None  # lazily conjugated or negated: no weights are
    return NotImplemented if flags else _tensor(storage, offset, size, stride)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *rest: Any
) -> Any:
    kind = _DTYPES.get(dtype.path) if isinstance(dtype, Reference) else None
    return NotImplemented if kind is None or (rest and rest[0]) else _tensor(storage, offset, size, stride, kind)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor if isinstance(tensor, Tensor) else NotImplemented


def _typed(make: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    builder = _TENSORS.get(make.path) if isinstance(make, Reference) else None
    return builder(*arguments) if builder and type(arguments) is tuple else NotImplemented


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.storage._load_from_bytes": lambda content: _read_older_stream(
        io.BytesIO(content), len(content), _copied(content)
    ),
}

StorageAt = Callable[[int, int, int], torch.UntypedStorage]
"""(first byte, bytes, bytes of an element) -> these bytes as a storage."""


def _mapped(path: Path) -> StorageAt:
    """Parts of a file, mapped privately: whoever writes into them changes no file."""
    size = path.stat().st_size
    whole = torch.UntypedStorage.from_file(str(path), False, size)

    def at(start: int, length: int, element: int) -> torch.UntypedStorage:
        if start < 0 or length < 0 or start + length > size:
            raise DamagedPickle("a tensor's bytes reach beyond the end of the file")
        if length == 0:
            return torch.UntypedStorage(0)
        part = whole[start : start + length]
        return part if start % element == 0 else part.clone()  # processors want numbers at multiples of their size

    return at


def _copied(content: bytes) -> StorageAt:
    def at(start: int, length: int, element: int) -> torch.UntypedStorage:
        if start < 0 or length < 0 or start + length > len(content):
            raise DamagedPickle("a tensor's bytes reach beyond their end")
        part = bytearray(content[start : start + length])
        return torch.frombuffer(part, dtype=torch.uint8).untyped_storage() if part else torch.UntypedStorage(0)

    return at


def _storage_key(identity: Any) -> tuple[torch.dtype | None, str, int, Any]:
    """Type, key, number of elements, and the part that is meant, of a persistent id."""
    if type(identity) is not tuple or len(identity) < 5 or identity[0] != "storage":
        raise DamagedPickle("a persistent id that is none of PyTorch's")
    kind, key, _, count, *view = identity[1:]
    if type(kind) is not Reference or type(key) is not str or type(count) is not int:
        raise DamagedPickle("a persistent id that is none of PyTorch's")
    return _STORAGE_TYPES.get(kind.name.rpartition(".")[2]), key, count, view[0] if view else None


# ---- zip archives (PyTorch since 1.6) -----------------------------------------------------------------------------------


def read_archive(path: Path, more: Mapping[str, Builder] | None = None) -> Any:
    """The content of an archive. more: makers of plain values, by dotted name."""
    storage_at, size = _mapped(path), path.stat().st_size
    with open(path, "rb") as file:
        with zipfile.ZipFile(file) as archive:
            members = {member.filename: member for member in archive.infolist()}

        def place(name: str) -> tuple[int, int]:
            """Where a member's bytes lie in the file, and how many."""
            member = members.get(name)
            if member is None:
                raise DamagedPickle(f"its archive has no {shown(name.rpartition('/')[2])}")
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise DamagedPickle("its archive was packed again by another program: give it as torch.save wrote it")
            file.seek(member.header_offset)
            header = file.read(30)
            if len(header) < 30 or header[:4] != b"PK\x03\x04":
                raise DamagedPickle("its archive is damaged")
            start = member.header_offset + 30 + int.from_bytes(header[26:28], "little")
            start += int.from_bytes(header[28:30], "little")
            if start + member.file_size > size:
                raise DamagedPickle("its archive is cut off")
            return start, member.file_size

        def content_of(name: str) -> bytes:
            start, length = place(name)
            file.seek(start)
            return file.read(length)

        main = next(name for name in members if name.rpartition("/")[2] == "data.pkl")
        folder = main.removesuffix("data.pkl")
        if f"{folder}byteorder" in members and content_of(f"{folder}byteorder") == b"big":
            raise BenchError(f"{path}: was written on a big-endian machine; write it as safetensors there")
        storages: dict[str, torch.UntypedStorage] = {}

        def persistent(identity: Any) -> Any:
            dtype, key, _, _ = _storage_key(identity)
            if key not in storages:
                storages[key] = storage_at(*place(f"{folder}data/{key}"), dtype.itemsize if dtype else 1)
            return _Storage(storages[key], dtype)

        return InertUnpickler({**_TENSORS, **(more or {})}, persistent).load(content_of(main))


# ---- older files (one pickle after the other, then the numbers), and plain pickles --------------------------------------

_MAGIC = 0x1950A86A20F9469CFC6C


def _read_older(path: Path) -> Any:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as stream:
        return _read_older_stream(stream, len(stream), _mapped(path))  # type: ignore[arg-type]


def _read_older_stream(stream: BinaryIO, size: int, storage_at: StorageAt) -> Any:
    first = InertUnpickler(_TENSORS).load(stream)
    if first != _MAGIC:
        return first  # a plain pickle
    for _ in range(2):  # version; what the machine was like
        machine = InertUnpickler().load(stream)
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise DamagedPickle("written on a big-endian machine")
    start = stream.tell()
    types: dict[str, torch.dtype | None] = {}

    def note(identity: Any) -> Any:
        if type(identity) is tuple and identity[:1] == ("module",) and len(identity) > 1:
            return identity[1]
        dtype, key, _, _ = _storage_key(identity)
        types[key] = dtype
        return None

    # The numbers stand behind the objects that need them: the objects are read twice.
    InertUnpickler(persistent=note).load(stream)
    storages: dict[str, torch.UntypedStorage] = {}
    for key in InertUnpickler().load(stream):
        dtype = types[key]
        if dtype is None:
            raise DamagedPickle("quantised tensors in an older file")
        count = int.from_bytes(stream.read(8), "little", signed=True)
        here, length = stream.tell(), count * dtype.itemsize
        storages[key] = storage_at(here, length, dtype.itemsize)
        stream.seek(min(here + length, size))

    def persistent(identity: Any) -> Any:
        if type(identity) is tuple and identity[:1] == ("module",):
            return identity[1]
        dtype, key, _, view = _storage_key(identity)
        content = storages[key]
        if view is not None and dtype is not None:
            _, offset, count = view
            content = content[offset * dtype.itemsize : (offset + count) * dtype.itemsize]
        return _Storage(content, dtype)

    stream.seek(start)
    return InertUnpickler(_TENSORS, persistent).load(stream)


# ---- safetensors, and sets of files -------------------------------------------------------------------------------------


def _is_safetensors(head: bytes) -> bool:
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER


def _read_safetensors(path: Path) -> FileContent:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return FileContent(tensors, dict(file.metadata() or {}), [path])
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        if exhausted(error) is not None:
            raise
        line = " ".join(str(error).split())[:120]
        raise BenchError(f"{path}: not a whole safetensors file ({line}); {again(path)}") from error


def _read_shards(path: Path) -> FileContent:
    """The tensors of all files that an index names; each must lie beside it, and hold what the index says."""
    places = json.loads(path.read_bytes())["weight_map"]
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise BenchError(f"{path}: tensor {name!r} is said to lie in {file!r}; shards lie beside their index")
    content = FileContent({}, files=[path])
    for file in sorted(set(places.values())):
        part = path.with_name(file)
        if not part.is_file():
            raise BenchError(
                f"{path}: its part {file!r} is missing; put all {len(set(places.values()))} parts beside it"
            )
        shard = _read_one(part)
        if not isinstance(shard.content, dict):
            raise BenchError(f"{part}: holds no tensors by name; is it a part of {path.name}?")
        absent = [name for name, place in places.items() if place == file and name not in shard.content]
        if absent:
            raise BenchError(f"{part}: lacks tensor {absent[0]!r}, which {path.name} says it holds; {again(part)}")
        taken = {n: v for n, v in shard.content.items() if places.get(n, file) == file}
        if twice := next((n for n in taken if n in content.content), None):
            raise BenchError(f"{part}: tensor {twice!r} is in another part, too; the parts are not of one checkpoint")
        content.content.update(taken)
        content.texts.update(shard.texts)
        content.files.append(part)
    return content
