"""``beit3-bench show``: a page of a run, with its pictures; of one picture across tasks; of a training."""

from __future__ import annotations

from pathlib import Path

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands.options import parse_pairs, seed
from beit3_bench.harness.console import echo

_PATH = click.Path(path_type=Path)
SORTS = ("worst", "best", "random", "flips", "confident-errors")


@click.command("show")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=_PATH)
@click.option(
    "--against",
    type=_PATH,
    metavar="RUN_B",
    help="Another run over the same samples: what changed, and both beside each other.",
)
@click.option(
    "--image", metavar="ID", help="One picture across the runs of several tasks: everything that was measured of it."
)
@click.option(
    "--n",
    "count",
    type=click.IntRange(1, 1000),
    default=48,
    show_default=True,
    metavar="N",
    help="Samples on the page.",
)
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    help="Which samples [default: flips with --against; else some of the worst, the best and any].",
)
@click.option(
    "--output",
    type=_PATH,
    metavar="DIR|FILE.html",
    help="Folder of pages with an index, or one file [default: RUN/page.html].",
)
@click.option(
    "--data-root",
    "--data",
    "data_root",
    type=_PATH,
    metavar="DIR",
    help="The data of the run, where it is no longer where its card says.",
)
@click.option(
    "-o", "options", multiple=True, metavar="KEY=VALUE", help="An option of the run that is a file, where it has moved."
)
@seed("Decides which of equal samples are shown.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: page, bytes, samples, facts, warnings.")
def command(
    runs: tuple[Path, ...],
    against: Path | None,
    image: str | None,
    count: int,
    sort: str | None,
    output: Path | None,
    data_root: Path | None,
    options: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Make a page of what a run did: its numbers, where it fails by kind, and samples with their pictures.

    \b
    beit3-bench show results/runs/nlvr2                      the worst, the best and any samples
    beit3-bench show RUN_A --against RUN_B                   what flipped
    beit3-bench show --image 397133 RUN1 RUN2 ...            one COCO picture in all tasks
    beit3-bench show models/nlvr2                            the learning curves of a training
    beit3-bench show results/runs/* --output pages           many pages and their index

    Pages are self-contained files that need no network.
    """
    import json

    from beit3_bench.harness.pages.making import Wish, make_pages

    wish = Wish(against, image, count, sort, output, data_root, parse_pairs(options), seed)
    made, failed = make_pages(list(runs), wish)
    if as_json:
        told = [page.to_dict() for page in made]
        echo(json.dumps(told[0] if len(runs) == 1 or image is not None else told, indent=1))
    for page in made if not as_json else ():
        echo(page.text())
        for line in page.warnings:
            echo(f"warning: {line}", err=True)
    for line in failed:
        echo(f"error: {line}", err=True)
    if failed:
        raise BenchError(f"{len(failed)} of {len(runs)} folders have no page; see above")
