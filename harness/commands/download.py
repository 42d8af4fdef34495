"""``beit3-bench download``: fetch released weights, verified and resumable."""

from __future__ import annotations

from pathlib import Path

import click

from beit3_bench.harness.commands.options import quiet
from beit3_bench.harness.console import echo

MIRROR_VARIABLE = "BEIT3_BENCH_MIRROR"


@click.command("download")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option(
    "--to", "folder", type=click.Path(path_type=Path), default=Path("."), metavar="DIR", help="Folder [default: .]."
)
@click.option(
    "--base-url", envvar=MIRROR_VARIABLE, metavar="URL", help=f"Mirror of the files [env: {MIRROR_VARIABLE}]."
)
@quiet
@click.option("--sha256", metavar="HEX", help="Expected hash, where you know it (one NAME only).")
def command(names: tuple[str, ...], folder: Path, base_url: str | None, quiet: bool, sha256: str | None) -> None:
    """Download released files by name (see: beit3-bench models).

    A broken transfer continues where it stopped. The sha256 is pinned at the first download on this machine, and every
    later download or run is compared with it.
    """
    from beit3_bench.download import download
    from beit3_bench.backbones.pins import pin_or_check, read_pins
    from beit3_bench.backbones.released import get_released
    from beit3_bench.harness.progress import Reporting

    if sha256 is not None and len(names) > 1:
        raise click.UsageError("--sha256 goes with one NAME")
    weights = [get_released(name) for name in names]
    pins, reporting = read_pins(), Reporting.unless(quiet)
    for weight in weights:
        url = f"{base_url.rstrip('/')}/{weight.file}" if base_url else weight.url
        with reporting.meter(weight.file, "B") as meter:
            path = download(
                url, folder / weight.file, sha256 or weight.sha256 or pins.get(weight.name), progress=meter.reach
            )
        digest = pin_or_check(path, weight.name)
        echo(f"{path}  sha256 {digest}")
