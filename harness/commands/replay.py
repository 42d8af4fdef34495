"""``beit3-bench replay``: a run again, from its card."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beit3_bench.harness.commands.run import BatchSize

if TYPE_CHECKING:
    from beit3_bench.harness.replay import Replay

_PATH = click.Path(path_type=Path)


@click.command("replay")
@click.argument("run", type=_PATH)
@click.option("--output", type=_PATH, metavar="DIR", help="Keep the new run here [default: a temporary folder].")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1e-4,
    show_default=True,
    help="Largest difference of numbers and embeddings; labels and texts must be equal.",
)
@click.option("--checkpoint", type=_PATH, metavar="FILE", help="The checkpoint, where it has moved.")
@click.option("--data-root", type=_PATH, metavar="DIR", help="The data, where it has moved.")
@click.option("--tokenizer", type=_PATH, metavar="FILE", help="The tokenizer, where it has moved.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N [default: the run's].")
@click.option("--batch-size", type=BatchSize(), help="[default: the run's]")
@click.option("--workers", type=click.IntRange(min=0), metavar="N", help="Decoding processes [default: the run's].")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def command(run: Path, output: Path | None, tolerance: float, as_json: bool, **places: Any) -> None:
    """Execute the run in folder RUN again and compare it row by row and metric by metric.

    Exit code 0: the same; 1: it differs; 2: inputs are missing or have changed.
    """
    import json

    from beit3_bench.harness.processes import Processes
    from beit3_bench.harness.replay import Overrides, RunStore, replay

    device = places["device"] or (RunStore.read(run).config.get("device") or "auto").partition(":")[0]
    processes = Processes.start(device)
    with redirect_stdout(sys.stderr):  # what libraries print; stdout is for results
        found = replay(run, output, tolerance, Overrides(**places), processes)
    if found is None:
        return
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else describe(found))
    if not found.same:
        raise SystemExit(1)


def describe(found: Replay) -> str:
    """A replay as text; the first line is the verdict."""
    if found.same:
        lines = [f"same: {found.rows:,} rows and {found.compared_metrics} metrics of {found.run} come out again"]
    else:
        lines = [
            f"differs: {found.differing_rows:,} of {found.rows:,} rows and {len(found.metrics)} of "
            f"{found.compared_metrics} metrics of {found.run} come out otherwise"
        ]
    lines += [
        f"  {key}: largest difference {value:.3g} (tolerance {found.tolerance:g})"
        for key, value in found.largest.items()
    ]
    lines += [f"  metric {name}: {was} then, {now} now" for name, (was, now) in found.metrics.items()]
    lines += [f"  row {d.id}: {d.key} {d.was} then, {d.now} now" for d in found.examples]
    lines += [f"  note: {line}" for line in found.changed]
    return "\n".join(lines)
