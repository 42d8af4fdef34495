"""``beit3-bench probe``: what frozen image features are good for: ImageNet's classes, or a linear layer that segments ADE20K."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import (
    compile_mode,
    compute_of,
    data_root,
    device,
    dtype,
    features,
    image_cache,
    quiet,
    seed,
    settle,
    workers,
)
from beit3_bench.harness.commands.run import BatchSize
from beit3_bench.harness.console import echo, headed

if TYPE_CHECKING:
    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.request import RunRequest

CLASSES, DENSE = "imagenet", "ade20k-seg"
OF_CLASSES = {"method": "--method", "kind": "--on", "k": "--k", "temperature": "--temperature", "strengths": "-C"}
OF_DENSE = {"iterations": "--iterations", "output": "--output", "overwrite": "--overwrite"}
"""Options of one task alone: parameter -> as it is spelt."""


@click.command("probe")
@click.option("--checkpoint", required=True, metavar="[FAMILY:]FILE", help="Checkpoint.")
@click.option("--task", type=click.Choice([CLASSES, DENSE]), default=CLASSES, show_default=True, help="What is probed.")
@data_root("ImageNet: train/ and val/; ADE20K: ADEChallengeData2016")
@click.option(
    "--method", type=click.Choice(["knn", "linear"]), default="knn", show_default=True, help="imagenet: classifier."
)
@click.option(
    "--on",
    "kind",
    type=click.Choice(["embedding", "patches"]),
    default="embedding",
    show_default=True,
    help="imagenet: embedding of a dual encoder, or mean patch token of any model with patches.",
)
@click.option("--k", type=click.IntRange(min=1), metavar="N", help="knn: neighbours [default: 20].")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    metavar="T",
    help="knn: of the votes [default: 0.07].",
)
@click.option(
    "-C",
    "strengths",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    metavar="C",
    help="linear: inverse regularisation; of several the best on a held-out tenth of train [default: 1 to 100,000].",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only N images of either split; of ImageNet evenly over the classes.",
)
@click.option(
    "--iterations",
    type=click.IntRange(min=1),
    metavar="N",
    help="ade20k-seg: steps of 16 images; another number is another protocol [default: 40,000].",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="ade20k-seg: run folder [default: below results/runs].",
)
@click.option("--overwrite", is_flag=True, help="ade20k-seg: discard an earlier run in the same folder.")
@click.option("--batch-size", type=BatchSize(), default="auto", show_default=True, help="Images per batch.")
@device
@dtype()
@compile_mode
@workers
@seed("Seed of the split and of the bootstrap.")
@click.option(
    "--preset",
    metavar="NAME",
    shell_complete=completion.presets,
    help="Architecture, where the checkpoint does not show it.",
)
@click.option("--image-size", type=click.IntRange(min=1), metavar="S", help="Input side [default: the checkpoint's].")
@image_cache
@features
@quiet
@click.option("--json", "as_json", is_flag=True, help="Print JSON: metrics as fractions.")
@click.pass_context
def command(
    context: click.Context,
    task: str,
    method: str,
    kind: str,
    k: int | None,
    temperature: float | None,
    strengths: tuple[float, ...],
    iterations: int | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """What frozen image features are good for. An interrupted probe goes on where it stopped if --features is given; under torchrun
    images are encoded in several processes.

    imagenet: how well they tell classes apart. knn: weighted votes of the 20 nearest training images (DINO's protocol). linear:
    logistic regression on features of unit length, no augmentation.

    ade20k-seg: a batch normalisation and a 1x1 convolution on patches of 512 pixels segment the images (DINOv2's linear protocol on
    whole images, without augmentation). Patches are kept below --features, 32 GB for a base model; the result is a run folder.
    """
    import json

    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.progress import Reporting
    from beit3_bench.harness.request import RunRequest

    check_options(context, OF_DENSE if task == CLASSES else OF_CLASSES, task)
    settle(context, task, settings)
    reporting = Reporting.unless(settings.pop("quiet"))
    name = DENSE if task == DENSE else "probe"
    request = RunRequest(task=name, compute=compute_of(settings), reporting=reporting, **settings)
    processes = Processes.start(request.compute.device)
    if task == DENSE:
        result, text = segment(request, iterations, processes)
    else:
        from beit3_bench.harness.probe import probe
        from beit3_bench.tasks.probing import Classifier

        result = probe(request, kind, Classifier(method, k, temperature, strengths), processes)
        text = describe(result) if processes.first else ""
    if not processes.first:
        return
    if as_json:
        echo(json.dumps(result, indent=2))
    else:
        echo(*headed(text))


def check_options(context: click.Context, others: Mapping[str, str], task: str) -> None:
    """Raise for options of the other task. others: parameter -> as it is spelt."""
    from click.core import ParameterSource

    given = [said for name, said in others.items() if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given:
        raise BenchError(f"{given[0]}: is no option of probe --task {task}; leave it out")


def segment(request: RunRequest, iterations: int | None, processes: Processes) -> tuple[Mapping[str, Any], str]:
    """The dense probe: its result, and the result as text; both empty on other processes than the first."""
    from beit3_bench.harness.dense_probe import dense_probe
    from beit3_bench.harness.record.report import result_as_text
    from beit3_bench.tasks.metrics.dense_probe import ITERATIONS, Schedule

    with redirect_stdout(sys.stderr):  # what libraries print; stdout is for results
        outcome = dense_probe(request, Schedule(iterations or ITERATIONS), processes)
    text = result_as_text(outcome.result, outcome.folder, outcome.was_finished) if processes.first else ""
    return outcome.result, text


def describe(result: Mapping[str, Any]) -> str:
    """The result as text."""
    from beit3_bench.harness.scoring import shown

    model = result["model"]
    facts = [f"{model['preset']}, {model['image_size']} px"]
    facts += [f"{result['subset']['limit']} images of each split only"] if result["subset"] else []
    facts += ["tiny world"] if result["world"] == "tiny" else []
    lines = [f"{result['probe']} probe on {result['features']} · {model['checkpoint']} ({', '.join(facts)})"]
    for name, metric in result["metrics"].items():
        value, *ci = (shown(v, metric["unit"], metric["decimals"]) for v in (metric["value"], *(metric["ci95"] or ())))
        lines.append(
            f"{'> ' if metric['headline'] else '  '}{name}  {value:>6}" + (f"  [{', '.join(ci)}]" if ci else "")
        )
    lines.append("  counts: " + ", ".join(f"{count:,} {name}" for name, count in result["counts"].items()))
    chosen = {name: value for name, value in result["chosen"].items() if not isinstance(value, dict)}
    lines.append("  with: " + ", ".join(f"{name} = {value:g}" for name, value in chosen.items()))
    lines.append(
        f"  features: {result['features_computed']:,} computed, {result['features_from_store']:,} from the store"
    )
    return "\n".join([*lines, *(f"  note: {note}" for note in result["notes"])])
