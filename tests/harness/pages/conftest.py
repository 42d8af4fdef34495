"""The mini world, and runs over it, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from noisy import make_run

from beit3_bench.tasks.tinyworld import write_tiny_world

Runs = Callable[..., Path]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "world"
    write_tiny_world(folder, size="mini")
    return folder


@pytest.fixture(scope="session")
def runs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """``runs("vqav2")``, ``runs("vqav2", "b")``: a finished run of a task by one of two models that are wrong now and then."""
    made: dict[tuple[str, str], Path] = {}
    folder = tmp_path_factory.mktemp("runs")

    def run(task: str, name: str = "a") -> Path:
        if (task, name) not in made:
            with pytest.MonkeyPatch.context() as patch:  # METEOR and SPICE start Java, and are no matter of pages
                patch.setattr("beit3_bench.tasks.metrics.captions.PROGRAMS", {})
                made[task, name] = make_run(world, task, folder / f"{task}-{name}", seed=ord(name), wrong=0.4)
        return made[task, name]

    return run
