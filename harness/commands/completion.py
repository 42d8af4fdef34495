"""What a shell completes (see docs/install.md): names of tasks, splits, presets and released files; nothing of it imports torch."""

from __future__ import annotations

from collections.abc import Iterable

import click
from click.shell_completion import CompletionItem

from beit3_bench.errors import BenchError


def tasks(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of tasks; where several may be given, behind the last comma."""
    from beit3_bench.tasks.facts import read_facts
    from beit3_bench.tasks.registry import task_names

    several = parameter.name == "tasks"
    before, comma, last = incomplete.rpartition(",") if several else ("", "", incomplete)
    given = before.split(",")
    names = [name for name in task_names() if name not in given]
    items = [CompletionItem(f"{before}{comma}{name}", help=read_facts(name).title) for name in _beginning(last, names)]
    return [*items, *map(CompletionItem, _beginning(incomplete, ["all"] if several else []))]


def splits(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Splits of the tasks that stand on the command line already, or of all."""
    from beit3_bench.tasks.registry import get_task, task_names

    named = context.params.get("tasks") or context.params.get("task") or "all"
    names = task_names() if named == "all" else str(named).split(",")
    known: dict[str, None] = {}
    for name in names:
        try:
            known |= dict.fromkeys(get_task(name).splits)
        except BenchError:  # half typed, or a package that does not load: `run` says so
            continue
    return _beginning(incomplete, known)


def released(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of released files."""
    from beit3_bench.backbones.released import released_files

    given = context.params.get(str(parameter.name)) or ()
    files = {file.name: file for file in released_files() if file.name not in given}
    return [CompletionItem(name, help=files[name].task or files[name].kind) for name in _beginning(incomplete, files)]


def presets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of architectures."""
    from beit3_bench.backbones.registry import families

    return _beginning(incomplete, dict.fromkeys(preset for family in families() for preset in family.presets()))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
