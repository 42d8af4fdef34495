"""Processes beside each other, each of which does one piece of work after the other: what these import is imported once in each.

Nothing is forked, as a process that holds torch must not be. Their lines come out marked, and whole.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Generic, TypeVar

from beit3_bench.harness.termination import Terminated, heeding_sigterm

Work = TypeVar("Work")
Result = TypeVar("Result")

MEMORY = 5 << 29
"""Bytes for a lane: a training of a tiny model needs about 1.3 GiB, its decoding processes some more."""
MOST = 4
THREADS = "OMP_NUM_THREADS"
LOOKED_AT_EVERY = 0.5  # seconds
PATIENCE = 20.0  # seconds, in which a training has saved its state; batch systems kill 30 after their signal


def lanes_for(cores: int, free: float) -> int:
    """How many lanes a machine carries. free: bytes of memory."""
    return max(1, min(cores, MOST, int(free // MEMORY)))


def allowed_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes that a container or a batch system allows this process and its like (Linux control groups, version 2); infinity: any."""
    limits = [math.inf]
    with suppress(OSError, ValueError):
        name = next((line[3:] for line in own.read_text().splitlines() if line.startswith("0::")), "/")
        place = groups / name.lstrip("/")
        for folder in (place, *place.parents):
            with suppress(OSError, ValueError):  # none is set
                limits.append(int((folder / "memory.max").read_text()))
    return min(limits)


class LaneDied(Exception):
    """The process of a lane has ended without a word. number: of its work.  how: ``"exit code 1"``, ``"SIGKILL"``."""

    def __init__(self, number: int, how: str):
        super().__init__(how)
        self.number, self.how = number, how


# ---- in the lane ---------------------------------------------------------------------------------------------------------


class _Marked(io.RawIOBase):
    """A descriptor to which whole lines are written, each behind a mark. What cannot be written is not tried again."""

    def __init__(self, descriptor: int):
        self.mark = ""
        self._to = descriptor
        self._begun = b""
        self._lock = threading.RLock()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        with self._lock:
            *lines, self._begun = (self._begun + bytes(data)).split(b"\n")
            left = memoryview(b"".join(self.mark.encode() + line + b"\n" for line in lines))
            while left:
                left = left[os.write(self._to, left) :]
        return len(data)

    def end_line(self) -> None:
        """Write the line that was begun: the next is of other work."""
        if self._begun:
            with suppress(OSError):
                self.write(b"\n")


def _mark_streams() -> tuple[_Marked, _Marked]:
    """Put marked streams in the place of stdout and stderr. They are no terminal: nothing draws a bar there."""
    marked = _Marked(1), _Marked(2)
    for name, raw in zip(("stdout", "stderr"), marked, strict=True):
        encoding = getattr(sys, name).encoding
        setattr(sys, name, io.TextIOWrapper(raw, encoding, "backslashreplace", write_through=True))  # type: ignore[arg-type]
    return marked


@dataclass(frozen=True)
class _Answer(Generic[Result]):
    """What a lane says of its work; neither: it was stopped."""

    result: Result | None = None
    error: BaseException | None = None
    stopped: bool = False


def _serve(connection: Connection, do: Callable[[Work], Result], starting: str) -> None:
    """The life of a lane: work comes, until the connection is closed. starting: how its parent starts processes by default."""
    multiprocessing.set_start_method(starting, force=True)  # it stands at "spawn" here
    # A terminal sends SIGINT to all; whoever gives the work sends SIGTERM then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ.setdefault(THREADS, "1")  # lanes use the cores; more threads would wait for each other
    marked = _mark_streams()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            work, mark = connection.recv()
        except (EOFError, ConnectionError):
            return
        for stream in marked:
            stream.mark = mark
        answer: _Answer[Result]
        try:
            with heeding_sigterm():
                answer = _Answer(do(work))
        except Terminated:
            answer = _Answer(stopped=True)
        except BaseException as error:
            answer = _Answer(error=ExceptionWithTraceback(_portable(error), error.__traceback__))
        for stream in marked:
            stream.end_line()
        with suppress(BrokenPipeError):  # where the parent died
            connection.send(answer)
        if answer.stopped:
            return


def _portable(error: BaseException) -> BaseException:
    """The error, or what it says, where it holds something that goes into no other process."""
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    """A thread: where the parent dies, the lane ends as by SIGTERM; it keeps what can be gone on with."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


# ---- beside it -----------------------------------------------------------------------------------------------------------


class _Lane(Generic[Work, Result]):
    """One process, as its parent sees it. number: of what it is at; None: nothing."""

    def __init__(self, do: Callable[[Work], Result]):
        spawning = multiprocessing.get_context("spawn")
        self.connection, there = spawning.Pipe()
        self.process = spawning.Process(target=_serve, args=(there, do, multiprocessing.get_start_method()))
        signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT}
        )  # the process inherits it, until it ignores the signal
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        there.close()
        self.number: int | None = None

    def begin(self, number: int, work: Work, mark: str) -> None:
        self.number = number
        with suppress(BrokenPipeError):  # it has died, which `answer` tells
            self.connection.send((work, mark))

    def answer(self) -> _Answer[Result] | None:
        """What it says of its work, which has ended then; None: it is at it.

        Raises:
            LaneDied: it says nothing any more.
        """
        lives = self.process.is_alive()  # looked at first: what it has sent before its end can be read
        try:
            if self.connection.poll():
                answer = self.connection.recv()
                self.number = None
                return answer
        except (EOFError, ConnectionError):
            self.process.join(1)
        else:
            if lives:
                return None
        assert self.number is not None
        number, code = self.number, self.process.exitcode or 0
        self.number = None
        raise LaneDied(number, f"exit code {code}" if code >= 0 else signal.Signals(-code).name)

    def end(self, patience: float) -> None:
        """Have it leave, and kill it where it does not."""
        self.connection.close()
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Lanes(Generic[Work, Result]):
    """So many processes, which are started when there is work for them.

    do: a function at the top level of a module, or a `functools.partial` of one.
    """

    def __init__(self, count: int, do: Callable[[Work], Result]):
        self.count, self.do = count, do
        self._lanes: list[_Lane[Work, Result]] = []

    def __enter__(self) -> Lanes[Work, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        for lane in self._lanes:
            lane.end(patience=5.0 if lane.number is None else 0.0)

    @property
    def busy(self) -> int:
        """Lanes that are at something."""
        return len(self._at_work())

    @property
    def free(self) -> int:
        """Lanes for which there is no work yet."""
        return self.count - self.busy

    def begin(self, number: int, work: Work, mark: str) -> None:
        """Give work to a lane that is free. number: by which `ended` names it.  mark: what its lines begin with."""
        lane = next((lane for lane in self._lanes if lane.number is None and lane.process.is_alive()), None)
        if lane is None:
            self._lanes.append(lane := _Lane(self.do))
        lane.begin(number, work, mark)

    def ended(self) -> Iterator[tuple[int, Result]]:
        """Numbers of the work that has ended, with what it returned; waits `LOOKED_AT_EVERY` seconds for it.

        Raises:
            LaneDied: a process is gone.
            BaseException: what the work raised.
        """
        for number, answer in self._answers(LOOKED_AT_EVERY):
            if answer.error is not None:
                raise answer.error
            if answer.stopped:  # by a signal to the lane alone
                raise LaneDied(number, signal.SIGTERM.name)
            yield number, answer.result  # type: ignore[misc]

    def stop(self) -> Iterator[tuple[int, Result]]:
        """Have all leave their work where it can be gone on with; what ended meanwhile. Those that take too long are left to `__exit__`."""
        until = time.monotonic() + PATIENCE
        for lane in self._at_work():
            lane.process.terminate()
        while self.busy and (left := until - time.monotonic()) > 0:
            with suppress(LaneDied):
                for number, answer in self._answers(min(left, LOOKED_AT_EVERY)):
                    if answer.error is None and not answer.stopped:
                        yield number, answer.result  # type: ignore[misc]

    def _at_work(self) -> list[_Lane[Work, Result]]:
        return [lane for lane in self._lanes if lane.number is not None]

    def _answers(self, timeout: float) -> Iterator[tuple[int, _Answer[Result]]]:
        busy = self._at_work()
        wait([lane.connection for lane in busy], timeout)
        for lane in busy:
            number = lane.number
            if number is not None and (answer := lane.answer()) is not None:
                yield number, answer
