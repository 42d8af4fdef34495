"""One `finetune`: the folder, its lock, the processes' agreement, the training and its summary."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.files import clear_parts, make_folder, refuse_link, write_atomic
from beit3_bench.harness.console import echo
from beit3_bench.harness.engine.devices import mixed_devices, resolve_device
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.record.provenance import provenance
from beit3_bench.harness.tracking import EVENTS, IDS, Trackers, forget, installed
from beit3_bench.harness.training.journal import CURVES, LOG, VALIDATION
from beit3_bench.harness.training.loop import Plan, TrainingLoop, place_companions
from beit3_bench.harness.training.sharding import choose_parallel
from beit3_bench.harness.training.start import FinetuneRequest, Origin, Start, prepare
from beit3_bench.harness.training.state import BEST, LAST, STATE, check_best
from beit3_bench.locks import Held, hold
from beit3_bench.tasks.contract import Task

RUNS = Path("results") / "runs"
CONFIG, LOCK = "config.json", "lock"


def default_folder(task: str, recipe: str) -> Path:
    """``results/runs/finetune-<task>-<recipe>`` below the current folder."""
    return RUNS / f"finetune-{task}-{recipe}"


@contextmanager
def open_folder(folder: Path, resume: bool, overwrite: bool, companions: Iterable[str] = ()) -> Iterator[None]:
    """Make the folder and hold its lock; an earlier training in it must be meant.

    companions: names of the files that get there beside the checkpoints.

    Raises:
        BenchError: another process trains here; an earlier training and neither resume nor overwrite; nothing to resume; a
            link where a file of ours belongs.
    """
    if resume and not (folder / STATE).is_file():
        raise BenchError(
            f"{folder / STATE}: no training to resume; leave out --resume, or give its folder with --output"
        )
    make_folder(folder)
    for name in (STATE, LAST, BEST, LOG, VALIDATION, CURVES, CONFIG, EVENTS, IDS, *companions):
        refuse_link(folder / name)
    try:
        lock = hold(folder / LOCK)
    except Held as holder:
        raise BenchError(f"{folder}: {holder} is training here; wait for it, or give another --output") from holder
    try:
        clear_parts(folder)
        if not resume:
            _clear(folder, overwrite)
        yield
    finally:
        os.close(lock)


def _clear(folder: Path, overwrite: bool) -> None:
    made = [folder / name for name in (STATE, LAST, BEST, LOG, VALIDATION, CURVES, CONFIG) if (folder / name).exists()]
    strange = [p.name for p in folder.iterdir() if p.name != LOCK] if not made else []
    if strange:
        raise BenchError(
            f"{folder}: holds something else ({', '.join(sorted(strange)[:3])}); give a new folder with --output"
        )
    if made and not overwrite:
        raise BenchError(
            f"{folder}: holds a training already; go on with --resume, discard it with --overwrite, or give another --output"
        )
    for path in made:
        path.unlink()
    forget(folder)


def config_of(request: FinetuneRequest, start: Start, plan: Plan, world: int) -> dict[str, Any]:
    """Everything that was decided, and where it ran: plain values, which stand in config.json."""
    config = {
        "task": start.task.name,
        "preset": start.preset,
        "recipe": start.recipe.to_dict(),
        "model": start.training.settings,
        "preprocessing": start.training.preprocessing,
        "source": start.training.start,
        "allowed": start.training.new,
        "data_root": str(request.data_root.absolute()),
        "options": dict(request.options),
        "dtype": request.dtype,
        "device": request.device,
        "processes": world,
        "parallel": choose_parallel(request.parallel) if world > 1 else None,
        "accumulate": plan.division.accumulate,
        "steps": plan.steps,
        "steps_per_epoch": plan.batches.steps_per_epoch,
        "training_samples": len(start.training_split.examples),
        "validation_samples": len(start.validation_split.examples),
        "seed": request.seed,
        "fingerprints": start.fingerprints,
        "notes": start.notes,
        "provenance": provenance(),
    }
    return json.loads(json.dumps(config, default=str))


def settings_of(request: FinetuneRequest, start: Start, folder: Path) -> dict[str, str]:
    """What must be the same on all processes of one training, also where it may change between resumes."""
    recipe = {f"recipe {key}": str(value) for key, value in start.recipe.to_dict().items()}
    return {
        **start.fingerprints,
        **recipe,
        "--seed": str(request.seed),
        "--output": str(folder),
        "--resume": str(request.resume),
        "--overwrite": str(request.overwrite),
        "--parallel": choose_parallel(request.parallel),
        "--device": request.device.partition(":")[0],
    }


def finetune(
    request: FinetuneRequest,
    task_class: type[Task],
    processes: Processes | None = None,
    origin: Origin | None = None,
) -> dict[str, Any]:
    """Fine-tune, or go on with it.

    origin: of the request, where it was found before.

    Returns:
        ``{"task", "folder", "checkpoint", "steps", "best", "seconds", ...}``; ``checkpoint`` is the best one.

    Raises:
        BenchError: bad input, processes that see different things, a loss that is not finite.
    """
    processes = processes or Processes()
    processes.together(lambda: resolve_device(request.device, processes, request.dtype))
    start = processes.together(lambda: prepare(request, task_class, origin=origin))
    for line in start.left_out() if processes.first else ():
        echo(f"warning: {line}", err=True)
    folder = request.output or default_folder(start.task.name, request.recipe or start.preset)
    processes.agree(settings_of(request, start, folder), "settings")
    held = open_folder(folder, request.resume, request.overwrite, start.training.companions)
    processes.on_first(held.__enter__)
    try:
        loop = processes.together(lambda: TrainingLoop(request, start, folder, processes))
        if (mixed := mixed_devices(loop.device, processes)) is not None:
            start.notes.append(mixed)
        config = config_of(request, start, loop.plan, processes.world)
        if request.resume:
            loop.restore()
        else:
            processes.on_first(lambda: write_atomic(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode()))
            processes.on_first(lambda: place_companions(start.training, folder))
        names = request.log_to or installed()
        trackers = processes.on_first(lambda: Trackers(folder, names, config, loop.step, loop.device.type == "cpu"))
        with trackers or nullcontext(), processes.watching():
            summary = loop.run(trackers)
        processes.on_first(lambda: check_best(folder, summary["best"]))
    finally:
        if processes.first:
            held.__exit__(None, None, None)
    where = {"task": start.task.name, "folder": str(folder), "checkpoint": str(folder / BEST)}
    return {**where, **summary, "notes": start.notes}
