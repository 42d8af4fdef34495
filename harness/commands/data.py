"""``beit3-bench data``: write the tiny world."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("data")
def command() -> None:
    """Data sets."""


@command.command("tiny")
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="New or empty folder.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same bytes.")
@click.option(
    "--size",
    type=click.Choice(["tiny", "mini"]),
    default="tiny",
    show_default=True,
    help="mini: a second, for trying out.",
)
def tiny(out: Path, seed: int, size: str) -> None:
    """Write a small world of coloured shapes that is the ground truth of every task, in the original layouts."""
    import sys

    from tqdm import tqdm

    from beit3_bench.tasks.tinyworld import write_tiny_world

    with tqdm(desc="tiny world", unit="step", disable=not sys.stderr.isatty(), file=sys.stderr, leave=False) as bar:

        def progress(folder: str, done: int, total: int) -> None:
            bar.total = total
            bar.set_postfix_str(folder, refresh=False)
            bar.update(done - bar.n)

        manifest = write_tiny_world(out, seed=seed, progress=progress, size=size)
    click.echo(f"{out}: {manifest['files']:,} files, {manifest['bytes'] / 2**20:.1f} MiB", err=True)
    click.echo(out)
