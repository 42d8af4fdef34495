"""What the released data sets hold: files, checksums, counts and ids per split; one TOML file per task, with its sources.

A count or checksum that no source states is not in these files.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Need:
    """A file or folder that splits need.

    path: as it is called below one of ``folders`` of the data root.
    git_blob: git's object name of the official file: SHA-1 of ``"blob <bytes>\\0"`` and the content; "" where the
        authors publish the file outside of git.
    """

    path: str
    folders: tuple[str, ...] = (".",)
    splits: tuple[str, ...] = ()
    git_blob: str = ""

    def find(self, root: Path) -> Path | None:
        """Where it lies, or None."""
        return next((place for f in self.folders if (place := root / f / self.path).exists()), None)


@dataclass(frozen=True)
class Counts:
    """What a split of the released data holds; None where no source states it, or where there is no such thing.

    samples: examples.  images: distinct image files.  texts: sentences of a retrieval split.
    references: captions of all images, or answers of all questions.
    classes: classes that have images.  objects: annotated objects of all images, crowds left out.
    """

    samples: int | None = None
    images: int | None = None
    texts: int | None = None
    references: int | None = None
    classes: int | None = None
    objects: int | None = None

    def stated(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Expected:
    """needs: files and folders.  splits: counts by split.

    references_per_sample: fewest and most captions of an image (answers of a question), where the data has any.
    within: splits that are a part of another one.
    unique_ids: whether an id means the same sample in every split (nocaps and ImageNet count anew).
    karpathy: name of the Karpathy split file that the task reads.
    training_images: images of the splits of that file that are only for training.
    ids: `digest_of_ids` of the examples with images, by split; several where ids can be written in several ways.
    id_form: what of an example's id is compared: the groups of this regular expression; "" = the whole id.
    """

    needs: tuple[Need, ...] = ()
    splits: Mapping[str, Counts] = field(default_factory=dict)
    references_per_sample: tuple[int, int] | None = None
    within: Mapping[str, str] = field(default_factory=dict)
    karpathy: str = ""
    unique_ids: bool = False
    ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    id_form: str = ""
    training_images: Mapping[str, int] = field(default_factory=dict)


@cache
def read_expected(task: str) -> Expected:
    """What is expected of a task's data; nothing for a task of another package."""
    resource = files("beit3_bench.tasks.expected").joinpath(f"{task}.toml")
    if not re.fullmatch(r"[\w-]+", task) or not resource.is_file():  # the name may come from a result file
        return Expected()
    table: dict[str, Any] = tomllib.loads(resource.read_text(encoding="utf-8"))
    needs = tuple(
        Need(need["path"], tuple(need.get("folders", ["."])), tuple(need["splits"]), need.get("git_blob", ""))
        for need in table.get("need", ())
    )
    per_sample = table.get("references_per_sample")
    return Expected(
        needs,
        {split: Counts(**counts) for split, counts in table.get("splits", {}).items()},
        tuple(per_sample) if per_sample else None,
        table.get("within", {}),
        table.get("karpathy", ""),
        table.get("unique_ids", False),
        {split: (ids,) if isinstance(ids, str) else tuple(ids) for split, ids in table.get("ids", {}).items()},
        table.get("id_form", ""),
        table.get("training_images", {}),
    )


def digest_of_ids(ids: Iterable[str], form: str = "") -> str:
    """sha256 (hex) of sorted ids, a line feed between; ``form`` as `Expected.id_form`."""
    if form:
        pattern = re.compile(form)
        matches = [(name, pattern.fullmatch(name)) for name in ids]
        ids = ("/".join(filter(None, match.groups())) if match else name for name, match in matches)
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest()


def git_blobs(path: Path) -> tuple[str, str]:
    """Git's object name (hex SHA-1) of a file, and that of its text without byte order mark and with line feeds alone.

    Raises:
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    return _git_blob(content), _git_blob(content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n"))


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
