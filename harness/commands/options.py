"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.record.schema import COMPILE_MODES


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


compile_mode = click.option(
    "--compile",
    type=click.Choice(COMPILE_MODES),
    is_flag=False,
    flag_value="on",
    default="off",
    show_default=True,
    help="Compile the encoder's layers; auto: on a card, where so much is left to do that it pays.",
)


device = click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N.")
workers = click.option(
    "--workers", type=click.IntRange(min=0), metavar="N", help="Decoding processes [default: from the cores]."
)


quiet = click.option(
    "--quiet", is_flag=True, help="No progress: neither the bar nor, where stderr is no terminal, a line every 30 s."
)


def dtype(help: str = "Arithmetic of the network.") -> Callable:
    """``--dtype``, and what else its numbers do."""
    kinds = click.Choice(["fp32", "bf16", "fp16"])
    return click.option("--dtype", type=kinds, default="fp32", show_default=True, help=help)


def seed(help: str) -> Callable:
    """``--seed``, and what it decides."""
    return click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help=help)


def compute_of(settings: dict[str, Any]) -> Compute:
    """Take device, dtype, batch size, workers and compilation out of a command's parameters."""
    return Compute(**{f.name: settings.pop(f.name) for f in fields(Compute)})


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """``["key=value"]`` -> dict.

    Raises:
        BenchError: no equals sign, or a key that comes twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise BenchError(f"-o {pair!r}: expected KEY=VALUE, without spaces")
        if key in values:
            raise BenchError(f"-o {key}: given twice; give it once")
        values[key] = value
    return values
