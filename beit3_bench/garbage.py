"""Python's search for cycles, paused where millions of objects are made that stay."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Let no cycles be searched for: reading a file of millions of records, every search goes through all of them again, and takes more
    than half of the time. Memory is freed by counts of references, as ever.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
