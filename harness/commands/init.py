"""``beit3-bench init``: write a commented beit3-bench.toml."""

from __future__ import annotations

from pathlib import Path

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.console import echo


@click.command("init")
@click.option(
    "--user", is_flag=True, help="The user's own (~/.config/beit3-bench/config.toml), instead of this folder's."
)
def command(user: bool) -> None:
    """Write a beit3-bench.toml that explains itself: places of data and checkpoints, device, caches, output.

    A file that is there is never replaced.
    """
    import os

    from beit3_bench.files import make_folder, write_atomic
    from beit3_bench.harness.settings.files import NAME, TEMPLATE, user_file

    file = user_file(os.environ) if user else Path(NAME)
    if file is None:
        raise BenchError("--user: no home folder is known; set HOME, or XDG_CONFIG_HOME")
    if os.path.lexists(file):
        raise BenchError(f"{file}: is there already, and is not replaced; edit it, or move it away")
    make_folder(file.parent)
    write_atomic(file, TEMPLATE.read_bytes())
    echo(file)
