"""``beit3-bench replay``: a run again, from its card."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.options import parse_pairs
from beit3_bench.harness.commands.run import BatchSize
from beit3_bench.harness.console import echo, headed
from beit3_bench.text import visible

if TYPE_CHECKING:
    from beit3_bench.harness.evidence.replay import Replay

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
@click.option("--checkpoint", metavar="[FAMILY:]FILE", help="The run's checkpoint.")
@click.option("--data-root", "--data", "data_root", type=_PATH, metavar="PATH", help="The run's data.")
@click.option(
    "--tokenizer", type=_PATH, metavar="FILE", help="The run's tokenizer, where it is not beside the checkpoint."
)
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="An option of the run that may be a file.")
@click.option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:N or mps [default: the run's].")
@click.option("--batch-size", type=BatchSize(), help="[default: the run's]")
@click.option("--workers", type=click.IntRange(min=0), metavar="N", help="Decoding processes [default: the run's].")
@click.option("--json", "as_json", is_flag=True, help="Print the differences as JSON.")
def command(run: Path, output: Path | None, tolerance: float, as_json: bool, **places: Any) -> None:
    """Execute the run in folder RUN again and compare it row by row and metric by metric.

    A run folder may be somebody else's: checkpoint, data, and files in options are opened only where they are named here;
    without them, the whole command is printed. Exit code 0: the same; 1: it differs; 2: it cannot be replayed (inputs are not
    named, missing or changed; the folder is damaged).
    """
    import json

    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.evidence.replay import Overrides, RunStore, replay

    places["options"] = parse_pairs(places["options"])
    device = places["device"] or (RunStore.read(run).config.get("device") or "auto").partition(":")[0]
    processes = Processes.start(device)
    try:
        with redirect_stdout(sys.stderr):  # what libraries print; stdout is for results
            report = replay(run, output, tolerance, Overrides(**places), processes)
    except (BenchError, OSError, MemoryError):
        raise
    except Exception as error:  # exit code 1 says that the run differs
        raise BenchError(
            f"{run}: cannot be replayed, internal error: {type(error).__name__}: {str(error)[:200]}; --debug shows the traceback"
        ) from error
    if report is None:
        return
    if as_json:
        echo(json.dumps(report.to_dict(), indent=1))
    else:
        echo(*headed(replay_as_text(report), "good" if report.same else "error"))
    if not report.same:
        raise SystemExit(1)


def replay_as_text(report: Replay) -> str:
    """A replay as text; the first line is the verdict."""
    if report.same:
        lines = [f"same: {report.rows:,} rows and {report.compared_metrics} metrics of {report.run} come out again"]
    else:
        lines = [
            f"differs: {report.differing_rows:,} of {report.rows:,} rows and {len(report.metrics)} of "
            f"{report.compared_metrics} metrics of {report.run} come out otherwise"
        ]
    lines += [
        f"  {key}: largest difference {value:.3g} (tolerance {report.tolerance:g})"
        for key, value in report.largest.items()
    ]
    lines += [f"  metric {name}: {was} then, {now} now" for name, (was, now) in report.metrics.items()]
    lines += [f"  row {d.id}: {d.key} {d.was} then, {d.now} now" for d in report.examples]
    lines += [f"  note: {line}" for line in report.changed]
    return "\n".join(map(visible, lines))
