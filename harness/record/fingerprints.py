"""Hashes that say whether two runs saw the same thing."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.archives.members import member_at, size_of
from beit3_bench.backbones.pins import sha256_of
from beit3_bench.garbage import collection_paused
from beit3_bench.harness.record.provenance import cores
from beit3_bench.harness.record.schema import CODE as CODE
from beit3_bench.tasks.contract import Example
from beit3_bench.tasks.quick_json import canonical

if TYPE_CHECKING:
    import torch

IMAGES_AND_LABELS = "images and labels"
"""Fingerprint of the data without its texts, of a task whose texts are worded by the model's family."""
PACKAGES = ("beit3_bench.harness", "beit3_bench.tasks", "beit3_bench.backbones")
SOURCE_SUFFIXES = (".py", ".toml", ".json")


def digest(value: Any) -> str:
    """sha256 (hex) of a JSON-like value, independent of key order."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: Any) -> str:
    quick = canonical(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain) if quick is None else quick


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return str(value)


def folder_of_data(data_root: Path) -> str:
    """What paths of images begin with: the folder of the data, or the one that a file of one's own lies in, and a slash."""
    folder = data_root.parent if data_root.is_file() else data_root
    return str(folder).rstrip("/") + "/"


@collection_paused()
def data_fingerprint(
    examples: Sequence[Example], data_root: Path, contents: bool = True, as_they_lie: bool = False
) -> str:
    """Hash over what the examples say, the contents of their truth files and the names and sizes of their image files, in
    order of id.

    Neither the folder above the data nor the container of the images enters: a moved or packed data set is the same data set.

    Args:
        contents: False = without the contents of truth files, as the first edition made it.
        as_they_lie: with the paths of images in place of their names (`Example.names`), as earlier versions made it.

    Raises:
        BenchError: a truth file that cannot be read.
    """
    sizes: dict[str, int] = {}
    for example in examples:
        for path in example.images:
            if path not in sizes:
                sizes[path] = size_of(path)
    truth = files_sha256(path for example in examples for path in example.truth_files) if contents else {}
    prefix = json.dumps(folder_of_data(data_root))[1:-1]
    running = hashlib.sha256()
    for example in sorted(examples, key=lambda e: e.id):
        names = example.images if as_they_lie else example.image_names
        images = [[name, sizes[path]] for name, path in zip(names, example.images, strict=True)]
        record = [example.id, example.kind, images, example.text, example.cluster, example.target, example.meta]
        record += [truth[path] for path in example.truth_files] if contents else []
        running.update(_canonical(record).replace(prefix, "").encode())
        running.update(b"\n")
    return running.hexdigest()


def same_data(fingerprints: Mapping[str, Any], examples: Sequence[Example], data_root: Path) -> bool:
    """Whether the examples are those of a run with these fingerprints, of this edition or the first."""
    seen, contents = fingerprints.get("data"), CODE in fingerprints
    if seen == data_fingerprint(examples, data_root, contents):
        return True
    return any(e.names for e in examples) and seen == data_fingerprint(examples, data_root, contents, as_they_lie=True)


def files_sha256(paths: Iterable[str | Path]) -> dict[Any, str]:
    """Path -> SHA-256 (hex) of every distinct file, hashed in threads.

    Raises:
        BenchError: a file that is missing or cannot be read.
    """

    def one(path: str | Path) -> str:
        member = member_at(path)
        return sha256_of(path) if member is None else hashlib.sha256(member.read()).hexdigest()

    distinct = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(cores()) as pool:
        return dict(zip(distinct, pool.map(one, distinct), strict=True))


def option_fingerprints(options: Mapping[str, Any]) -> dict[str, str]:
    """``options``: digest of a task's options; ``-o NAME``: SHA-256 of each file among them, wherever it lies."""
    files = {name: value for name, value in options.items() if names_file(value)}
    return {
        "options": digest({name: value for name, value in options.items() if name not in files}),
        **{f"-o {name}": sha256_of(path) for name, path in files.items()},
    }


def earlier_option_digests(options: Any, resolved: Mapping[str, Any] | None = None) -> set[str]:
    """Digests of a task's options as versions made them that did not have all of these options yet: one that did not exist
    meant what is its default now.

    resolved: options as they are in force, where their default is the model's.
    """
    default = [f.name for f in dataclasses.fields(options) if vars(options)[f.name] == f.default]
    values = {**vars(options), **(resolved or {})}
    left_out = [set(names) for count in range(len(default) + 1) for names in combinations(default, count)]
    return {digest({name: value for name, value in values.items() if name not in names}) for names in left_out}


def names_file(value: Any) -> bool:
    """Whether the value of an option is a file: a path, or a text that ends like a file name and is one."""
    return isinstance(value, Path) or (isinstance(value, str) and Path(value).suffix != "" and Path(value).is_file())


@lru_cache
def _package_digest() -> str:
    running = hashlib.sha256()
    for package in PACKAGES:
        (root,) = (Path(place) for place in importlib.import_module(package).__path__)
        files = (p for p in root.rglob("*") if p.suffix in SOURCE_SUFFIXES and not p.name.startswith("."))
        for name, path in sorted((p.relative_to(root).as_posix(), p) for p in files):
            running.update(f"{package}/{name} {sha256_of(path)}\n".encode())
    return running.hexdigest()


def source_fingerprint(*others: type) -> str:
    """SHA-256 over the package's source files, and over those of classes that come from elsewhere."""
    files = set()
    for cls in others:
        if not cls.__module__.startswith(tuple(f"{package}." for package in PACKAGES)):
            try:
                files.add(inspect.getsourcefile(cls))
            except (TypeError, OSError):  # made at run time, or built in
                continue
    more = sorted(sha256_of(path) for path in files if path and os.path.isfile(path))
    return digest([_package_digest(), *more]) if more else _package_digest()


def weights_sha256(model: torch.nn.Module) -> str:
    """SHA-256 over all tensors of a model: names, types, shapes and bytes.

    Not the checkpoint file's: one file gives other weights with `--allow-missing` (random ones, by seed) and at another
    image size (interpolated positions), and a copy in another format gives the same.
    """
    import torch

    def one(item: tuple[str, Any]) -> bytes:
        name, tensor = item
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        head = f"{name} {tensor.dtype} {list(tensor.shape)} "
        return hashlib.sha256(head.encode() + hashlib.sha256(flat.data).digest()).digest()

    with ThreadPoolExecutor(cores()) as pool:
        return hashlib.sha256(b"".join(pool.map(one, sorted(model.state_dict().items())))).hexdigest()


def short(fingerprints: Mapping[str, str]) -> str:
    """Eight hex digits that stand for all fingerprints of a run; part of its folder's name."""
    return digest(dict(fingerprints))[:8]
