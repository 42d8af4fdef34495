"""Where the page of the leaderboard finds what else there is of a run: its own page, its card, its result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from beit3_bench.harness.pages.index import INDEX, facts_of_page, pages_in
from beit3_bench.harness.record.folder import CONFIG, RESULT
from beit3_bench.harness.record.results import Run
from beit3_bench.harness.record.runs import PAGE


@dataclass(frozen=True)
class Links:
    """Relative addresses; "" for what is not there.  folder: of the run, as `beit3-bench show` takes it."""

    page: str
    card: str
    result: str
    folder: str


def links_of(runs: Sequence[Run], root: Path, base: Path) -> dict[str, Links]:
    """By the name of a run, where its files lie.

    Args:
        root: folder of the runs.  base: folder of the page; pages of runs that lie there, too, go before those in the run folders.
    """
    shown = {_facts(page.facts): page.file for page in pages_in(base) if page.facts["kind"] == "run"}
    name, start = root.resolve().name, base.resolve()
    found = {}
    for run in runs:
        folder = root if run.name == name and (root / RESULT).is_file() else root / run.name
        place, beside = folder.resolve(), shown.get(_key(run))
        page = quote(os.fsencode(beside)) if beside else _relative(place / PAGE, start)
        found[run.name] = Links(page, _relative(place / CONFIG, start), _relative(place / RESULT, start), str(folder))
    return found


def index_beside(base: Path) -> str:
    """The index of a folder of pages, where there is one."""
    facts = facts_of_page(base / INDEX)
    return INDEX if facts is not None and facts.get("kind") == "index" else ""


def _key(run: Run) -> tuple[str, ...]:
    """What tells the pages of runs apart."""
    result = run.result
    made = str(result["provenance"].get("time", ""))[:10]
    return run.name.rpartition("/")[2], result["task"], result["split"], result["model"]["checkpoint"], made


def _facts(facts: dict[str, str]) -> tuple[str, ...]:
    return tuple(facts.get(key, "") for key in ("name", "task", "split", "checkpoint", "time"))


def _relative(path: Path, base: Path) -> str:
    """Both of them resolved, up to the file itself."""
    if not path.is_file():
        return ""
    try:
        return quote(os.fsencode(Path(os.path.relpath(path.resolve() if path.is_symlink() else path, base)).as_posix()))
    except ValueError:  # another drive
        return ""
