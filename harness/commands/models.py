"""``beit3-bench models``: released checkpoints and architecture presets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from beit3_bench.harness.commands import completion
from beit3_bench.harness.console import Toned, echo

if TYPE_CHECKING:
    from beit3_bench.backbones.released import ReleasedFile


@click.command("models")
@click.argument("name", required=False, shell_complete=completion.released)
@click.option("--params", is_flag=True, help="Count the parameters of every preset, part by part.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(name: str | None, params: bool, as_json: bool) -> None:
    """List the released checkpoints; with NAME, all that is known about one."""
    if params:
        _show_params(as_json)
    elif name:
        _show_one(name, as_json)
    else:
        _show_all(as_json)


def _record(weight: ReleasedFile, pins: dict[str, str]) -> dict:
    return {**dataclasses.asdict(weight), "url": weight.url, "sha256": pins.get(weight.name) or weight.sha256 or None}


def _show_all(as_json: bool) -> None:
    from beit3_bench.backbones.pins import read_pins
    from beit3_bench.backbones.released import released_files

    pins = read_pins()
    if as_json:
        echo(json.dumps([_record(weight, pins) for weight in released_files()], indent=1))
        return
    rows: list[tuple[str, ...]] = [("name", "task", "preset", "pixels", "params", "published", "sha256")]
    for w in released_files():
        scores = ", ".join(
            f"{'' if s.task == w.task else f'{s.task} '}{s.split} {s.metric} {s.value:g}" for s in w.published
        )
        size, count = str(w.image_size or ""), f"{w.params}M" if w.params else ""
        rows.append(
            (
                w.name,
                w.task or w.kind,
                w.preset,
                size,
                count,
                scores,
                (pins.get(w.name) or w.sha256 or "not seen yet")[:12],
            )
        )
    _print_columns(rows)
    echo("\nGet one with: beit3-bench download NAME. Details: beit3-bench models NAME. Parameters: models --params.")


def _show_one(name: str, as_json: bool) -> None:
    from beit3_bench.backbones.pins import read_pins
    from beit3_bench.backbones.released import get_released

    weight = get_released(name)
    record = _record(weight, read_pins())
    if as_json:
        echo(json.dumps(record, indent=1))
        return
    scores = "; ".join(f"{s.task} {s.split} {s.metric} {s.value:g}" for s in weight.published)
    lines = {**record, "published": scores, "trained_on": ", ".join(weight.trained_on)}
    lines["zero_shot"] = ", ".join(weight.zero_shot)
    _print_columns([(key, str(value)) for key, value in lines.items() if value not in ("", None, 0)])


def _show_params(as_json: bool) -> None:
    from beit3_bench.backbones.registry import families

    counts = {preset: parts for family in families() for preset, parts in family.parameters().items()}
    if as_json:
        echo(json.dumps(counts, indent=1))
        return
    parts = list(dict.fromkeys(part for count in counts.values() for part in count))
    rows: list[tuple[str, ...]] = [("millions of parameters", *counts)]
    for part in parts:
        rows.append((part, *(f"{count.get(part, 0) / 1e6:,.1f}" for count in counts.values())))
    _print_columns(rows, right=True)
    echo("\nFFN and attention lines count weight matrices, as the paper does; its giant has 692M, 692M, 52M, 317M.")


def _print_columns(rows: Sequence[Sequence[str]], right: bool = False) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = (c.rjust(w) if right and i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        line = "  ".join(cells).rstrip()
        echo(line if number else Toned(line, "heading"))
