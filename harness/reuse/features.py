"""What a run takes from the feature store, and what it puts there.

The rows of a run come out the same with and without a store; what was served stands in the run folder like any other row.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.image_hashes import DIGITS
from beit3_bench.harness.console import echo
from beit3_bench.harness.record.fingerprints import source_fingerprint, weights_sha256
from beit3_bench.harness.record.provenance import cores, package_version
from beit3_bench.harness.record.rows import IMAGES, with_images
from beit3_bench.harness.reuse.feature_store import FeatureSpace
from beit3_bench.tasks.contract import Example, Row, Task

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.beit3.checkpoint import LoadedModel
    from beit3_bench.harness.engine.predict import RowSink

_ROWS = 1024  # served rows per commit to the run folder


@dataclass(frozen=True)
class Key:
    """Input of an embedding: its kind, its SHA-256, and for a file its path, size and time when it was hashed."""

    kind: str
    digest: bytes
    path: str | None = None
    stamp: tuple[int, int] = (0, 0)

    def still_true(self) -> bool:
        """Whether the file is, as far as its size and time tell, the one that was hashed."""
        return self.path is None or _stamp(self.path) == self.stamp


def space_facts(
    task: Task, loaded: LoadedModel, device: torch.device, dtype: str, compile: str
) -> dict[str, dict[str, Any]]:
    """Kind of input -> everything that its embeddings depend on beside the input itself.

    The code is named by the methods that compute (shared by all dual encoders) and the package's source; device, number
    type, compilation and torch's version are there because a result states them about all its rows.
    """
    import torch

    network = type(loaded.model)
    common = {
        "weights": weights_sha256(loaded.model),
        "network": f"{network.__module__}.{network.__qualname__}",
        "config": loaded.config.to_dict(),
        "output": task.feature,
        "code": [f"{step.__module__}.{step.__qualname__}" for step in (type(task).collate, type(task).predict)],
        "version": package_version(),
        "source": source_fingerprint(type(task), network),
        "torch": torch.__version__,
        "device": device.type,
        "dtype": dtype,
        "compile": compile,
    }
    facts = {}
    if hasattr(loaded.preprocessing, "pixel_facts"):
        seen = {"pixels": loaded.preprocessing.pixel_facts(), "canary": loaded.preprocessing.canary_hash()}
        facts["image"] = {**common, "input": "image", **seen}
    if task.tokenizer is not None:
        facts["text"] = {**common, "input": "text", "tokenizer": task.tokenizer.fingerprint}
    return facts


class Features:
    """The feature store as one process of a run sees it.

    Served are examples of one image, or of a text alone, of a task that names its `Task.feature`.
    """

    def __init__(
        self,
        root: str | Path,
        task: Task,
        loaded: LoadedModel,
        device: torch.device,
        dtype: str = "fp32",
        compile: str = "off",
    ):
        """Raises: BenchError: ``root`` cannot be a folder here."""
        assert task.feature is not None
        self.name = task.feature
        facts = space_facts(task, loaded, device, dtype, compile)
        self.spaces = {kind: FeatureSpace(root, known) for kind, known in facts.items()}
        self.keys: dict[str, Key] = {}
        self._warned = False

    def serve(self, examples: Sequence[Example], sink: RowSink) -> int:
        """Store the rows of those examples that have a vector; the keys of the others are remembered for `keep`.

        Returns:
            How many were served.
        """
        keys = {i: key for i, key in example_keys(examples).items() if key.kind in self.spaces}
        rows: list[Row] = []
        for kind, space in self.spaces.items():
            wanted = {i: key.digest for i, key in keys.items() if key.kind == kind}
            found = space.find(wanted.values()) if wanted else {}
            rows += [{"id": i, self.name: found[digest]} for i, digest in wanted.items() if digest in found]
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            hashes = {r["id"]: [keys[r["id"]].digest.hex()[:DIGITS]] for r in part if keys[r["id"]].path}
            sink.append(with_images(part, hashes))
        served = {row["id"] for row in rows}
        self.keys.update((i, key) for i, key in keys.items() if i not in served)
        return len(rows)

    def keep(self, rows: Iterable[Row]) -> None:
        """Store the vectors of rows that were computed, unless the image file has changed since it was hashed."""
        new: dict[str, dict[bytes, np.ndarray]] = {kind: {} for kind in self.spaces}
        for row in rows:
            key = self.keys.get(row["id"])
            vector = row.get(self.name)
            if key is None or row.keys() - {IMAGES} != {"id", self.name} or not isinstance(vector, np.ndarray):
                continue
            if vector.ndim == 1 and vector.dtype == np.float32 and key.still_true():
                new[key.kind][key.digest] = vector
        for kind, vectors in new.items():
            space = self.spaces[kind]
            space.append(vectors)
            if space.trouble is not None and not self._warned:
                self._warned = True
                echo(f"warning: {space.trouble}", err=True)

    def close(self) -> None:
        for space in self.spaces.values():
            space.close()


class KeepingSink:
    """A run folder whose new rows go to the feature store, too: first there, where they count."""

    def __init__(self, sink: RowSink, features: Features):
        self.sink, self.features = sink, features

    def done(self) -> set[str]:
        return self.sink.done()

    def append(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self.sink.append(rows)
        self.features.keep(rows)


def example_keys(examples: Sequence[Example]) -> dict[str, Key]:
    """The keys of all examples with one image and no text, or with a text and no image; files are hashed in threads."""
    files = {e.images[0] for e in examples if _kind(e) == "image"}
    with ThreadPoolExecutor(cores()) as pool:
        hashed = dict(zip(files, pool.map(_file_key, files), strict=True))
    keys: dict[str, Key] = {}
    for example in examples:
        kind = _kind(example)
        if kind == "image":
            key = hashed[example.images[0]]
        else:
            ids = np.array(example.token_ids, dtype="<i8") if kind == "text" else None
            key = None if ids is None else Key("text", hashlib.sha256(ids.tobytes()).digest())
        if key is not None:
            keys[example.id] = key
    return keys


def _kind(example: Example) -> str | None:
    if example.token_ids is not None:
        return None if example.images else "text"
    return "image" if len(example.images) == 1 and example.text is None else None


def _file_key(path: str) -> Key | None:
    try:
        stamp = _stamp(path)
        with open(path, "rb") as file:
            return Key("image", hashlib.file_digest(file, "sha256").digest(), path, stamp or (0, 0))
    except OSError:
        return None  # the engine will say what is wrong with it


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns
