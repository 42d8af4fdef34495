"""``beit3-bench tasks``: what can be evaluated, and what it needs."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Any

import click

from beit3_bench.harness.commands import completion
from beit3_bench.harness.console import echo, headed
from beit3_bench.text import in_words

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Task
    from beit3_bench.tasks.scores import Metric


@click.command("tasks")
@click.argument("name", required=False, shell_complete=completion.tasks)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, as_json: bool) -> None:
    """List the tasks; with NAME, its splits, metrics, options, expected files and command line."""
    from beit3_bench.tasks.registry import get_task, task_names

    if name is not None:
        task = get_task(name)
        echo(json.dumps(_record(task), indent=1) if as_json else _details(task))
        return
    tasks = [get_task(known) for known in task_names()]
    if as_json:
        echo(json.dumps([_record(task) for task in tasks], indent=1))
        return
    rows = [(t.name, _title(t), _headline(t), ", ".join(_mark_default(t)) or "(data of your own)") for t in tasks]
    rows.insert(0, ("name", "title", "headline", "splits (* default)"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
    echo(*headed("\n".join(lines)))
    echo("\nDetails and expected files: beit3-bench tasks NAME")


def _title(task: type[Task]) -> str:
    from beit3_bench.tasks.facts import read_facts

    return read_facts(task.name).title or task.name


def _headline(task: type[Task]) -> str:
    return next(metric.name for metric in task.metrics if metric.headline)


def _mark_default(task: type[Task]) -> list[str]:
    return [f"{split}*" if split == task.default_split else split for split in task.splits]


def _options(task: type[Task]) -> list[dict[str, Any]]:
    from beit3_bench.tasks.options import option_help

    meanings, options = option_help(task.Options), []
    for f in dataclasses.fields(task.Options):
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        shown = None if default is None else str(default)
        options.append({"name": f.name, "type": kind, "default": shown, "help": meanings.get(f.name, "")})
    return options


def _metric(metric: Metric) -> dict[str, Any]:
    """What a metric is called and how it reads, without how it is computed."""
    return {f.name: getattr(metric, f.name) for f in dataclasses.fields(metric) if f.compare}


def _record(task: type[Task]) -> dict[str, Any]:
    from beit3_bench.tasks.facts import read_facts

    return {
        "name": task.name,
        "title": _title(task),
        "splits": list(task.splits),
        "default_split": task.default_split,
        "metrics": [_metric(metric) for metric in task.metrics],
        "options": _options(task),
        "layout": task.layout,
        "score_files": list(task.score_files),
        "places": [dataclasses.asdict(place) for place in read_facts(task.name).data.places],
    }


def _details(task: type[Task]) -> str:
    blocks = [f"{task.name}: {_title(task)}"]
    if story := (task.__doc__ or "").strip().partition("\n\n")[0]:
        blocks[0] += f"\n{textwrap.fill(' '.join(story.split()), 110)}"
    if task.splits:
        blocks.append(f"splits (* default): {', '.join(_mark_default(task))}")
    marks = [f"{m.name} ({'headline, ' if m.headline else ''}{m.unit})" for m in task.metrics]
    blocks.append(textwrap.fill(f"metrics: {', '.join(marks)}", 110, subsequent_indent="  ", break_on_hyphens=False))
    if options := _options(task):
        lines = []
        for o in options:
            lines.append(f"  -o {o['name']}={o['type'].upper()} [default: {o['default']}]")
            lines += textwrap.wrap(o["help"], 104, initial_indent=" " * 6, subsequent_indent=" " * 6)
        blocks.append("options:\n" + "\n".join(lines))
    if task.layout:
        where = "lines of --data FILE.jsonl, one per sample" if task.own_data else "expected below --data-root"
        blocks.append(f"{where}:\n" + textwrap.indent(textwrap.dedent(task.layout).strip("\n"), "  "))
    if places := _places(task):
        blocks.append(
            "\n".join([f"where it comes from (beit3-bench data get --task {task.name} --output DIR):", *places])
        )
    blocks.append(f"evaluate:\n  {_command_line(task)}")
    return "\n\n".join(blocks)


def _places(task: type[Task]) -> list[str]:
    """Addresses, sizes, terms and splits of what the data consists of; steps for what has to be asked for."""
    from beit3_bench.tasks.facts import read_facts

    lines: list[str] = []
    for place in read_facts(task.name).data.places:
        size = f", {in_words(place.bytes)}" if place.bytes is not None else ""
        lines.append(f"  {' '.join(place.members.values())} ({', '.join(place.splits)}{size}; {place.licence})")
        if place.url:
            lines.append(f"    {place.url}")
        for number, step in enumerate(place.steps, 1):
            text = f"{number}. {step}".replace("{root}", "DATA_ROOT")
            lines += textwrap.wrap(
                text, 110, initial_indent="    ", subsequent_indent="       ", break_long_words=False
            )
    return lines


def _command_line(task: type[Task]) -> str:
    from beit3_bench.backbones.released import get_released, released_files

    like = task.asks_as or task.name
    answering = sorted((w for w in released_files() if w.answers(like)), key=lambda w: w.task != like)
    weight = answering[0] if answering else None
    file, tokenizer = ("model.pth", "") if weight is None else (weight.file, weight.tokenizer)
    option = f" --tokenizer {get_released(tokenizer).file}" if task.uses_text and tokenizer else ""
    data = "--data FILE.jsonl" if task.own_data else "--data-root DIR"
    return f"beit3-bench run --task {task.name} --checkpoint {file}{option} {data}"
