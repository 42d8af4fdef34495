"""Processes that work beside each other: what they are handed, what is told of them, and how they end."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from beit3_bench.errors import BenchError
from beit3_bench.harness.lanes import MEMORY, MOST, LaneDied, Lanes, allowed_memory, lanes_for
from beit3_bench.harness.termination import deferred, end_if_asked


def double(number: int) -> int:
    return 2 * number


def process_and_kin(_: object) -> tuple[int, str, str, bool]:
    return os.getpid(), os.environ["OMP_NUM_THREADS"], multiprocessing.get_start_method(), "torch" in sys.modules


def speak(words: list[str]) -> bool:
    for word in words:
        sys.stderr.write(word)
    print("to stdout")
    return sys.stderr.isatty()


def fail(kind: str) -> None:
    if kind == "full":
        raise OSError(28, "No space left on device", "rows")
    raise BenchError("broken")


class Stuck(Exception):
    def __init__(self, message: str):
        super().__init__(message)
        self.holds = lambda: None


def get_stuck(_: object) -> None:
    raise Stuck("no way out")


def wait_for_the_end(place: Path) -> str:
    """Work as a training does it: it leaves at the signal, where its state is kept."""
    if place.name == "short":
        place.touch()
        return "was short"
    with deferred():
        place.touch()
        while place.name == "deaf":
            time.sleep(0.01)
        while True:
            time.sleep(0.01)
            try:
                end_if_asked()
            except BaseException:
                place.with_suffix(".kept").write_text(f"{os.getpid()}\n")
                raise


def all_of(lanes, count):
    results = {}
    while len(results) < count:
        results |= dict(lanes.ended())
    return results


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never came")


@pytest.mark.parametrize(
    ("cores", "free", "lanes"),
    [(1, 99 * MEMORY, 1), (2, 99 * MEMORY, 2), (64, 99 * MEMORY, MOST), (8, 3 * MEMORY - 1, 2), (8, 0, 1)],
)
def test_as_many_as_cores_and_memory_carry(cores, free, lanes):
    assert lanes_for(cores, free) == lanes


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [({}, math.inf), ({"": "max"}, math.inf), ({"": "9000", "job/step": "max", "job": "700"}, 700)],
)
def test_memory_is_what_every_control_group_above_allows(tmp_path, limits, allowed):
    (tmp_path / "job" / "step").mkdir(parents=True)
    for name, limit in limits.items():
        (tmp_path / name / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "own").write_text("1:name=systemd:/elsewhere\n0::/job/step\n")
    assert allowed_memory(tmp_path, tmp_path / "own") == allowed
    assert allowed_memory(tmp_path, tmp_path / "none") == math.inf


def test_each_piece_of_work_is_answered_under_its_number():
    with Lanes(2, double) as lanes:
        results = {}
        for number in range(5):
            while not lanes.free:
                results |= dict(lanes.ended())
            lanes.begin(number, 10 + number, "")
        results |= all_of(lanes, 5 - len(results))
        assert not lanes.busy
    assert results == {number: 20 + 2 * number for number in range(5)}


def test_a_lane_stays_and_has_a_thread_of_its_own_before_torch_comes(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Lanes(1, process_and_kin) as lanes:
        seen = []
        for number in range(2):
            lanes.begin(number, None, "")
            seen.append(all_of(lanes, 1)[number])
    assert seen[0] == seen[1]
    pid, threads, starting, torch = seen[0]
    assert pid != os.getpid()
    assert threads == "1"
    assert starting == multiprocessing.get_start_method()  # decoding processes start as they do without lanes
    assert not torch


def test_lines_come_whole_behind_the_mark_and_nothing_draws_a_bar(capfd):
    with Lanes(1, speak) as lanes:
        lanes.begin(0, ["one ", "line\nanother\nthe ", "rest\n"], " 7 | ")
        assert all_of(lanes, 1) == {0: False}
    out, err = capfd.readouterr()
    assert out == " 7 | to stdout\n"
    assert err == " 7 | one line\n 7 | another\n 7 | the rest\n"


def test_a_line_without_an_end_is_of_the_work_that_began_it(capfd):
    with Lanes(1, speak) as lanes:
        for number, word in enumerate(["begun", "other\n"]):
            lanes.begin(number, [word], f"{number} | ")
            all_of(lanes, 1)
    assert capfd.readouterr().err == "0 | begun\n1 | other\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
def test_a_stream_that_takes_nothing_is_the_error_of_the_work():
    """And not the death of the process that does it."""
    words = [sys.executable, "-c", SPEAK]
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with open("/dev/full", "w") as full:
        told = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
    assert told.stderr.splitlines() == ["a word", "[Errno 28] No space left on device"]


SPEAK = """
import sys
from test_lanes import all_of, speak
from beit3_bench.harness.lanes import Lanes
with Lanes(1, speak) as lanes:
    lanes.begin(0, ["a word\\n"], "")
    try:
        all_of(lanes, 1)
    except OSError as error:
        sys.stderr.write(f"{error}\\n")
"""


def test_what_the_work_raises_is_raised_here():
    with Lanes(1, fail) as lanes:
        lanes.begin(0, "full", "")
        with pytest.raises(OSError, match="No space left") as raised:
            all_of(lanes, 1)
        assert raised.value.filename == "rows"
        assert "in fail" in str(raised.value.__cause__)  # the traceback, for --debug
        lanes.begin(1, "bad", "")
        with pytest.raises(BenchError, match="broken"):
            all_of(lanes, 1)


def test_what_an_error_says_comes_out_though_the_error_itself_cannot():
    with Lanes(1, get_stuck) as lanes:
        lanes.begin(0, None, "")
        with pytest.raises(RuntimeError, match="Stuck: no way out"):
            all_of(lanes, 1)


def test_a_lane_that_dies_is_noticed():
    with Lanes(2, die) as lanes:
        lanes.begin(3, signal.SIGKILL, "")
        with pytest.raises(LaneDied) as died:
            all_of(lanes, 1)
        assert (died.value.number, died.value.how) == (3, "SIGKILL")


def test_one_that_died_between_its_work_gets_no_more():
    with Lanes(1, process_and_kin) as lanes:
        lanes.begin(0, None, "")
        first = all_of(lanes, 1)[0][0]
        os.kill(first, signal.SIGKILL)
        until(lambda: not multiprocessing.active_children())
        lanes.begin(1, None, "")
        assert all_of(lanes, 1)[1][0] != first


def die(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def test_those_that_are_stopped_keep_what_they_can(tmp_path):
    with Lanes(3, wait_for_the_end) as lanes:
        for number, name in enumerate(("one", "two", "short")):
            lanes.begin(number, tmp_path / name, "")
        until(lambda: len(list(tmp_path.iterdir())) == 3)
        time.sleep(0.2)
        assert dict(lanes.stop()) == {2: "was short"}
        assert not lanes.busy
    assert sorted(path.name for path in tmp_path.glob("*.kept")) == ["one.kept", "two.kept"]


def test_one_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("beit3_bench.harness.lanes.PATIENCE", 0.2)
    with Lanes(1, wait_for_the_end) as lanes:
        lanes.begin(0, tmp_path / "deaf", "")
        until((tmp_path / "deaf").exists)
        assert dict(lanes.stop()) == {}
        assert lanes.busy == 1
    assert not multiprocessing.active_children()


def test_where_the_parent_is_killed_its_lanes_end_and_keep_what_they_can(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from test_lanes import wait_for_the_end
        from beit3_bench.harness.lanes import Lanes

        if __name__ == "__main__":
            with Lanes(1, wait_for_the_end) as lanes:
                lanes.begin(0, Path(sys.argv[1]), "")
                while True:
                    list(lanes.ended())
        """
    )
    (tmp_path / "parent.py").write_text(script)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py", tmp_path / "work"], env={**os.environ, "PYTHONPATH": paths}
    )
    until((tmp_path / "work").exists)
    parent.kill()
    assert parent.wait() == -signal.SIGKILL
    kept = tmp_path / "work.kept"
    until(lambda: kept.exists() and kept.read_text().endswith("\n"))
    lane = int(kept.read_text())
    assert lane not in (os.getpid(), parent.pid)
    until(lambda: has_ended(lane))
    assert has_ended(lane)


def has_ended(pid: int) -> bool:
    """Whether a process runs no more, be it that nobody has asked for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
