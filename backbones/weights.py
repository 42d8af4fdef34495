"""Released BEiT-3 files as data, and the hashes this machine has pinned for them.

File names, download location, published scores and parameter counts are those of the official README
(github.com/microsoft/unilm, folder `beit3`). The authors publish no checksums: the sha256 of a file is pinned when it
is first seen and every later use is compared with it.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from beit3_bench.backbones.errors import BenchError
from beit3_bench.backbones.files import write_atomic

OFFICIAL_LOCATION = "https://github.com/addf400/files/releases/download/beit3"
TOKENIZER_FILE = "beit3.spm"

Kind = Literal["pretrained", "fine-tuned", "tokenizer"]
Mode = Literal["squash", "crop"]


@dataclass(frozen=True)
class PublishedScore:
    """One value that the official README prints for a file: our task, split and metric names, in percent."""

    task: str
    split: str
    metric: str
    value: float


@dataclass(frozen=True)
class Weight:
    """One released file and everything that belongs to it.

    Attributes:
        name: registry name, the file name without its suffix.
        file: the official file name.
        kind: pretrained, fine-tuned or tokenizer.
        preset: architecture preset; empty for the tokenizer.
        image_size: side of the input in pixels; 0 for the tokenizer.
        task: the task of the head it carries; None for pre-trained weights.
        preprocessing: ``"squash"`` (bicubic to S x S, mean = std = 0.5) or ``"crop"`` (resize, centre crop, ImageNet
            mean and std); see `backbones.preprocess.Preprocessing`.
        params: parameters in millions as the README prints them; 0 for the tokenizer.
        parent: registry name of the weights it was fine-tuned from; None for pre-trained ones.
        trained_on: data sets whose images it has seen with labels or captions, beyond the web-scale pre-training pairs.
        note: what a reader must know about its training data.
        published: scores printed for this very file.
    """

    name: str
    file: str
    kind: Kind
    preset: str = ""
    image_size: int = 0
    task: str | None = None
    preprocessing: Mode = "squash"
    params: int = 0
    parent: str | None = None
    trained_on: tuple[str, ...] = ()
    note: str = ""
    published: tuple[PublishedScore, ...] = ()
    tokenizer: str = TOKENIZER_FILE
    licence: str = "MIT"

    @property
    def url(self) -> str:
        """Official download location."""
        return f"{OFFICIAL_LOCATION}/{self.file}"


_WEB = "pre-trained on ImageNet-21K images, 160 GB of text and web pairs (LAION-400M, LAION-2B-en, COYO-700M, CC15M)"
_PRETRAINED = {
    "": (_WEB, ()),
    "itc_": (f"{_WEB}; then image-text contrastive intermediate tuning", ()),
    "indomain_": (f"{_WEB}; then masked modelling on COCO and Visual Genome pairs", ("COCO captions", "Visual Genome")),
}
_VQA_DATA = ("VQAv2 train", "VQAv2 val (all but 1,000 images)")
_FINE_TUNING_DATA: dict[str, tuple[str, ...]] = {
    "imagenet-linear": ("ImageNet-1K train",),
    "vqav2": _VQA_DATA,
    "nlvr2": ("NLVR2 train",),
    "coco-caption": ("COCO Karpathy train and restval",),
    "nocaps": ("COCO Karpathy train and restval",),
    "coco-retrieval": ("COCO Karpathy train and restval",),
    "flickr30k": ("Flickr30K Karpathy train",),
}
_METRICS: dict[str, tuple[tuple[str, str], ...]] = {
    "imagenet-linear": (("val", "top1"), ("val", "top5")),
    "vqav2": (("test-dev", "vqa_accuracy"), ("test-std", "vqa_accuracy")),
    "nlvr2": (("dev", "accuracy"), ("test-P", "accuracy")),
    "coco-caption": (("test", "CIDEr"),),
    "nocaps": (("val", "CIDEr"),),
    "coco-retrieval": (("test", "IR@1"), ("test", "TR@1")),
    "flickr30k": (("test", "IR@1"), ("test", "TR@1")),
}

# preset, stage, millions of parameters
_PRETRAINED_FILES = (
    ("base", "", 276),
    ("large", "", 746),
    ("base", "itc_", 222),
    ("large", "itc_", 674),
    ("base", "indomain_", 276),
    ("large", "indomain_", 746),
)

# task, preset, stage in the file name, stage of the parent, size, suffix, millions of parameters, scores as in _METRICS
_FINE_TUNED_FILES = (
    ("imagenet-linear", "base", "", "", 224, "in1k", 87, (85.4, 97.6)),
    ("imagenet-linear", "base", "indomain_", "indomain_", 224, "in1k", 87, (85.4, 97.6)),
    ("imagenet-linear", "large", "", "", 224, "in1k", 305, (87.6, 98.3)),
    ("imagenet-linear", "large", "indomain_", "indomain_", 224, "in1k", 305, (87.5, 98.3)),
    ("vqav2", "base", "", "", 480, "vqa", 228, (77.65,)),
    ("vqav2", "base", "indomain_", "indomain_", 480, "vqa", 228, (78.46,)),
    ("vqav2", "large", "", "", 480, "vqa", 683, (81.85,)),
    ("vqav2", "large", "indomain_", "indomain_", 480, "vqa", 683, (82.53,)),
    ("vqav2", "large", "indomain_", "indomain_", 768, "vgqaaug_vqa", 684, (82.97, 83.03)),
    ("nlvr2", "base", "", "", 224, "nlvr2", 226, (83.6, 84.4)),
    ("nlvr2", "base", "indomain_", "indomain_", 224, "nlvr2", 226, (84.6, 85.3)),
    ("nlvr2", "large", "", "", 224, "nlvr2", 681, (88.5, 89.4)),
    ("nlvr2", "large", "indomain_", "indomain_", 224, "nlvr2", 681, (89.2, 90.0)),
    ("coco-caption", "base", "", "", 480, "coco_captioning", 271, (133.6,)),
    ("coco-caption", "base", "indomain_", "indomain_", 480, "coco_captioning", 271, (135.0,)),
    ("coco-caption", "large", "", "", 480, "coco_captioning", 739, (143.2,)),
    ("nocaps", "base", "", "", 480, "nocaps", 271, (104.4,)),
    ("nocaps", "base", "indomain_", "indomain_", 480, "nocaps", 271, (105.6,)),
    ("nocaps", "large", "", "", 480, "nocaps", 739, (120.2,)),
    ("coco-retrieval", "base", "", "itc_", 384, "coco_retrieval", 222, (61.4, 79.1)),
    ("coco-retrieval", "large", "", "itc_", 384, "coco_retrieval", 675, (63.4, 82.1)),
    ("flickr30k", "base", "", "itc_", 384, "f30k_retrieval", 222, (86.2, 96.3)),
    ("flickr30k", "large", "", "itc_", 384, "f30k_retrieval", 675, (88.1, 97.2)),
)


def _pretrained(preset: str, stage: str, params: int) -> Weight:
    name = f"beit3_{preset}_{stage}patch16_224"
    note, seen = _PRETRAINED[stage]
    return Weight(name, f"{name}.pth", "pretrained", preset, 224, params=params, trained_on=seen, note=note)


def _fine_tuned(
    task: str, preset: str, stage: str, origin: str, size: int, suffix: str, params: int, scores: tuple[float, ...]
) -> Weight:
    name = f"beit3_{preset}_{stage}patch16_{size}_{suffix}"
    note, seen = _PRETRAINED[origin]
    data = _FINE_TUNING_DATA[task] + (("Visual Genome QA",) if "vgqa" in suffix else ())
    return Weight(
        name,
        f"{name}.pth",
        "fine-tuned",
        preset,
        size,
        task,
        "crop" if task == "imagenet-linear" else "squash",
        params,
        parent=f"beit3_{preset}_{origin}patch16_224",
        trained_on=seen + data,
        note=f"{note}; fine-tuned on {', '.join(data)}",
        published=tuple(
            PublishedScore(task, split, metric, value)
            for (split, metric), value in zip(_METRICS[task], scores, strict=False)
        ),
    )


WEIGHTS: tuple[Weight, ...] = (
    *(_pretrained(*row) for row in _PRETRAINED_FILES),
    *(_fine_tuned(*row) for row in _FINE_TUNED_FILES),
    Weight("beit3.spm", TOKENIZER_FILE, "tokenizer", note="SentencePiece model shared by all released weights"),
)
"""Every released file, in the order of the official README."""

_BY_KEY = {key: weight for weight in WEIGHTS for key in (weight.name, weight.file)}


def find_weight(name_or_filename: str | Path) -> Weight | None:
    """The record of a released file by registry name, file name or path; None for any other file."""
    return _BY_KEY.get(Path(name_or_filename).name)


def get_weight(name: str) -> Weight:
    """The record of a released file that must exist.

    Raises:
        BenchError: no released file is called so; names the nearest.
    """
    weight = find_weight(name)
    if weight is None:
        near = difflib.get_close_matches(name, [w.name for w in WEIGHTS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see: beit3-bench models"
        raise BenchError(f"no released file is called {name!r}; {hint}")
    return weight


# ---- pinned hashes -------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where this user's pins live: ``BEIT3_BENCH_CACHE``, or ``~/.cache/beit3-bench``.

    Raises:
        BenchError: neither is there: no home folder is known, as for the unknown users of a container.
    """
    chosen = os.environ.get("BEIT3_BENCH_CACHE")
    if chosen:
        return Path(chosen)
    try:
        home = Path() if os.environ.get("HOME") == "" else Path.home()
    except RuntimeError:
        home = Path()
    if not home.is_absolute():
        raise BenchError(
            "no home folder is known to keep pinned hashes in; set HOME, or BEIT3_BENCH_CACHE to a writable folder"
        )
    return home / ".cache" / "beit3-bench"


def pins_file() -> Path:
    """The json file of pinned hashes: ``{name: sha256}``."""
    return cache_folder() / "pins.json"


def read_pins() -> dict[str, str]:
    """Pinned hashes by registry name.

    Raises:
        BenchError: the file is damaged.
    """
    path = pins_file()
    try:
        pins = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BenchError(f"{path}: cannot be read as JSON ({error}); mend it, or delete it to pin anew") from error
    if not isinstance(pins, dict):
        raise BenchError(f"{path}: expected an object of name: sha256; mend it, or delete it to pin anew")
    for name, value in pins.items():
        if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
            raise BenchError(
                f"{path}: {name!r} is not a sha256 of 64 hex digits; mend it, or delete the entry to pin anew"
            )
    return pins


def sha256_of(path: str | Path) -> str:
    """Hex sha256 of a file.

    Raises:
        BenchError: the file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise BenchError(f"{path}: file not found; check the path, or get it with: beit3-bench download") from error
    except OSError as error:
        raise BenchError(f"{path}: cannot be read ({error.strerror}); check that it is a readable file") from error


def pin_or_check(path: str | Path, name: str, sha256: str | None = None) -> str:
    """Pin the hash of a released file when it is first seen, compare with the pin afterwards.

    Args:
        path: the file.
        name: its registry name, the key of the pin.
        sha256: its hash, where the caller has it already.

    Returns:
        The hex sha256.

    Raises:
        BenchError: the file differs from the pinned one, or the pins cannot be read or written.
    """
    found = sha256 or sha256_of(path)
    with _locked_pins():
        pins = read_pins()
        if name not in pins:
            _write_pins({**pins, name: found})
        elif pins[name] != found:
            raise BenchError(
                f"{path}: sha256 {found[:12]}... differs from the one pinned for {name} ({pins[name][:12]}...); "
                f'download it again, or, if this file is the right one, delete the entry "{name}" from {pins_file()}'
            )
    return found


def _not_writable(error: OSError) -> BenchError:
    return BenchError(
        f"{cache_folder()}: cannot keep pinned hashes here ({error.strerror}); "
        "set BEIT3_BENCH_CACHE to a writable folder"
    )


@contextlib.contextmanager
def _locked_pins() -> Iterator[None]:
    """Processes that pin at the same time take turns, so that no pin is lost."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        lock = open(cache_folder() / "pins.lock", "a", opener=_without_links)  # noqa: SIM115
    except OSError as error:
        raise _not_writable(error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _write_pins(pins: dict[str, str]) -> None:
    try:
        write_atomic(pins_file(), (json.dumps(pins, indent=2, sort_keys=True) + "\n").encode())
    except BenchError as error:
        if isinstance(error.__cause__, OSError):
            raise _not_writable(error.__cause__) from error
        raise
