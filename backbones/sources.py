"""A file or a folder that may hold a model, read when it is first asked about."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beit3_bench.backbones.checkpoints import Checkpoint


class Source:
    """A file or a folder that may hold a model; read when it is first asked about.

    text: as it was named, without the family.
    path: the file, or the folder; the index file of a checkpoint in several files.
    """

    def __init__(self, text: str, path: Path):
        self.text, self.path = text, path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its tensors and what is beside them. Raises: BenchError: it cannot be read; see `checkpoints.read_checkpoint`."""
        from beit3_bench.backbones.checkpoints import read_checkpoint

        return read_checkpoint(self.path)

    def release(self) -> None:
        """Forget the tensors, once a model has its own: the file stays mapped no longer. Read again where it is asked about again."""
        self.__dict__.pop("checkpoint", None)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of its tensors, without wrappers."""
        return frozenset(self.checkpoint.tensors)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The JSON object in ``config.json`` or ``open_clip_config.json`` of a folder, or beside a file; empty where there is none."""
        from beit3_bench.files import read_limited

        folder = self.path if self.path.is_dir() else self.path.parent
        for name in ("config.json", "open_clip_config.json"):
            try:
                content = json.loads(read_limited(folder / name, 2**24))
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(content, dict):
                return content
        return {}
