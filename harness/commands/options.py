"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.console import echo
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


device = click.option(
    "--device",
    default="auto",
    envvar="BEIT3_BENCH_DEVICE",
    show_default=True,
    metavar="NAME",
    help="auto, cpu, cuda, cuda:N or mps.",
)
workers = click.option(
    "--workers",
    envvar="BEIT3_BENCH_WORKERS",
    type=click.IntRange(min=0),
    metavar="N",
    help="Decoding processes [default: from the cores].",
)


class _Output(click.Option):
    """An option that had another name once, which still works and is not shown."""

    def __init__(self, *declared: Any, former: Sequence[str] = (), **settings: Any):
        super().__init__(*declared, **settings)
        self.former = list(former)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        shown, self.opts = self.opts, [*self.opts, *self.former]
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts = shown


def output(help: str, former: str | None = None, metavar: str = "DIR", **settings: Any) -> Callable:
    """``--output``: where a verb writes what it makes. former: the name of the option in earlier versions."""
    names = [former] if former else []
    kind = click.Path(path_type=Path)
    return click.option("--output", cls=_Output, former=names, type=kind, metavar=metavar, help=help, **settings)


quiet = click.option(
    "--quiet", is_flag=True, help="No progress: neither the bar nor, where stderr is no terminal, a line every 30 s."
)


MIRROR_VARIABLE = "BEIT3_BENCH_MIRROR"
mirror = click.option(
    "--base-url",
    envvar=MIRROR_VARIABLE,
    metavar="URL",
    help=f"Mirror: a folder that has the files under their names [env: {MIRROR_VARIABLE}].",
)


log_to = click.option(
    "--log-to",
    type=click.Choice(["tensorboard", "wandb", "mlflow"]),
    multiple=True,
    help="Log what happens there, too; may be given several times.",
)


def dtype(help: str = "Arithmetic of the network.") -> Callable:
    """``--dtype``, and what else its numbers do."""
    kinds = click.Choice(["fp32", "bf16", "fp16"])
    return click.option("--dtype", type=kinds, default="fp32", envvar="BEIT3_BENCH_DTYPE", show_default=True, help=help)


def seed(help: str) -> Callable:
    """``--seed``, and what it decides."""
    return click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help=help)


def data_root(help: str) -> Callable:
    """``--data-root`` of a verb that does one task."""
    folder = click.Path(path_type=Path)
    where = "[default: $BEIT3_BENCH_DATA_ROOT, beit3-bench.toml]"
    return click.option("--data-root", type=folder, metavar="DIR", help=f"{help}, or of several data sets {where}.")


def settle(context: click.Context, task: str, settings: dict[str, Any]) -> None:
    """Put into a verb's parameters what the environment and beit3-bench.toml say: the data root of its task, device, ...

    Each is told on stderr.
    """
    from beit3_bench.backbones.environment import announced
    from beit3_bench.harness.settings.choices import Choices, one_data_root

    choices = Choices.of(context)
    settings["data_root"] = Path(one_data_root(choices, task).value)
    choices.settle(settings)
    if not announced("RANK"):
        for line in choices.spoken:
            echo(line, err=True)


def runs_folder(context: click.Context, name: str) -> Path:
    """The folder of run folders that a verb reads: as its option says, else where `run` makes them."""
    from click.core import ParameterSource

    from beit3_bench.harness.settings.choices import Choices

    choice = None
    if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
        choice = Choices.of(context).runs_folder()
    return context.params[name] if choice is None else choice.value


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
