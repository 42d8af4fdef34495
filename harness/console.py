"""What the verbs print: nothing that a name, a note or a file holds controls the terminal; colour only where a terminal shows it."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import click

from beit3_bench.text import visible, visible_lines

Tone = Literal["error", "warning", "heading", "good"]
_STYLES: dict[Tone, dict[str, Any]] = {
    "error": {"fg": "red", "bold": True},
    "warning": {"fg": "yellow", "bold": True},
    "heading": {"bold": True},
    "good": {"fg": "green", "bold": True},
}
_LEADING = re.compile(r"(?:\[rank \d+\] )?(?:internal )?(error|warning):")
"""What lines on stderr begin with that has a colour of its own."""
_plain = False


@dataclass(frozen=True)
class Toned:
    """Text that means something by its colour, too; where there is none, it is plain text."""

    text: object
    tone: Tone

    def __str__(self) -> str:
        return str(self.text)


@contextmanager
def without_colour(plain: bool = True) -> Iterator[None]:
    """Print in plain text within, where ``plain``: the output of a command is for a program."""
    global _plain
    before, _plain = _plain, _plain or plain
    try:
        yield
    finally:
        _plain = before


def coloured(err: bool = False) -> bool:
    """Whether stdout, or stderr, shows colours: a terminal that can, of a user who has not set NO_COLOR (see no-color.org)."""
    stream = sys.stderr if err else sys.stdout
    if _plain or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream.isatty()


def painted(text: object, err: bool = False) -> str:
    """Text as it is printed: without characters that control a terminal, in colour where the stream shows it."""
    shown = visible_lines(str(text))
    if not coloured(err):
        return shown
    if isinstance(text, Toned):
        return click.style(shown, **_STYLES[text.tone])
    if err and (leading := _LEADING.match(shown)):
        tone: Tone = "error" if leading[1] == "error" else "warning"
        return click.style(leading[0], **_STYLES[tone]) + shown[leading.end() :]
    return shown


def echo(*parts: object, err: bool = False, nl: bool = True) -> None:
    """Print text on stdout, or on stderr; what its encoding cannot write is written out, too.

    parts: of one text; those that are `Toned` in colour.
    """
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    shown = "".join(painted(part, err) for part in parts).encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(shown, err=err, nl=nl, color=True)  # `painted` has decided
    except BrokenPipeError:  # whoever read it has seen enough; click's own exit code 1 would say that a replay differs
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (or the interpreter complains on its way out)
        raise SystemExit(128 + signal.SIGPIPE) from None


def headed(text: str, tone: Tone = "heading") -> list[object]:
    """The parts of a report (see `echo`): its first line has a tone."""
    first, newline, rest = text.partition("\n")
    return [Toned(first, tone), newline + rest]


def sections(text: str) -> list[object]:
    """The parts of a text in Markdown: its headings have a tone."""
    lines = text.splitlines(keepends=True)
    return [Toned(line, "heading") if line.startswith("#") else line for line in lines]


def open_missing_streams() -> None:
    """Lead standard streams that the caller has closed to nowhere.

    Python has None in place of such a stream, and the next file that is opened, perhaps one with rows, takes its number:
    what a library prints would be written into it. Processes that are started get them, too.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


class HelpGroup(click.Group):
    """A group that alone prints its help, as help: on stdout, with exit code 0, whatever the version of click."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)


def columns(lines: Iterable[Sequence[str]]) -> list[str]:
    """Cells as left-aligned columns, one line of text per line."""
    cells = [[visible(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
