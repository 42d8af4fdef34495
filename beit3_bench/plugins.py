"""What other packages add through entry points."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint

from beit3_bench.errors import BenchError


def add_plugins(known: dict[str, str], entries: Iterable[EntryPoint], what: str) -> None:
    """Add entry points to ``name -> "module:Class"``, without importing any of them.

    Args:
        what: a name stands for, in messages (``"task"``).

    Raises:
        BenchError: two sources claim one name; names both.
    """
    for entry in sorted(entries, key=lambda e: (e.name, e.value)):
        if known.setdefault(entry.name, entry.value) != entry.value:
            raise BenchError(
                f"{what} {entry.name!r} is registered twice ({known[entry.name]} and {entry.value}); "
                f"uninstall one of the packages or rename its entry point in group {entry.group}"
            )
