"""``beit3-bench download``: fetch released weights, verified and resumable."""

from __future__ import annotations

from pathlib import Path

import click

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
@click.option("--sha256", metavar="HEX", help="Expected hash, where you know it (one NAME only).")
def command(names: tuple[str, ...], folder: Path, base_url: str | None, sha256: str | None) -> None:
    """Download released files by name (see: beit3-bench models).

    A broken transfer continues where it stopped. The sha256 is pinned at the first download on this machine, and every
    later download or run is compared with it.
    """
    from beit3_bench.backbones.download import download
    from beit3_bench.backbones.pins import pin_or_check, read_pins
    from beit3_bench.backbones.released import get_released

    if sha256 is not None and len(names) > 1:
        raise click.UsageError("--sha256 goes with one NAME")
    weights = [get_released(name) for name in names]
    pins = read_pins()
    for weight in weights:
        url = f"{base_url.rstrip('/')}/{weight.file}" if base_url else weight.url
        with _Meter(weight.file) as meter:
            path = download(
                url, folder / weight.file, sha256 or weight.sha256 or pins.get(weight.name), progress=meter.show
            )
        digest = pin_or_check(path, weight.name)
        echo(f"{path}  sha256 {digest}")


class _Meter:
    """A progress bar on stderr: bytes, rate, time left."""

    def __init__(self, title: str):
        from tqdm import tqdm

        self._bar = tqdm(desc=title, unit="B", unit_scale=True, unit_divisor=1024, disable=None)

    def show(self, have: int, total: int | None) -> None:
        self._bar.total = total
        self._bar.update(have - self._bar.n)

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
