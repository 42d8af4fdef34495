"""Without a network, that is said within seconds."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beit3_bench import connections
from beit3_bench.connections import Unreachable, connect
from beit3_bench.download import announced_size, download
from beit3_bench.errors import BenchError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(connections, "LEAST", 0.05)


def not_reached(url: str, target: Path, match: str) -> float:
    begun = time.monotonic()
    with pytest.raises(BenchError, match=f"{url}: not reached .*{match}.*--base-url") as caught:
        download(url, target, pause=0.01)
    assert "\n" not in str(caught.value)
    assert not list(target.parent.iterdir()), "something was left"
    with pytest.raises(BenchError, match="not reached"):
        announced_size(url)
    return time.monotonic() - begun


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_that_nobody_resolves_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    end = threading.Event()

    def wait(*words: object, **named: object) -> list:
        end.wait(20)
        raise OSError("too late")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    assert not_reached(f"{scheme}://example.org/f", tmp_path / "f", "was not found within") < 3
    end.set()


def test_a_name_that_does_not_exist_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*words: object, **named: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert not_reached("https://example.org/f", tmp_path / "f", "Name or service not known") < 3


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Listens, and never accepts: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener
        for one in waiting:
            one.close()


def test_an_address_that_does_not_answer_is_given_up(tmp_path: Path, silent: socket.socket) -> None:
    host, port = silent.getsockname()
    assert not_reached(f"http://{host}:{port}/f", tmp_path / "f", "127.0.0.1: timed out") < 3


def test_a_handshake_that_is_not_answered_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(9)
        port = listener.getsockname()[1]
        assert not_reached(f"https://127.0.0.1:{port}/f", tmp_path / "f", "timed out") < 3


def test_a_proxy_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert not_reached("http://example.org/f", tmp_path / "f", "127.0.0.1: Connection refused") < 3


def test_the_first_address_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch, silent: socket.socket) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        places = [("127.0.0.1", 9), silent.getsockname(), listener.getsockname()]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **named: found)
        with connect(("example.org", 80), 2.0) as stream:
            assert stream.getpeername() == listener.getsockname()


def test_a_name_that_is_none_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        connect(("x" * 300, 80), 1.0)
