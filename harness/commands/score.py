"""``beit3-bench score``: score a prediction file, or a run folder again, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import parse_pairs
from beit3_bench.harness.console import echo
from beit3_bench.text import visible

_FILE = click.Path(path_type=Path)


@click.command("score")
@click.option("--task", metavar="NAME", shell_complete=completion.tasks, help="Task whose protocol scores the file.")
@click.option("--predictions", type=_FILE, metavar="PATH", help="Predictions in the task's official format.")
@click.option("--annotations", type=_FILE, metavar="PATH", help="Official annotations.")
@click.option("--questions", type=_FILE, metavar="FILE", help="Official questions (vqav2).")
@click.option("--iou-type", type=click.Choice(["bbox", "segm"]), help="What coco-det compares.")
@click.option(
    "--ap-backend",
    type=click.Choice(["own", "pycocotools", "faster-coco-eval"]),
    help="coco-det: whose statistics; equal to 1e-12 [default: own].",
)
@click.option("--zero-based", is_flag=True, help="ade20k-seg: classes are 0..149 rather than 1..150.")
@click.option(
    "--allow-partial", is_flag=True, help="Score a file that does not cover every sample; the coverage is reported."
)
@click.option("--run", "folder", type=_FILE, metavar="DIR", help="Score the stored rows of a run folder again.")
@click.option(
    "--data-root", "--data", "data_root", type=_FILE, metavar="PATH", help="The data of the run (with --run)."
)
@click.option(
    "-o",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the run that may be a file (with --run).",
)
@click.option(
    "--intervals",
    "with_intervals",
    is_flag=True,
    help="With --run: 95% intervals, too, as the run makes them (seed 0).",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one flat JSON object {metric: value} and nothing else on stdout ({metric: [value, low, high]} with --intervals); notes "
    "go to stderr.",
)
def command(
    folder: Path | None,
    data_root: Path | None,
    options: tuple[str, ...],
    with_intervals: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Score predictions. Percent for VQA and retrieval, fractions elsewhere, as the official tools print them."""
    import json
    import math

    if folder is not None:
        stray = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
        if stray:
            raise BenchError(f"--run takes everything from the run folder; leave out {', '.join(stray)}")
        from beit3_bench.harness.evidence.rescore import intervals_again, rescore

        scores, task = rescore(folder, data_root, parse_pairs(options))
        bounds = intervals_again(folder, task, scores) if with_intervals else {}
    else:
        alone = {"--intervals": with_intervals, "-o": options, "--data-root": data_root is not None}
        if stray := [option for option, value in alone.items() if value]:
            raise BenchError(f"{stray[0]} belongs to --run DIR; leave it out")
        (scores, task), bounds = _score_file(**given), {}
    if as_json:
        for note in scores.notes:
            echo(f"note: {visible(note)}", err=True)
        values = {name: float(v) if math.isfinite(v) else None for name, v in scores.metrics.items()}
        ends = {name: bounds.get(name, (None, None)) for name in values}
        echo(json.dumps({name: [v, *ends[name]] for name, v in values.items()} if with_intervals else values))
        return
    from beit3_bench.harness.scoring import metric_spec

    width = max(map(len, scores.metrics), default=0)
    for name, value in scores.metrics.items():
        between = f"  [{bounds[name][0]:.4f}, {bounds[name][1]:.4f}]" if name in bounds else ""
        echo(f"{visible(name):<{width}}  {value:.4f}{between}  {metric_spec(task, name).unit}")
    if scores.counts:
        echo("counts: " + ", ".join(f"{count:,} {name}" for name, count in scores.counts.items()))
    for note in scores.notes:
        echo(f"note: {visible(note)}")


def _score_file(task: str | None, predictions: Path | None, **files: Any) -> tuple[Any, Any]:
    from beit3_bench.harness.record.released import score_note
    from beit3_bench.tasks.contract import ScoreInputs
    from beit3_bench.tasks.registry import get_task

    if task is None or predictions is None:
        raise BenchError("give --task NAME and --predictions PATH, or --run DIR (see: beit3-bench score --help)")
    task_class = get_task(task)
    taken = [f"--{name.replace('_', '-')}" for name in task_class.score_files]
    stray = [
        f"--{name.replace('_', '-')}" for name, value in files.items() if value and name not in task_class.score_files
    ]
    if stray:
        raise BenchError(
            f"task {task} takes no {', '.join(stray)}; leave it out (beside --predictions it takes {', '.join(taken) or 'nothing'})"
        )
    for option, path in {
        "--predictions": predictions,
        "--annotations": files["annotations"],
        "--questions": files["questions"],
    }.items():
        if path is not None and not path.exists():
            raise BenchError(f"{path}: not found; check {option}")
    scores = task_class.score_file(ScoreInputs(predictions, **files))
    given = [path for path in (predictions, files["annotations"]) if path is not None]
    scores.notes += [note] if (note := score_note(task_class, scores.counts, given)) else []
    return scores, task_class
