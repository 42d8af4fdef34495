"""SIGTERM, as batch systems send it some time before they kill: work ends where it can be gone on with, with exit code 143."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt it is no error: only what has to tidy up catches it, and raises it again.

    shared: all processes of a group get the signal, and process 0 speaks for them.
    """

    shared = True


class _Signal:
    """What is known of the signal in this process."""

    came = False
    waits = 0  # blocks of `deferred` that are open


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """Turn the first SIGTERM into `Terminated`; further ones change nothing, for batch systems may send it twice.

    Nothing is done outside the main thread, and where the caller has told this program to ignore the signal.
    """
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked process: it ends as it would have
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not _Signal.came:
            _Signal.came = True
            if not _Signal.waits:
                raise Terminated

    _Signal.came = False
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        _Signal.came = False


@contextmanager
def deferred() -> Iterator[None]:
    """Within, the signal interrupts nothing: it waits until `end_if_asked` is called, or `asked` is looked at."""
    _Signal.waits += 1
    try:
        yield
    finally:
        _Signal.waits -= 1


def asked() -> bool:
    """Whether SIGTERM has come."""
    return _Signal.came


def end_if_asked() -> None:
    """Raise `Terminated` if SIGTERM has come; called where everything so far is stored."""
    if _Signal.came:
        raise Terminated


def outlive_first_sigterm(worker: int = 0) -> None:
    """For a decoding process: a SIGTERM to the whole job must not take it away from a main process that saves its state.

    The main process ends it by other means, and by a second SIGTERM where these do not help.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
