"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click


def _kept(name: str, variable: str, help: str) -> Callable:
    """A folder that outlives the command, named by an option or by an environment variable."""
    folder = click.Path(path_type=Path, file_okay=False)
    return click.option(
        name, type=folder, envvar=variable, metavar="DIR", help=f"{help} [default: none, or ${variable}]."
    )


image_cache = _kept(
    "--image-cache", "BEIT3_BENCH_IMAGE_CACHE", "Keep preprocessed images here, and decode none that are here"
)
features = _kept("--features", "BEIT3_BENCH_FEATURES", "Keep embeddings here, and compute none that are here")
