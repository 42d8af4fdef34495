"""Tiny models of open_clip and the mini world, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("open_clip")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    from tiny_openclip import make_zoo

    return make_zoo(tmp_path_factory.mktemp("openclip"))


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    from beit3_bench.tasks.tinyworld import write_tiny_world

    folder = tmp_path_factory.mktemp("world")
    write_tiny_world(folder, size="mini")
    return folder


@pytest.fixture(autouse=True)
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEIT3_BENCH_CACHE", str(tmp_path / "pins"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every socket that is opened is a failure."""
    import socket

    def refuse(*arguments, **settings):
        raise AssertionError("a connection was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
