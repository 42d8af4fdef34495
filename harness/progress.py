"""How far a long piece of work is, on stderr: a bar on a terminal, a line every 30 seconds elsewhere (a file, a batch system)."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Literal

from beit3_bench.text import visible

INTERVAL = 30.0
"""Seconds from one line to the next."""


class Meter:
    """Counts what is done, and shows nothing of it."""

    def __init__(self, title: str, unit: str, total: int | None = None, done: int = 0):
        self.title, self.unit, self.total, self.done = title, unit, total, done
        self.shown: dict[str, str] = {}

    def show(self, **values: str) -> None:
        """Values that are shown beside the count from now on."""
        self.shown |= values

    def advance(self, count: int = 1, **values: str) -> None:
        """So many more are done. values: shown beside them, such as the loss."""
        self.done += count

    def reach(self, done: int, total: int | None) -> None:
        """So many of so many are done, for work that counts by itself; ``total`` None: nobody knows."""
        self.total = total
        self.advance(done - self.done)

    def close(self, whole: bool = True) -> None:
        """The work has ended; whole: it came to its end."""

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self.close(whole=kind is None)


class Bar(Meter):
    """A bar that is drawn again and again."""

    def __init__(self, title: str, unit: str, total: int | None = None, done: int = 0, leave: bool = True):
        from tqdm import tqdm

        super().__init__(title, unit, total, done)
        scale = {"unit_scale": True, "unit_divisor": 1024} if unit == "B" else {}
        self._bar = tqdm(
            total=total, initial=done, desc=visible(title), unit=unit, leave=leave, file=sys.stderr, smoothing=0.05, **scale
        )  # fmt: skip

    def advance(self, count: int = 1, **values: str) -> None:
        super().advance(count)
        self._bar.total = self.total
        if values or self.shown:
            self._bar.set_postfix({**self.shown, **values}, refresh=False)
        self._bar.update(count)

    def close(self, whole: bool = True) -> None:
        self._bar.close()


class Lines(Meter):
    """A line every so many seconds, and one at the end of work for which there was any."""

    def __init__(self, title: str, unit: str, total: int | None = None, done: int = 0, interval: float = INTERVAL):
        super().__init__(title, unit, total, done)
        self.interval = interval
        self._begun = self._last = time.monotonic()
        self._done_then, self._said = done, False

    def advance(self, count: int = 1, **values: str) -> None:
        super().advance(count)
        now = time.monotonic()
        if now - self._last < self.interval:
            return
        rate = (self.done - self._done_then) / max(now - self._last, 1e-9)
        parts = [self._counted(), self._rate(rate)]
        if self.total is not None and rate > 0:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        self._say(", ".join([*parts, *(f"{name} {value}" for name, value in {**self.shown, **values}.items())]))
        self._last, self._done_then, self._said = now, self.done, True

    def close(self, whole: bool = True) -> None:
        if self._said and whole:
            self._say(f"{self._counted()} in {_clock(time.monotonic() - self._begun)}")

    def _counted(self) -> str:
        of = f" of {self._amount(self.total)}" if self.total is not None else ""
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        return f"{self._amount(self.done)}{of}{'' if self.unit == 'B' else f' {self.unit}s'}{share}"

    def _amount(self, count: float) -> str:
        from tqdm import tqdm

        return tqdm.format_sizeof(count, "B", 1024) if self.unit == "B" else f"{count:,.0f}"

    def _rate(self, rate: float) -> str:
        if self.unit == "B":
            return f"{self._amount(rate)}/s"
        return f"{rate:,.3g} {self.unit}s/s" if rate >= 1 or rate == 0 else f"{1 / rate:.3g} s/{self.unit}"

    def _say(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(visible(f"{self.title}: {text}"), file=sys.stderr)
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    from tqdm import tqdm

    return tqdm.format_interval(seconds)


@dataclass(frozen=True)
class Reporting:
    """How a command tells how far it is.

    form: ``"auto"`` = a bar where stderr is a terminal, lines elsewhere; ``"none"`` = not at all (``--quiet``).
    interval: seconds from one line to the next.
    """

    form: Literal["auto", "bar", "lines", "none"] = "auto"
    interval: float = INTERVAL

    @classmethod
    def unless(cls, quiet: bool) -> Reporting:
        """As ``--quiet`` wants it."""
        return cls("none" if quiet else "auto")

    def meter(
        self, title: str, unit: str, total: int | None = None, done: int = 0, leave: bool = True, shown: bool = True
    ) -> Meter:
        """A meter, to be entered. unit: of one piece, in the singular; ``"B"`` for bytes. leave: a bar stays when it is full.

        shown: False on the processes that stay silent.
        """
        form = self.form
        if form == "auto":
            form = "bar" if sys.stderr.isatty() else "lines"
        if form == "none" or not shown:
            return Meter(title, unit, total, done)
        if form == "bar":
            return Bar(title, unit, total, done, leave)
        return Lines(title, unit, total, done, self.interval)
