"""A run on one screen: read -> load -> predict -> score -> write.

What can be checked without the model is checked before it is loaded; what is stored is never computed twice. `run`, `probe`,
`replay`, `evaluate` and the validation of a training go through these steps.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.family import Model
from beit3_bench.errors import BenchError, DeviceFailed
from beit3_bench.files import make_folder
from beit3_bench.garbage import collection_paused
from beit3_bench.harness.clock import Clock
from beit3_bench.harness.draw import estimate_of, note_of
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.evidence.leaks import find_leaks
from beit3_bench.harness.evidence.rescore import stored_rows, using_rows_of
from beit3_bench.harness.first_pass import Warned, first_pass
from beit3_bench.harness.models import Located, load_model, make_task
from beit3_bench.harness.reading import Prepared, prepare
from beit3_bench.harness.record import card
from beit3_bench.harness.record.fingerprints import CODE, same_data, short
from beit3_bench.harness.record.folder import RESULT, SUBMISSION
from beit3_bench.harness.record.image_contents import check_images, images_fingerprint
from beit3_bench.harness.record.schema import PREDICTED, TO_UPLOAD
from beit3_bench.harness.record.store import RunStore, check_folder, write_bare_result
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.scoring import metric_values
from beit3_bench.harness.second_pass import check_cost, check_second, look_again
from beit3_bench.harness.stopping import check_truth, check_width, settled
from beit3_bench.harness.termination import Terminated
from beit3_bench.harness.tracking import Progress, Trackers, scores_of
from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.scores import Scores

if TYPE_CHECKING:
    import torch

    from beit3_bench.harness.engine.predict import Throughput

NOT_INSTALLED = "not-installed"  # stands in place of the fingerprint in a folder's name


@dataclass
class Outcome:
    """A run's result (as in result.json; empty except on process 0), its folder, and whether it was there already."""

    result: dict[str, Any]
    folder: Path
    was_finished: bool = False


def run_task(
    request: RunRequest,
    task_class: type[Task],
    processes: Processes | None = None,
    expected: Mapping[str, str] | None = None,
    replayed: RunStore | None = None,
) -> Outcome:
    """Evaluate one checkpoint on one task, or go on where an earlier call was stopped.

    Args:
        expected: fingerprints that the run must have; the others may be anything.
        replayed: a run whose image files must be the ones that are there now.

    Raises:
        BenchError: bad input, an optional stack that is missing, or a run folder that cannot be used.
    """
    processes, clock = processes or Processes(), Clock()
    processes.together(lambda: request.compute.check(processes))
    located = processes.together(lambda: Located.of(request.checkpoint))
    prepared = processes.together(lambda: read(request, task_class, clock, located))
    model, device = processes.together(lambda: load(request, located, prepared, processes, clock))
    return run_model(request, located, prepared, model, device, processes, clock, expected, replayed)


def run_model(
    request: RunRequest,
    located: Located,
    prepared: Prepared,
    model: Model,
    device: torch.device,
    processes: Processes,
    clock: Clock,
    expected: Mapping[str, str] | None = None,
    replayed: RunStore | None = None,
) -> Outcome:
    """The rest of a run, from a model that has been loaded: rows -> scores -> result.json."""
    from beit3_bench.harness.engine.devices import mixed_devices

    processes.together(lambda: check_second(prepared.task, prepared.split, model))
    processes.on_first(
        lambda: check_cost(prepared.task, prepared.split, model, device, request.compute, processes.world)
    )
    with clock.stage("read"):
        fingerprints = card.fingerprints_of(prepared.task, request, model, prepared.split)
    processes.agree(fingerprints, "what the run stands on")
    if expected is not None:
        processes.together(lambda: check_expected(expected, fingerprints, request, located, prepared))
    if replayed is not None:
        processes.on_first(lambda: check_replayed(replayed, prepared))
    folder = request.output or default_folder(
        request.runs, request.task, prepared.split.name, named_stem(request, located), short(fingerprints)
    )
    config = card.resolved_config(prepared, request, located, model, fingerprints, str(device))
    warnings = warnings_of(request, prepared, located, model)
    if (mixed := mixed_devices(device, processes)) is not None:
        warnings.append(mixed)
    store = processes.on_first(lambda: RunStore.open(folder, config, request.overwrite))
    with store or RunStore.join(folder, processes.rank) as store, kept(folder):
        with clock.stage("read"):
            mend = "restore them, use another --output, or --overwrite"
            processes.on_first(lambda: check_images(prepared.split.examples, store.image_hashes(), folder, mend))
        finished = processes.on_first(lambda: settled(request, store))
        if processes.broadcast(finished is not None):
            return Outcome(dict(finished or {}), folder, was_finished=True)
        trackers = processes.on_first(lambda: trackers_of(request, folder, config, model, len(store.done()), device))
        with trackers or nullcontext():
            progress = Progress(trackers, len(store.done())) if trackers is not None else None
            sink = Warned(store, warnings if processes.first else [], progress)
            throughput, prepared = predict(request, prepared, model, sink, device, processes, clock)
            sink.say()
            written = processes.on_first(
                lambda: write(request, located, prepared, model, config, store, throughput, warnings, clock)
            )
            if trackers is not None and written is not None:
                trackers.log(scores_of(written), len(prepared.split.examples))
        return Outcome(written or {}, folder)


def trackers_of(
    request: RunRequest, folder: Path, config: Mapping[str, Any], model: Model, rows: int, device: torch.device
) -> Trackers | None:
    """What ``--log-to`` names, with the run's card; None where it names nothing. rows: that are there."""
    if not request.log_to:
        return None
    card = {**config, "protocol": model.card.protocol, "notes": model.notes}
    return Trackers(folder, request.log_to, card, rows, device.type == "cpu")


@contextmanager
def kept(folder: Path, what: str = "the rows so far are") -> Iterator[None]:
    """Let an interruption, or the failure of a card, say how to go on. what: is kept."""
    try:
        yield
    except (KeyboardInterrupt, Terminated, DeviceFailed) as interrupt:
        interrupt.add_note(f"{what} kept in {folder}; give the same command again to go on from there")
        raise


# ---- the steps ------------------------------------------------------------------------------------------------------------


def read(request: RunRequest, task_class: type[Task], clock: Clock, located: Located | None = None) -> Prepared:
    """The task and its split, and whether the run folder can be one. located: the model, whose family may word the texts."""
    if request.output is not None:
        check_folder(request.output)
    with clock.stage("read"):
        task = make_task(task_class, request, located)
        check_width(request, task)
        prepared = prepare(task, request.split, request.limit)
        if request.until_ci is not None:
            check_truth(prepared.split, task)
        return prepared


def load(
    request: RunRequest, located: Located, prepared: Prepared, processes: Processes, clock: Clock
) -> tuple[Model, torch.device]:
    """The model, on the CPU, and the device that it will compute on."""
    import torch

    from beit3_bench.harness.engine.devices import resolve_device

    device = resolve_device(request.compute.device, processes, request.compute.dtype)
    torch.manual_seed(request.seed)
    with clock.stage("load"):
        return load_model(located, prepared.task, prepared.split, request), device


def predict(
    request: RunRequest,
    prepared: Prepared,
    model: Model,
    store: Warned,
    device: torch.device,
    processes: Processes,
    clock: Clock,
) -> tuple[Throughput, Prepared]:
    """Make the rows that are not there yet, on all processes: take them from the feature store, or compute them.

    Returns:
        What it took, and what is to be scored: all that was prepared, or the part after which ``--until-ci`` stopped.
    """
    from beit3_bench.harness.engine.cost import energy_counter

    task, split = prepared.task, prepared.split
    counter = energy_counter(device) if processes.world == 1 else None
    before = counter.joules() if counter is not None else 0.0
    first = None
    if not model.all_pairs:
        first, prepared = first_pass(request, prepared, model, store, device, processes, clock)
    later = look_again(request, task, split, model, store.store, store, device, processes)
    total = later if first is None else first if later is None else first.followed_by(later)
    assert total is not None
    if counter is not None:
        with suppress(OSError):
            total.joules, total.energy_source = counter.joules() - before, counter.source
    return total, prepared


def score(prepared: Prepared, store: RunStore, seed: int, clock: Clock) -> card.Scored:
    """Score the folder's rows, once they are exactly the split's; write submission files where the task has any."""
    task, split = prepared.task, prepared.split
    estimate = estimate_of(prepared.subset)
    with clock.stage("score"), collection_paused():
        rows = stored_rows(store, task, split, part=estimate is not None)
        with using_rows_of(task, store):
            written = submit(task, rows, split, store.folder / SUBMISSION)
        if written and all(example.target is None for example in split.examples):
            return unscored(task, split, written)
        with using_rows_of(task, store):
            scores = task.score(rows, split)
    if estimate is not None:
        scores.headline = task.headline(prepared.whole).name  # which a part alone could take for another
        scores.notes.insert(0, note_of(estimate))
    with clock.stage("intervals"):
        metrics, notes = metric_values(task, scores, seed, estimate)
    return card.Scored(scores, metrics, [*scores.notes, *notes], "scored")


def submit(task: Task, rows: Mapping[str, Row], split: Split, folder: Path) -> list[Path]:
    """Write submission files into a folder, which is made anew; it stays where the task has any."""
    shutil.rmtree(folder, ignore_errors=True)  # of a scoring that was killed
    make_folder(folder)
    written = task.submission(rows, split, folder)
    if not any(folder.iterdir()):
        folder.rmdir()
    return written


def unscored(task: Task, split: Split, written: Sequence[Path]) -> card.Scored:
    """Of a split whose truth is not public, or not there."""
    files = ", ".join(f"{SUBMISSION}/{path.name}" for path in written)
    note, status = f"the truth of this split is not public; upload {files} to the official server", TO_UPLOAD
    if task.own_data:
        note, status = f"the data holds no truth, so nothing is scored; {files} holds what the model said", PREDICTED
    return card.Scored(Scores({}, {"samples": len(split.examples)}), {}, [note], status)


def write(
    request: RunRequest,
    located: Located,
    prepared: Prepared,
    model: Model,
    config: Mapping[str, Any],
    store: RunStore,
    throughput: Throughput,
    warnings: Sequence[str],
    clock: Clock,
) -> dict[str, Any]:
    """Score, and write result.json; returns it as it is read back."""
    task, split = prepared.task, prepared.split
    scored = score(prepared, store, request.seed, clock)
    later = [*warnings[len(prepared.notes) :], *model.assumptions]
    scored.notes = [*prepared.notes, *scored.notes, *later]
    result = card.result(prepared, request, model, config, scored)
    images = images_fingerprint(split.examples, store.image_hashes(), request.data_root, store.folder)
    result["provenance"]["fingerprints"] = {**config["fingerprints"], **images}
    result["timing"] = card.timing(clock.seconds, throughput, time.perf_counter() - clock.started)
    store.write_result(result, scored.scores)
    if request.output is None:
        forget_not_installed(request.runs, task.name, split.name, located)
    return store.result()


# ---- what is checked, and where it goes -----------------------------------------------------------------------------------


def warnings_of(request: RunRequest, prepared: Prepared, located: Located, model: Model) -> list[str]:
    """What a reader of the result must know: of the data (first), of the weights, and of what they have seen."""
    leaks = find_leaks(
        prepared.task.name,
        prepared.split.name,
        located.path,
        model.metadata,
        model.card.trained_on,
        model.card.family,
    )
    corrupted = [request.corruption.note] if request.corruption else []
    return [*prepared.notes, *corrupted, *model.notes, *leaks]


def check_expected(
    expected: Mapping[str, str],
    fingerprints: Mapping[str, str],
    request: RunRequest,
    located: Located,
    prepared: Prepared,
) -> None:
    """Raise if an input is not the one that is expected: names it and where it lies."""
    places: dict[str, Any] = {"checkpoint": located.path, "data": request.data_root, "tokenizer": request.tokenizer}
    places |= {f"-o {name.replace('-', '_')}": Path(value) for name, value in request.options.items()}
    changed = [n for n, value in expected.items() if n not in ("data", CODE) and fingerprints.get(n) != value]
    if "data" in expected and not same_data(expected, prepared.split.examples, request.data_root):
        changed.append("data")
    if changed:
        named = ", ".join(f"{name} ({places.get(name)})" for name in changed)
        raise BenchError(f"not what the run saw: {named}; restore it, or give the right place")


def check_replayed(replayed: RunStore, prepared: Prepared) -> None:
    """Raise if an image file is not the one that a run was made from."""
    mend = "restore them, or give the right place"
    check_images(prepared.split.examples, replayed.image_hashes(), replayed.folder, mend)


def default_folder(runs: Path, task: str, split: str, checkpoint: str, tail: str) -> Path:
    """``<task>-<split>-<checkpoint>-<tail>`` below the folder of runs."""
    return runs / f"{task}-{split}-{checkpoint}-{tail}"


def named_stem(request: RunRequest, located: Located) -> str:
    """The checkpoint in the name of a run's folder, and what images were corrupted with."""
    return located.stem if request.corruption is None else f"{located.stem}-{request.corruption.slug}"


def is_not_installed(error: BenchError) -> bool:
    """Whether an error came from `requires`, that is, from an optional stack that does not import."""
    return isinstance(error.__cause__, ImportError)


def not_installed(request: RunRequest, task_class: type[Task], error: BenchError) -> Outcome:
    """Record that a task could not run because an optional stack is missing; its install line is the note."""
    located = Located.of(request.checkpoint)
    split = task_class.split_of(request.split, request.data_root)
    folder = request.output or default_folder(request.runs, task_class.name, split, located.stem, NOT_INSTALLED)
    result = card.empty_result(task_class, split, request, located, str(error))
    write_bare_result(folder, result)
    return Outcome(result, folder)


def forget_not_installed(runs: Path, task: str, split: str, located: Located) -> None:
    """Remove the record of an earlier attempt without the optional stack, now that the task has run."""
    folder = default_folder(runs, task, split, located.stem, NOT_INSTALLED)
    if folder.is_dir():
        (folder / RESULT).unlink(missing_ok=True)
        with suppress(OSError):  # somebody keeps a file of his own there
            folder.rmdir()
