"""``beit3-bench cache``: what runs keep of images and embeddings, and deleting it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.console import columns, echo, headed
from beit3_bench.text import visible

if TYPE_CHECKING:
    from beit3_bench.harness.reuse.caches import CacheFolder

_VARIABLES = ("BEIT3_BENCH_IMAGE_CACHE", "BEIT3_BENCH_FEATURES")


@click.group("cache", invoke_without_command=True)
@click.option(
    "--dir",
    "roots",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="DIR",
    help=f"What --image-cache or --features named [default: {' and '.join('$' + v for v in _VARIABLES)}].",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(context: click.Context, roots: Sequence[Path], as_json: bool) -> None:
    """List the folders of preprocessed images and of embeddings; `cache rm` deletes some."""
    import json

    places = list(roots) or [Path(os.environ[name]) for name in _VARIABLES if os.environ.get(name)]
    if not places:
        raise BenchError(
            "cache: say which folder with --dir; nothing is kept unless --image-cache or --features is given"
        )
    context.obj = folders = _found(list(dict.fromkeys(places)), missing_is_empty=not roots)
    if context.invoked_subcommand is not None:
        return
    if as_json:
        echo(json.dumps([folder.to_dict() for folder in folders], indent=1))
    elif folders:
        echo(*headed(_table(folders)))
    else:
        echo(f"nothing is kept in {visible(', '.join(map(str, places)))}", err=True)


@command.command("rm")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def remove(folders: list[CacheFolder], names: tuple[str, ...], everything: bool, yes: bool) -> None:
    """Delete folders by the name that `beit3-bench cache` lists, or --all.

    Only what runs have put there is deleted. Nothing is lost but time: the next run decodes or computes it again.
    """
    import sys

    from beit3_bench.harness.reuse.caches import remove_cache

    if bool(names) == everything:
        raise BenchError("cache rm: give names, or --all")
    unknown = [name for name in names if name not in {folder.name for folder in folders}]
    if unknown:
        raise BenchError(
            f"{unknown[0]}: nothing of that name is kept here; see: beit3-bench cache (nothing was deleted)"
        )
    chosen = [folder for folder in folders if everything or folder.name in names]
    if chosen and not yes:
        if not sys.stdin.isatty():
            raise BenchError(f"deleting {len(chosen)} folders needs a yes; add --yes")
        click.confirm(visible(f"Delete {', '.join(folder.path for folder in chosen)}?"), abort=True, err=True)
    for folder in chosen:
        strangers = remove_cache(Path(folder.path))
        kept = f"; the folder stays, it holds {', '.join(strangers[:3])}" if strangers else ""
        echo(f"deleted {folder.path} ({folder.bytes / 2**20:.1f} MiB){kept}")


def _found(places: Sequence[Path], missing_is_empty: bool) -> list[CacheFolder]:
    from beit3_bench.harness.reuse.caches import list_caches

    return [f for place in places if place.is_dir() or not missing_is_empty for f in list_caches(place)]


def _table(folders: Sequence[CacheFolder]) -> str:
    lines = [("name", "holds", "files", "MiB")]
    lines += [(f.name, f.about, f"{f.files:,}", f"{f.bytes / 2**20:.1f}") for f in folders]
    return "\n".join([*columns(lines), f"{sum(f.bytes for f in folders) / 2**20:,.1f} MiB in all"])
