"""Which world a data set is of."""

from __future__ import annotations

from pathlib import Path

TINY_WORLD = "tiny_world.json"


def world_of(data_root: Path) -> str:
    """``"tiny"`` for data inside a folder that `beit3-bench data tiny` wrote, else ``"real"``."""
    root = data_root.resolve()
    return "tiny" if any((folder / TINY_WORLD).is_file() for folder in (root, *root.parents)) else "real"
