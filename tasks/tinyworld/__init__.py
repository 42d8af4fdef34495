"""The tiny world: a small synthetic stand-in for every dataset, in the original layouts, written by `write_tiny_world`.

Importing this package is cheap: numpy, Pillow and sentencepiece are loaded when a world is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beit3_bench.tasks.tinyworld.world import write_tiny_world

__all__ = ["write_tiny_world"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from beit3_bench.tasks.tinyworld import world

        return getattr(world, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
