"""The README and the pages of docs/, taken apart: blocks of code, and the command lines of `beit3-bench` in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from beit3_bench.harness.cli import main

ROOT = Path(__file__).resolve().parents[1]
INCLUDED = (
    "backbones/beit3/detectron2_adapter/README.md",
    "backbones/beit3/mmseg_adapter/README.md",
    "results/published/README.md",
    "results/perf/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
"""Texts of the source tree that pages show."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in INCLUDED)]
MARK = "<!-- runs on the tiny world -->"
"""Stands above a block whose commands need nothing but what the demo leaves."""
_BLOCK = re.compile(r"^(?:(?P<mark><!-- .*? -->)\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_ENDS = {"&&", "||", "|", ";", "&", ">", ">>", ")"}


@dataclass(frozen=True)
class Block:
    """A block of code: where it begins, its language, its lines, and whether `MARK` stands above it."""

    page: Path
    line: int
    language: str
    text: str
    marked: bool

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A call of `beit3-bench`. words: what stands behind the program's name."""

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def blocks(language: str) -> list[Block]:
    """All blocks of a language, page after page."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(page, line, match["language"], match["text"], match["mark"] == MARK)


def commands_of(block: Block) -> list[Command]:
    """The calls of `beit3-bench` in a block of shell, also behind launchers (torchrun, docker run)."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith(("docker build", "eval ")):  # there the name is another thing's
            continue
        lexer = shlex.shlex(
            re.sub(r"\s\$\([^()]*\)", " ", line), posix=True, punctuation_chars="&|;<>()"
        )  # $(...): any option
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = list(lexer)
        for n, word in enumerate(words):
            if word == "beit3-bench" or words[max(n - 1, 0) : n + 1] == ["-m", "beit3_bench.harness"]:
                end = next((k for k in range(n, len(words)) if words[k] in _ENDS), len(words))
                found.append(Command(block.place, tuple(words[n + 1 : end])))
    return found


COMMANDS = [command for block in blocks("sh") for command in commands_of(block)]


def parsed(words: tuple[str, ...]) -> tuple[str, dict[str, object]]:
    """Verb (``"data get"``) and parameters of a call; options that are left out are not there.

    Raises:
        click.UsageError: no such verb or option, a value that is none of the choices or no number, a required option left out, a
            stray word.
    """
    group: click.Command = main
    context, verbs, rest = click.Context(main, info_name="beit3-bench"), [], list(words)
    values: dict[str, object] = {}
    while True:
        options, rest, order = group.make_parser(context).parse_args(rest)
        given = {name: value for name, value in options.items() if _is_given(value)}
        for parameter in order:
            if parameter.name in given and not isinstance(parameter.type, (click.Path, click.File)):
                given[parameter.name] = parameter.type_cast_value(context, given[parameter.name])
        values |= given
        missing = [parameter for parameter in group.params if parameter.required and parameter.name not in given]
        if missing:
            raise click.UsageError(f"{' '.join(verbs)} needs {missing[0].name}", context)
        if not isinstance(group, click.Group) or (not rest and verbs):  # `runs` and `cache` list by themselves
            break
        name, command, rest = group.resolve_command(context, rest)
        assert command is not None
        verbs.append(str(name))
        group, context = command, click.Context(command, info_name=name, parent=context)
    if rest:
        raise click.UsageError(f"{' '.join(verbs)} takes no {rest[0]!r}", context)
    return " ".join(verbs), values


def _is_given(value: object) -> bool:
    """Parsers of click say None, nothing, or (from 8.3 on) a mark of their own for what was left out."""
    return value is not None and value != [] and value != () and type(value).__name__ != "Sentinel"
