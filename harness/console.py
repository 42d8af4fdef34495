"""What the verbs print: nothing that a name, a note or a file holds controls the terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Sequence

import click

from beit3_bench.text import visible, visible_lines


def echo(text: object, err: bool = False, nl: bool = True) -> None:
    """Print lines of text on stdout, or on stderr; what its encoding cannot write is written out, too."""
    encoding = getattr(sys.stderr if err else sys.stdout, "encoding", None) or "utf-8"
    shown = visible_lines(str(text)).encode(encoding, "backslashreplace").decode(encoding)
    try:
        click.echo(shown, err=err, nl=nl)
    except BrokenPipeError:  # whoever read it has seen enough; click's own exit code 1 would say that a replay differs
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (or the interpreter complains on its way out)
        raise SystemExit(128 + signal.SIGPIPE) from None


def open_missing_streams() -> None:
    """Lead standard streams that the caller has closed to nowhere.

    Python has None in place of such a stream, and the next file that is opened, perhaps one with rows, takes its number:
    what a library prints would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
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
