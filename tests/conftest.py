"""Shared fixtures. Golden data is found by tests/goldens.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import beit3_bench.harness  # noqa: F401  (before torch: it makes matrix products independent of the number of rows)

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """The mini world and random tiny checkpoints (see tests/native.py)."""
    from native import make_native

    return make_native(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="session", autouse=True)
def no_settings_of_ones_own(tmp_path_factory):
    """Who runs the tests may have a config.toml and pinned hashes of files; neither is a matter of theirs, nor are the tests' of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEIT3_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("own")))
        yield
