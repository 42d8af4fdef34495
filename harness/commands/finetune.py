"""``beit3-bench finetune``: fine-tune a checkpoint on a task."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from beit3_bench.errors import BenchError
from beit3_bench.harness.commands import completion
from beit3_bench.harness.commands.options import (
    data_root,
    device,
    dtype,
    image_cache,
    log_to,
    parse_pairs,
    quiet,
    settle,
    workers,
)
from beit3_bench.harness.console import echo

if TYPE_CHECKING:
    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.training.start import FinetuneRequest, Origin
    from beit3_bench.tasks.contract import Task

FILE = click.Path(path_type=Path)


@click.command("finetune")
@click.option(
    "--task", required=True, metavar="T", shell_complete=completion.tasks, help="Task name (see: beit3-bench tasks)."
)
@data_root("Folder of the task's data")
@click.option(
    "--preset",
    metavar="[FAMILY:]NAME",
    shell_complete=completion.presets,
    help="tiny, base, large or giant [default: the checkpoint's].",
)
@click.option("--recipe", metavar="NAME", help="Section of the task's recipe [default: the preset].")
@click.option("--checkpoint", metavar="[FAMILY:]FILE", help="Pretrained weights to start from.")
@click.option("--from-scratch", is_flag=True, help="Start from random weights, whatever the preset.")
@click.option(
    "--tokenizer",
    type=FILE,
    envvar="BEIT3_BENCH_TOKENIZER",
    metavar="FILE",
    help="SentencePiece model [default: beit3.spm beside checkpoint or data].",
)
@click.option("--output", type=FILE, metavar="DIR", help="Folder of the training [default: below results/runs].")
@device
@dtype("Arithmetic of the network; weights stay float32.")
@click.option(
    "--parallel",
    type=click.Choice(["ddp", "fsdp"]),
    help="How several processes share the work: whole copies, or shards of weights and optimizer [default: ddp].",
)
@workers
@image_cache
@click.option(
    "--seed",
    type=int,  # of either sign, as trainings that are gone on with may have
    default=0,
    show_default=True,
    help="Decides order, augmentation and new weights.",
)
@click.option("--resume", is_flag=True, help="Go on from the last saved state in the folder.")
@click.option("--overwrite", is_flag=True, help="Discard an earlier training in the folder.")
@click.option(
    "--dry-run", is_flag=True, help="Print devices, batches, steps, parameter groups and memory; train nothing."
)
@click.option(
    "-o", "options", multiple=True, metavar="KEY=VALUE", help="A value of the recipe, or an option of the task."
)
@log_to
@quiet
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.pass_context
def command(context: click.Context, options: Sequence[str], dry_run: bool, as_json: bool, **settings: Any) -> None:
    """Fine-tune with the published recipe of a task and preset.

    \b
    beit3-bench finetune --task coco-retrieval --preset base --checkpoint beit3_base_itc_patch16_224.pth \\
        --tokenizer beit3.spm --data-root /data/coco --dtype bf16
    accelerate launch -m beit3_bench.harness finetune ...     (several processes or machines)
    """
    import json

    from beit3_bench.harness.engine.processes import Processes
    from beit3_bench.harness.progress import Reporting
    from beit3_bench.harness.tracking import check_trackers
    from beit3_bench.harness.training.engines import EngineWatcher, check_processes, start_engine
    from beit3_bench.harness.training.start import FinetuneRequest, find_origin
    from beit3_bench.tasks.registry import get_task

    task_class = get_task(settings["task"])
    if task_class.own_data:
        raise BenchError(
            f"task {task_class.name} reads data of one's own, and is not trained on; fine-tune for {task_class.asks_as}, and evaluate "
            f"that checkpoint with --task {task_class.name}"
        )
    settle(context, task_class.name, settings)
    processes = Processes.start(settings["device"])
    settings["reporting"] = Reporting.unless(settings.pop("quiet"))
    if not dry_run:
        processes.on_first(lambda: check_trackers(settings["log_to"]))

    def asked() -> tuple[type[Task], FinetuneRequest, Origin]:
        task_class = get_task(settings["task"])
        request = FinetuneRequest(options=parse_pairs(options), **settings)
        origin = find_origin(request, task_class)
        if task_class.ability in origin.family.engines:
            check_processes(request, processes.world, dry_run)
        return task_class, request, origin

    task_class, request, origin = processes.together(asked)
    with redirect_stdout(sys.stderr):  # what libraries print; stdout is for results
        if task_class.ability in origin.family.engines:
            watcher = EngineWatcher(request, processes)
            engine = processes.together(lambda: start_engine(request, task_class, origin, processes, watcher))
            facts = engine.plan() if dry_run else watcher.watch(engine)
            text = json.dumps(facts, indent=2) if dry_run or as_json else describe(facts)
        elif dry_run:
            facts = plan_only(request, task_class, processes, origin)
            text = json.dumps(facts, indent=2)
            if not as_json:
                from beit3_bench.harness.training.dryrun import describe_dry_run

                text = describe_dry_run(facts)
        else:
            from beit3_bench.harness.training.session import finetune

            summary = finetune(request, task_class, processes, origin)
            text = json.dumps(summary, indent=2) if as_json else describe(summary)
    if processes.first:
        echo(text)


def plan_only(
    request: FinetuneRequest, task_class: type[Task], processes: Processes, origin: Origin | None = None
) -> dict[str, Any]:
    """The facts of a dry run."""
    from beit3_bench.harness.engine.devices import resolve_device
    from beit3_bench.harness.training.dryrun import dry_run
    from beit3_bench.harness.training.loop import Plan
    from beit3_bench.harness.training.sharding import choose_parallel
    from beit3_bench.harness.training.start import prepare

    start = processes.together(lambda: prepare(request, task_class, shapes_only=True, origin=origin))
    plan = Plan.of(start.recipe, len(start.training_split.examples), processes.world, request.seed)
    device, parallel = resolve_device(request.device, processes, request.dtype), choose_parallel(request.parallel)
    return dry_run(start, plan, device, processes.world, request.dtype, parallel)


def describe(summary: dict[str, Any]) -> str:
    """A line on what came out, and one for each note on the data."""
    best = summary["best"]
    line = (
        f"{summary['task']}: {summary['steps']} steps in {summary['seconds']:.0f} s; best {best['metric']} "
        f"{best['value']:.4g} on the validation split at step {best['step']}; checkpoint: {summary['checkpoint']}"
    )
    return "\n".join([line, *(f"note: {note}" for note in summary.get("notes", ()))])
