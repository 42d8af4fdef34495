"""A folder of one's own for each test, and no settings but those that the test writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from native import Native


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with nothing in it; the user's own folder for configuration is ``own`` beside it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def weights(native: Native, here: Path) -> Path:
    """A folder of checkpoints of several tasks, each under the name of its task."""
    folder = here / "weights"
    folder.mkdir()
    for task in ("nlvr2", "imagenet-linear", "coco-retrieval"):
        (folder / f"{task}.pth").symlink_to(native.checkpoint(task))
    (folder / "beit3.spm").symlink_to(native.checkpoints / "beit3.spm")
    return folder


@pytest.fixture
def two_lines(native: Native, weights: Path, here: Path) -> SimpleNamespace:
    """A beit3-bench.toml of two lines in the current folder; ``file`` and ``world``."""
    file = here / "beit3-bench.toml"
    file.write_text(f'data = "{native.world}"\ncheckpoints = "weights"\n')
    return SimpleNamespace(file=file, world=native.world)
