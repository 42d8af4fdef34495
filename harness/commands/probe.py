"""``beit3-bench probe``: k-nearest neighbours or a linear classifier on frozen image features of ImageNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

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


@click.command("probe")
@click.option("--checkpoint", required=True, metavar="[FAMILY:]FILE", help="Checkpoint.")
@data_root("ImageNet: train/ and val/")
@click.option("--method", type=click.Choice(["knn", "linear"]), default="knn", show_default=True, help="Classifier.")
@click.option(
    "--on",
    "kind",
    type=click.Choice(["embedding", "patches"]),
    default="embedding",
    show_default=True,
    help="embedding: of a dual encoder; patches: mean patch token of any BEiT-3.",
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
    "--limit", type=click.IntRange(min=1), metavar="N", help="Only N images of either split, evenly over the classes."
)
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
    method: str,
    kind: str,
    k: int | None,
    temperature: float | None,
    strengths: tuple[float, ...],
    as_json: bool,
    **settings: Any,
) -> None:
    """How well frozen image features tell ImageNet's classes apart.

    knn: weighted votes of the 20 nearest training images (DINO's protocol). linear: logistic regression on features of
    unit length, no augmentation. An interrupted run goes on where it stopped if --features is given. Under torchrun the
    images are encoded in several processes.
    """
    import json

    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.probe import probe
    from beit3_bench.harness.progress import Reporting
    from beit3_bench.harness.request import RunRequest
    from beit3_bench.tasks.probing import Classifier

    settle(context, "imagenet", settings)
    reporting = Reporting.unless(settings.pop("quiet"))
    request = RunRequest(task="probe", compute=compute_of(settings), reporting=reporting, **settings)
    processes = Processes.start(request.compute.device)
    result = probe(request, kind, Classifier(method, k, temperature, strengths), processes)
    if not processes.first:
        return
    if as_json:
        echo(json.dumps(result, indent=2))
    else:
        echo(*headed(describe(result)))


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
