"""What SOURCE names: the architecture, the file of weights, and the config beside it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.backbones.released import find_released
from beit3_bench.errors import BenchError
from beit3_bench.files import read_limited
from beit3_bench.spelling import did_you_mean

CONFIG = "open_clip_config.json"
LOCAL = ("local-dir:", "local-dir ")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
PREFERRED = tuple(
    f"{stem}{suffix}"
    for stem in ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
    for suffix in WEIGHT_SUFFIXES
)
"""Names of weights in a folder, in open_clip's order."""
_LARGEST_CONFIG = 2**20


@dataclass(frozen=True)
class Place:
    """architecture: open_clip's name; None = what the config beside the weights says.  weights: file."""

    architecture: str | None
    weights: Path


def place_of(text: str) -> Place:
    """What ``ARCHITECTURE/FILE``, ``FOLDER``, ``local-dir:FOLDER`` or ``FILE`` names.

    The architecture ends at the first slash behind a name that open_clip knows; the file may be absolute (``ViT-B-32//data/b32.pt``,
    or with one slash where there is no such relative path).

    Raises:
        BenchError: nothing of the kind is there; says what to write.
    """
    local = next((text[len(prefix) :] for prefix in LOCAL if text.startswith(prefix)), None)
    if local is not None:
        return Place(None, weights_in(Path(local.strip())))
    named = next(_splits(text), None)
    if named is not None:
        rooted = Place(named.architecture, Path("/", named.weights))
        if there := next((place for place in (named, rooted) if _exists(place.weights)), None):
            return there
    path = Path(text)
    if path.is_dir():
        return Place(None, weights_in(path))
    if _exists(path):
        return _of_file(path)
    if named is not None:
        return named  # the reader says that it is not there
    head, slash, _ = text.partition("/")
    known = architectures()
    if known is not None and not slash and head in known:
        raise BenchError(f"openclip:{text}: names an architecture without weights; write openclip:{head}/FILE")
    if known is not None and slash and head and not Path(head).exists():
        raise BenchError(f"openclip:{text}: open_clip knows no architecture {head!r}; {did_you_mean(head, known)}")
    raise BenchError(
        f"openclip:{text}: no such folder or file; write openclip:ARCHITECTURE/FILE, or openclip:FOLDER with {CONFIG}"
    )


def _splits(text: str) -> Iterator[Place]:
    """Architecture and file at each slash behind a known name; ``ViT-B/32`` is ``ViT-B-32``, as open_clip takes it. Where the
    package is missing the first slash serves: that it is missing is said later, with the install line.
    """
    known = architectures()
    for place, letter in enumerate(text):
        name = text[:place].replace("/", "-")
        if letter == "/" and name and text[place + 1 :] and (known is None or name in known):
            yield Place(name, Path(text[place + 1 :]))


def architectures() -> tuple[str, ...] | None:
    """Names of the architectures; None where open_clip is not installed."""
    from beit3_bench.backbones.openclip.library import open_clip

    if importlib.util.find_spec("open_clip") is None:
        return None
    try:
        return tuple(open_clip("reading its architectures").list_models())
    except BenchError:
        return None


def _of_file(path: Path) -> Place:
    if (path.parent / CONFIG).is_file():
        return Place(None, path)
    released = find_released(path)
    if released is not None and released.family == "openclip":
        return Place(released.preset, path)
    raise BenchError(
        f"{path}: nothing says of which architecture it is; write openclip:ARCHITECTURE/{path}, or put {CONFIG} beside it"
    )


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder with a config.

    Raises:
        BenchError: no folder, no config, no weights, or several files of which none is called as open_clip calls them.
    """
    if not folder.is_dir():
        raise BenchError(f"{folder}: folder not found; openclip:local-dir takes a folder with {CONFIG} and weights")
    if not (folder / CONFIG).is_file():
        raise BenchError(
            f"{folder}: has no {CONFIG}; copy it there from where the weights are from, or write openclip:ARCHITECTURE/FILE"
        )
    files = sorted(path.name for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    usual = [name for name in PREFERRED if name in files]
    if not files:
        raise BenchError(f"{folder}: has {CONFIG}, but no weights ({', '.join(WEIGHT_SUFFIXES)}); put the file there")
    if not usual and len(files) > 1:
        raise BenchError(f"{folder}: holds several files of weights ({', '.join(files[:5])}); name one: openclip:FILE")
    return folder / (usual or files)[0]


def config_beside(weights: Path) -> dict[str, Any] | None:
    """The content of `CONFIG` beside a file; None where there is none.

    Raises:
        BenchError: no JSON object with a ``model_cfg`` of embed_dim, vision_cfg and text_cfg.
    """
    path = weights.parent / CONFIG
    if not path.is_file():
        return None
    try:
        content = json.loads(read_limited(path, _LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path}: cannot be read as JSON ({error}); copy it again from its source") from error
    model = content.get("model_cfg") if isinstance(content, dict) else None
    parts = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    for key, kind in parts.items():
        if not isinstance(model, dict) or not isinstance(model.get(key), kind):
            raise BenchError(f"{path}: has no model_cfg with {key}; it is no config of open_clip, copy it again")
    pixels = content.get("preprocess_cfg", {})
    if not isinstance(pixels, dict):
        raise BenchError(f"{path}: preprocess_cfg is a {type(pixels).__name__}, not an object; copy it again")
    return {"model_cfg": model, "preprocess_cfg": pixels}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False
