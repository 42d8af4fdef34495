"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path, file_okay=False)

image_cache = click.option(
    "--image-cache",
    type=_FOLDER,
    envvar="BEIT3_BENCH_IMAGE_CACHE",
    metavar="DIR",
    help="Keep preprocessed images here, and decode none that are here [default: none, or $BEIT3_BENCH_IMAGE_CACHE].",
)
features = click.option(
    "--features",
    type=_FOLDER,
    envvar="BEIT3_BENCH_FEATURES",
    metavar="DIR",
    help="Keep embeddings here, and compute none that are here [default: none, or $BEIT3_BENCH_FEATURES].",
)
