"""Both parts of another package, as entry points would announce them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from beit3_bench.backbones import registry as families
from beit3_bench.backbones import released
from beit3_bench.tasks import registry as tasks

CACHES: tuple[Any, ...] = (
    families.family_locations,
    families.get_family,
    released.released_files,
    released._by_key,
    tasks.task_locations,
)
PACKAGE = {
    families.ENTRY_POINT_GROUP: {"outside": "outside_family:OutsideFamily"},
    tasks.ENTRY_POINT_GROUP: {"outside-task": "outside_task:Swatches"},
}


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes entry points known: ``announce(group, name=place)``."""
    known: dict[str, dict[str, str]] = {group: {} for group in PACKAGE}

    def points(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, place, group) for name, place in known.get(group, {}).items()]

    def forget() -> None:
        for cached in CACHES:
            cached.cache_clear()

    def add(group: str, **places: str) -> None:
        known[group] |= places
        forget()

    for registry in (families, tasks):
        monkeypatch.setattr(registry, "entry_points", points)
    forget()
    yield add
    monkeypatch.undo()
    forget()


@pytest.fixture
def installed(announce: Callable[..., None]) -> None:
    """The package with the family and the task is installed."""
    for group, places in PACKAGE.items():
        announce(group, **places)
