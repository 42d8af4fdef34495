"""Which file is meant for a checkpoint, and what a file is that is none, seen from its first bytes."""

from __future__ import annotations

import json
import stat
import zipfile
from pathlib import Path

from beit3_bench.backbones.released import find_released
from beit3_bench.errors import BenchError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Names of an index in a folder of shards, as Hugging Face's libraries write them."""

_HEAD = 4096
_LARGEST_INDEX = 100_000_000

# beginning, what it is, the mend
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself", "get the content with: git lfs pull"),
    (b"\x1f\x8b", "a gzip archive", "unpack it (gunzip, or tar -xzf) and give the checkpoint in it"),
    (b"BZh", "a bzip2 archive", "unpack it (bunzip2, or tar -xjf) and give the checkpoint in it"),
    (b"\xfd7zXZ\x00", "an xz archive", "unpack it (unxz, or tar -xJf) and give the checkpoint in it"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it (unzstd) and give the checkpoint in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and give the checkpoint in it"),
    (b"Rar!\x1a\x07", "a rar archive", "unpack it and give the checkpoint in it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, or h5py)", "give the PyTorch or safetensors form of the weights"),
    (b"GGUF", "a GGUF file (llama.cpp)", "give the PyTorch or safetensors form of the weights"),
    (b"\x93NUMPY", "a NumPy array", "give the whole checkpoint as .pth or .safetensors"),
    (b"\x89PNG\r\n", "an image (PNG)", "give the checkpoint"),
    (b"\xff\xd8\xff", "an image (JPEG)", "give the checkpoint"),
    (b"%PDF", "a PDF document", "give the checkpoint"),
    (b"SQLite format 3", "an SQLite database", "give the checkpoint"),
    (b"PAR1", "a Parquet table", "give the checkpoint"),
    (b"\x7fELF", "a program or library", "give the checkpoint"),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")
_TENSORFLOW_INDEX = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_OTHER_SUFFIXES = {
    ".onnx": ("an ONNX model", "give the PyTorch or safetensors form of the weights"),
    ".tflite": ("a TensorFlow Lite model", "give the PyTorch or safetensors form of the weights"),
    ".pb": ("a TensorFlow graph", "give the PyTorch or safetensors form of the weights"),
    ".msgpack": ("Flax weights (msgpack)", "give the PyTorch or safetensors form of the weights"),
    ".spm": (
        "a SentencePiece tokenizer, not a checkpoint",
        "give it with --tokenizer and the weights with --checkpoint",
    ),
}
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".aria2")


def checkpoint_file(path: str | Path) -> Path:
    """The file to read for a path that a user gave: itself, or the index of shards in a folder.

    Raises:
        BenchError: nothing there, no regular file, or a folder without an index.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            index = next((path / name for name in INDEXES if (path / name).is_file()), None)
            if index is None:
                raise BenchError(f"{path}: {foreign_folder(path)}")
            return index
    except (FileNotFoundError, NotADirectoryError) as error:
        if str(path).startswith(("http:/", "https:/")):
            raise BenchError(f"{path}: is an address; download the file and give its path") from error
        if path.is_symlink():
            raise BenchError(f"{path}: is a link to {path.readlink()}, which is not there; mend the link") from error
        raise BenchError(f"{path}: checkpoint not found; released files are listed by: beit3-bench models") from error
    except (OSError, ValueError) as error:
        raise BenchError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not stat.S_ISREG(mode):
        raise BenchError(f"{path}: is no regular file; give the checkpoint file")
    return path


def again(path: Path) -> str:
    """How to get a file that is damaged once more: a released one from its source, one's own from where it was made."""
    weight = find_released(path)
    if weight is not None:
        return f"delete it and get it again with: beit3-bench download {weight.name}"
    return "copy it again from where it was written"


def foreign_kind(path: Path) -> str:
    """``"is a ...; mend"`` for a file that is known to be no checkpoint, or a cut one; empty where its bytes may be one."""
    size = path.stat().st_size
    if size == 0:
        return f"is empty; {again(path)}"
    with open(path, "rb") as file:
        head = file.read(_HEAD)
        file.seek(max(size - len(_TENSORFLOW_INDEX), 0))
        tail = file.read()
    if path.suffix.lower() in _UNFINISHED:
        return "is an unfinished download; finish it, e.g. with the same download command"
    for beginning, kind, mend in _BEGINNINGS:
        if head.startswith(beginning):
            return f"is {kind}; {mend}"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:64].lower().startswith(_PAGES) or (text.startswith(b"<?xml") and b"<html" in text.lower()):
        return "is a web page that was saved instead of the file; download from the file's direct address"
    if text.startswith(b"<?xml") or text.startswith(b"<Error"):
        return "is XML, perhaps a server's error message, not a checkpoint; look into it, and download the file again"
    if not head.strip(b"\0"):
        return f"begins with zero bytes only, as an unfinished copy does; {again(path)}"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it (tar -xf) and give the checkpoint in it"
    if head.startswith(b"PK\x03\x04") or head.startswith(b"PK\x05\x06"):
        return _zip_kind(path)
    if head[4:8] == b"TFL3":
        kind, mend = _OTHER_SUFFIXES[".tflite"]
        return f"is {kind}; {mend}"
    if tail == _TENSORFLOW_INDEX or ".ckpt.data-" in path.name:
        return "is a TensorFlow checkpoint; give the PyTorch or safetensors form of the weights"
    if head[:1] == b"\x08" and b"\x12" in head[2:4] and (b"pytorch" in head[:64] or b"onnx" in head[:64].lower()):
        return "is an ONNX model; give the PyTorch or safetensors form of the weights"
    if path.suffix.lower() in _OTHER_SUFFIXES:
        kind, mend = _OTHER_SUFFIXES[path.suffix.lower()]
        return f"is {kind}; {mend}"
    return _text_kind(path, head, size)


def _text_kind(path: Path, head: bytes, size: int) -> str:
    if head[:1] in (b"\x80", b"(") or b"\0" in head:
        return ""
    try:
        text = head.decode("utf-8-sig") if len(head) == size else head.decode("utf-8-sig", errors="ignore")
    except UnicodeDecodeError:
        return ""
    if not all(c.isprintable() or c in "\t\r\n" for c in text):
        return ""
    if text.lstrip()[:1] in ("{", "["):
        return "is a JSON file, not a checkpoint; give the file that holds the weights"
    start = " ".join(text.split())[:40]
    return f"is a text file (it begins with {start!r}), not a checkpoint; give the file that holds the weights"


def _zip_kind(path: Path) -> str:
    """What a zip archive is that is no checkpoint of PyTorch; empty for one that is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist()]
    except Exception:  # zipfile raises many kinds for damaged archives
        return f"is not a whole PyTorch checkpoint: the end of its archive is missing or damaged; {again(path)}"
    last = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in last:
        scripted = "constants.pkl" in last or any("/code/" in f"/{name}" for name in names)
        return (
            "is a TorchScript archive, not a state dict; where you trust it, save its weights alone: "
            "torch.save({'model': torch.jit.load(FILE).state_dict()}, NEW)"
            if scripted
            else ""
        )
    if names and all(name.endswith(".npy") for name in names):
        return "is a NumPy archive (npz); save its arrays as .safetensors"
    if "model.weights.h5" in last:
        return "is a Keras model; give the PyTorch or safetensors form of the weights"
    if "[Content_Types].xml" in last:
        return "is an office document; give the checkpoint"
    if any("archive_format" in name or name.endswith("model.json") for name in names):
        return "is an exported program (torch.export or old TorchScript); save its state dict with torch.save"
    inner = next((n for n in names if Path(n).suffix in (".pth", ".pt", ".bin", ".ckpt", ".safetensors")), None)
    what = f"(it holds {inner[:80]!r})" if inner else "without a checkpoint's data.pkl"
    return f"is a zip archive {what}; unpack it and give the checkpoint in it"


def foreign_folder(folder: Path) -> str:
    """``"is a folder ...; mend"`` for a folder in the place of a checkpoint."""
    names = sorted(p.name for p in folder.iterdir())
    if ".metadata" in names and any(n.endswith(".distcp") for n in names):
        return (
            "is a distributed checkpoint; make one file of it: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth"
        )
    if "saved_model.pb" in names:
        return "is a TensorFlow model; give the PyTorch or safetensors form of the weights"
    if "data.pkl" in names:
        return "is a folder, an unpacked checkpoint; give the .pth file that it was unpacked from"
    files = [n for n in names if Path(n).suffix in (".pth", ".pt", ".bin", ".ckpt", ".safetensors")]
    listed = f", e.g. {files[0]}" if files else "; there is no .pth, .bin or .safetensors in it"
    return f"is a folder; name the checkpoint file in it{listed}"


def is_index(path: Path) -> bool:
    """Whether a file is the index of a checkpoint in several files (``{"weight_map": {tensor: file}}``)."""
    if path.suffix != ".json" or path.stat().st_size > _LARGEST_INDEX:
        return False
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and isinstance(content.get("weight_map"), dict)
