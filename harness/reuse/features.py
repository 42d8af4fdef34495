"""What a run takes from the feature store, and what it puts there.

The rows of a run come out the same with and without a store; what was served stands in the run folder like any other row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.archives.members import stamp_of
from beit3_bench.backbones.family import Model
from beit3_bench.backbones.image_hashes import DIGITS, sha256_of_image
from beit3_bench.errors import BenchError
from beit3_bench.harness.console import echo
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.record.fingerprints import source_fingerprint, weights_sha256
from beit3_bench.harness.record.provenance import cores, package_version
from beit3_bench.harness.record.rows import with_images
from beit3_bench.harness.record.shards import IMAGES
from beit3_bench.harness.reuse.feature_store import FeatureSpace
from beit3_bench.tasks.contract import Example, Row, Task

if TYPE_CHECKING:
    import torch

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


def space_facts(task: Task, model: Model, device: torch.device, compute: Compute) -> dict[str, dict[str, Any]]:
    """Kind of input -> everything that its embeddings depend on beside the input itself.

    The code is named by the classes that compute (shared by all tasks) and the package's source; device, number
    type, compilation and torch's version are there because a result states them about all its rows.
    """
    import torch

    ability, reader = type(model.ability), model.ability.reader
    common = {
        "weights": weights_sha256(model.module) if model.module is not None else model.identity.weights,
        "network": _name_of(type(model.module)),
        "config": dict(model.card.settings),
        "output": task.feature,
        "code": [_name_of(type(reader)), _name_of(ability)],
        "version": package_version(),
        "source": source_fingerprint(type(task), ability, type(reader), type(model.module)),
        "torch": torch.__version__,
        "device": device.type,
        "dtype": compute.dtype,
        "compile": compute.compile,
    }
    facts = {}
    if reader.transform is not None:
        seen = {"pixels": reader.transform.pixel_facts(), "canary": model.identity.pixels}
        facts["image"] = {**common, "input": "image", **seen}
    if model.identity.tokens is not None:
        facts["text"] = {**common, "input": "text", "tokenizer": model.identity.tokens}
    return facts


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class Features:
    """The feature store as one process of a run sees it.

    Served are examples of one image, or of a text alone, of a task that names its `Task.feature`.
    """

    def __init__(
        self,
        root: str | Path,
        task: Task,
        model: Model,
        device: torch.device,
        compute: Compute | None = None,
    ):
        """Raises: BenchError: ``root`` cannot be a folder here."""
        assert task.feature is not None
        self.name, self.task, self.reader = task.feature, task, model.ability.reader
        facts = space_facts(task, model, device, compute or Compute())
        self.spaces = {kind: FeatureSpace(root, known) for kind, known in facts.items()}
        self.keys: dict[str, Key] = {}
        self._warned = False

    def serve(self, examples: Sequence[Example], sink: RowSink) -> int:
        """Store the rows of those examples that have a vector; the keys of the others are remembered for `keep`.

        Returns:
            How many were served.
        """
        keys = {i: key for i, key in self.example_keys(examples).items() if key.kind in self.spaces}
        rows: list[Row] = []
        for kind, space in self.spaces.items():
            wanted = {i: key.digest for i, key in keys.items() if key.kind == kind}
            vectors = space.find(wanted.values()) if wanted else {}
            rows += [{"id": i, self.name: vectors[digest]} for i, digest in wanted.items() if digest in vectors]
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

    def example_keys(self, examples: Sequence[Example]) -> dict[str, Key]:
        """The keys of all examples with one image and no text, or with a text and no image; files are hashed in threads."""
        hashed = file_keys({e.images[0] for e in examples if _kind(e) == "image"})
        keys: dict[str, Key] = {}
        for example in examples:
            key = None
            if _kind(example) == "image":
                key = hashed[example.images[0]]
            elif _kind(example) == "text":
                digest = self.reader.text_key(self.task.item(example))
                key = None if digest is None else Key("text", digest)
            if key is not None:
                keys[example.id] = key
        return keys


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


def file_keys(paths: Collection[str]) -> dict[str, Key | None]:
    """The keys of image files, hashed in threads; None of a file that cannot be read."""
    with ThreadPoolExecutor(cores()) as pool:
        return dict(zip(paths, pool.map(_file_key, paths), strict=True))


def _kind(example: Example) -> str | None:
    if example.text is not None:
        return None if example.images else "text"
    return "image" if len(example.images) == 1 else None


def _file_key(path: str) -> Key | None:
    stamp, digest = _stamp(path), sha256_of_image(path)
    return (
        None if digest is None else Key("image", digest, path, stamp or (0, 0))
    )  # None: the engine says what is wrong


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        return stamp_of(path)
    except (OSError, BenchError):
        return None
