"""What the released data sets hold: files, checksums, counts per split; one TOML file per task, with its sources.

A count or checksum that no source states is not in these files.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
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
    """What a split of the released data holds; None where no source states it.

    samples: examples.  images: distinct image files.  texts: sentences of a retrieval split.
    references: captions of all images, or answers of all questions.
    """

    samples: int | None = None
    images: int | None = None
    texts: int | None = None
    references: int | None = None

    def stated(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Expected:
    """needs: files and folders.  splits: counts by split.

    references_per_sample: fewest and most captions of an image (answers of a question), where the data has any.
    within: splits that are a part of another one.
    unique_ids: whether an id means the same sample in every split (nocaps and ImageNet count anew).
    karpathy: name of the Karpathy split file that the task reads; its counts are in `tasks.karpathy`.
    """

    needs: tuple[Need, ...] = ()
    splits: Mapping[str, Counts] = field(default_factory=dict)
    references_per_sample: tuple[int, int] | None = None
    within: Mapping[str, str] = field(default_factory=dict)
    karpathy: str = ""
    unique_ids: bool = False


@cache
def read_expected(task: str) -> Expected:
    """What is expected of a task's data; nothing for a task of another package."""
    resource = files("beit3_bench.tasks.expected").joinpath(f"{task}.toml")
    if not resource.is_file():
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
    )
