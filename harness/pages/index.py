"""A folder of pages and its index, which any static host can serve as it is."""

from __future__ import annotations

import html.parser
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import make_folder, read_limited, refuse_link, write_atomic
from beit3_bench.harness.pages.rendering import render, summary_tag

INDEX = "index.html"
META = "beit3-bench"
_HEAD = 2**16
"""Bytes of a page in which what an index tells of it stands."""
_LARGEST = 2**28


@dataclass(frozen=True)
class Indexed:
    """A page of a folder. facts: what it says of itself."""

    file: str
    facts: dict[str, Any]


class _Head(html.parser.HTMLParser):
    """Finds the meta element of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.content: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag == "meta" and known.get("name") == META:
            self.content = known.get("content")


def pages_in(folder: Path) -> list[Indexed]:
    """The pages of ours in a folder, by file name; other files are passed over."""
    known = ((path, facts_of_page(path)) for path in sorted(folder.glob("*.html")) if path.name != INDEX)
    return [Indexed(path.name, facts) for path, facts in known if facts is not None]


def facts_of_page(path: Path) -> dict[str, str] | None:
    """What a page says of itself; None for a file that is no page of ours, a link, or none at all."""
    if path.is_symlink():
        return None
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            head = _Head()
            head.feed(file.read(_HEAD).decode("utf-8", "replace"))
        facts = json.loads(head.content or "null")
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(facts, dict) and all(isinstance(value, str) for value in facts.values()) and "kind" in facts
    return facts if known else None


def write_page(path: Path, text: str) -> None:
    """Write a page whole or not at all.

    Raises:
        BenchError: a folder or link stands there, a foreign file, no permission, disk full.
    """
    refuse_link(path)
    if path.is_file() and not _is_ours(path):
        raise BenchError(f"{path}: is a file that beit3-bench did not make; choose another --output")
    make_folder(path.parent)
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


def _is_ours(path: Path) -> bool:
    try:
        return f'<meta name="{META}"'.encode() in read_limited(path, _LARGEST)[:_HEAD]
    except OSError:
        return False


def write_index(folder: Path) -> Path:
    """Write the index of a folder anew; returns its path."""
    pages = pages_in(folder)
    write_page(folder / INDEX, index_page(pages))
    return folder / INDEX


def index_page(pages: Sequence[Indexed]) -> str:
    """The index: leaderboards, runs by task, then pictures and trainings."""
    kinds: dict[str, list[Indexed]] = {}
    for page in pages:
        kinds.setdefault(page.facts["kind"], []).append(page)
    runs: dict[str, list[Indexed]] = {}
    for page in kinds.pop("run", []):
        runs.setdefault(f"{page.facts.get('title', '')}, {page.facts.get('split', '')}", []).append(page)
    boards = kinds.pop("leaderboard", [])
    return render("index.html", boards=boards, runs=runs, others=kinds, summary=summary_tag({"kind": "index"}))
