"""Locks between processes: who waits, who is refused, and what a link in a lock's place does."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

import beit3_bench
from beit3_bench.locks import Held, hold, in_turn, is_held

TREE = Path(beit3_bench.__file__).resolve().parent.parent


def test_who_comes_second_waits_for_its_turn(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []
    inside, may_leave = threading.Event(), threading.Event()

    def first() -> None:
        with in_turn(path):
            inside.set()
            assert may_leave.wait(30)
            order.append("first")

    def second() -> None:
        with in_turn(path):
            order.append("second")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert inside.wait(30)
    threads.append(threading.Thread(target=second))
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive(), "it went on beside the holder"
    may_leave.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "second"]


def test_a_turn_ends_with_an_error_inside(tmp_path: Path) -> None:
    with pytest.raises(KeyError), in_turn(tmp_path / "lock"):
        raise KeyError
    assert not is_held(tmp_path / "lock")


@pytest.mark.parametrize(("make", "code"), [("link", errno.ELOOP), ("pipe", errno.ENXIO)])
def test_what_stands_in_the_place_of_a_lock_is_left_alone(tmp_path: Path, make: str, code: int) -> None:
    path, other = tmp_path / "lock", tmp_path / "other"
    if make == "link":
        path.symlink_to(other)
    else:
        os.mkfifo(path)
    with pytest.raises(OSError, match=str(path)) as caught, in_turn(path):
        pass
    assert caught.value.errno == code
    assert not other.exists()


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    file = hold(tmp_path / "lock")
    with pytest.raises(Held, match=f"process {os.getpid()} on "):
        hold(tmp_path / "lock")
    assert is_held(tmp_path / "lock")
    os.close(file)
    os.close(hold(tmp_path / "lock"))


def test_locks_are_taken_in_one_place() -> None:
    folders = ("beit3_bench", "backbones", "tasks", "harness")
    files = [path for folder in folders for path in (TREE / folder).rglob("*.py")]
    users = {path.relative_to(TREE).as_posix() for path in files if "import fcntl" in path.read_text(encoding="utf-8")}
    assert users == {"beit3_bench/locks.py"}
