"""One evaluation: examples -> checkpoint -> rows -> scores -> result.json.

What can be checked without the model is checked before it is loaded; what is stored is never computed twice.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.file_kinds import checkpoint_file
from beit3_bench.errors import BenchError
from beit3_bench.files import make_folder
from beit3_bench.harness.console import echo
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.evidence.leaks import find_leaks
from beit3_bench.harness.evidence.rescore import stored_rows, using_stored_rows
from beit3_bench.harness.inputs import (
    RunRequest,
    check_tokenizer,
    choose_split,
    find_tokenizer,
    first_examples,
    load_model,
    open_image_cache,
    read_split,
    tokenizer_file,
)
from beit3_bench.harness.record import card
from beit3_bench.harness.record.fingerprints import CODE, same_data, short
from beit3_bench.harness.record.image_contents import check_images, images_fingerprint
from beit3_bench.harness.record.released import data_notes, read_data
from beit3_bench.harness.record.results import read_result
from beit3_bench.harness.record.store import RESULT, SUBMISSION, RunStore, check_folder, write_bare_result
from beit3_bench.harness.reuse.features import Features, KeepingSink
from beit3_bench.harness.scoring import metric_values
from beit3_bench.tasks.contract import Example, Row, Task
from beit3_bench.tasks.scores import Scores

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.beit3.checkpoint import LoadedModel
    from beit3_bench.backbones.beit3.tokenizer import Tokenizer
    from beit3_bench.harness.engine.predict import Throughput
    from beit3_bench.harness.record.schema import ReadData

RUNS = Path("results") / "runs"
NOT_INSTALLED = "not-installed"  # stands in place of the fingerprint in a folder's name


@dataclass(frozen=True)
class Prepared:
    """What is known before the checkpoint is loaded: the task, its examples, and what a reader must know of the data.

    subset, data: as in `schema.Result`.  notes: lines on the data, such as images that were left out.
    """

    task: Task
    split: str
    examples: list[Example]
    subset: dict[str, int] | None
    data: ReadData | None
    notes: list[str]
    tokenizer: Tokenizer | None


@dataclass
class Outcome:
    """A run's result (as in result.json; empty except on process 0), its folder, and whether it was there already."""

    result: dict[str, Any]
    folder: Path
    was_finished: bool = False


class Warned:
    """A run folder; with its first new rows the warnings are printed, so that an input that is refused is one line alone."""

    def __init__(self, store: RunStore, warnings: Sequence[str]):
        self.store, self.warnings = store, list(warnings)

    def done(self) -> set[str]:
        return self.store.done()

    def append(self, rows: Iterable[Row]) -> None:
        self.store.append(rows)
        self.say()

    def say(self) -> None:
        """Print what has not been printed."""
        for warning in self.warnings:
            echo(f"warning: {warning}", err=True)
        self.warnings.clear()


class Clock:
    """Seconds per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


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
    processes = processes or Processes()
    clock = Clock()
    started = time.perf_counter()
    request = processes.together(lambda: replace(request, checkpoint=checkpoint_file(request.checkpoint)))

    def prepare() -> Prepared:
        if request.output is not None:
            check_folder(request.output)
        with clock.stage("read"):
            task = task_class(request.data_root, request.options)
            split = choose_split(task, request.split)
            whole = read_split(task, split)
            data = read_data(task, split, whole)
            examples, subset = first_examples(task, whole, request.limit)
            notes = data_notes(task, split, data)
        return Prepared(task, split, examples, subset, data, notes, find_tokenizer(task, request))

    prepared = processes.together(prepare)
    task, split, examples, tokenizer = prepared.task, prepared.split, prepared.examples, prepared.tokenizer

    def load() -> tuple[LoadedModel, torch.device]:
        import torch

        from beit3_bench.harness.engine.devices import resolve_device

        device = resolve_device(request.device, processes)
        torch.manual_seed(request.seed)
        with clock.stage("load"):
            loaded = load_model(task, request)
        with clock.stage("read"):
            task.bind(loaded.preprocessing, tokenizer)
            task.image_cache = open_image_cache(request.image_cache, loaded.preprocessing)
            task.tokenize(examples)
        loaded.assumptions += check_tokenizer(tokenizer, tokenizer_file(task, request), loaded, examples)
        return loaded, device

    loaded, device = processes.together(load)
    with clock.stage("read"):
        fingerprints = card.fingerprints_of(task, request, loaded, tokenizer, examples)
    processes.agree(fingerprints, "what the run stands on")
    processes.together(lambda: check_expected(expected or {}, fingerprints, request, examples))
    if replayed is not None:
        hashes = replayed.image_hashes()
        processes.on_first(
            lambda: check_images(examples, hashes, replayed.folder, "restore them, or give the right place")
        )
    setting = request.setting or card.setting_of(task.name, request.checkpoint, loaded.metadata)
    folder = request.output or default_folder(task.name, split, request.checkpoint, short(fingerprints))
    config = card.resolved_config(task, split, request, loaded, setting, prepared.subset, fingerprints)
    config["device"] = str(device)
    warnings = [
        *prepared.notes,
        *loaded.report.notes,
        *find_leaks(task.name, split, request.checkpoint, loaded.metadata),
    ]
    store = processes.on_first(lambda: RunStore.open(folder, config, request.overwrite))
    with store or RunStore.join(folder, processes.rank) as store:
        with clock.stage("read"):
            mend = "restore them, use another --output, or --overwrite"
            processes.on_first(lambda: check_images(examples, store.image_hashes(), folder, mend))
        if processes.broadcast(store.finished):
            finished = processes.on_first(lambda: dict(read_result(folder / RESULT)))
            return Outcome(finished or {}, folder, was_finished=True)
        warned = Warned(store, warnings if processes.first else [])
        throughput = predict(task, loaded, examples, warned, request, device, processes, clock)
        warned.say()

        def conclude() -> dict[str, Any]:
            with clock.stage("score"):
                verdict = score_rows(task, store, examples, request.seed)
            later = [*warnings[len(prepared.notes) :], *loaded.assumptions]
            verdict.notes = [*prepared.notes, *verdict.notes, *later]
            result = card.result(task, request, loaded, config, verdict, examples, prepared.data)
            images = images_fingerprint(examples, store.image_hashes(), request.data_root, folder)
            result["provenance"]["fingerprints"] = {**fingerprints, **images}
            result["timing"] = card.timing(clock.seconds, throughput, time.perf_counter() - started)
            store.write_result(result, verdict.scores)
            forget_not_installed(request, task.name, split)
            return store.result()

        return Outcome(processes.on_first(conclude) or {}, folder)


def check_expected(
    expected: Mapping[str, str], fingerprints: Mapping[str, str], request: RunRequest, examples: Sequence[Example]
) -> None:
    """Raise if an input is not the one that is expected: names it and where it lies."""
    places = {"checkpoint": request.checkpoint, "data": request.data_root, "tokenizer": request.tokenizer}
    places |= {f"-o {name.replace('-', '_')}": Path(value) for name, value in request.options.items()}
    changed = [n for n, value in expected.items() if n not in ("data", CODE) and fingerprints.get(n) != value]
    if "data" in expected and not same_data(expected, examples, request.data_root):
        changed.append("data")
    if changed:
        told = ", ".join(f"{name} ({places.get(name)})" for name in changed)
        raise BenchError(f"not what the run saw: {told}; restore it, or give the right place")


def predict(
    task: Task,
    loaded: LoadedModel,
    examples: Sequence[Example],
    store: Warned,
    request: RunRequest,
    device: torch.device,
    processes: Processes,
    clock: Clock,
) -> Throughput:
    """Make the rows that are not there yet, on all processes: take them from the feature store, or compute them."""
    from beit3_bench.backbones.beit3.decoding_graphs import keep_graphs
    from beit3_bench.backbones.beit3.models import Captioning
    from beit3_bench.backbones.packing import pack_weights
    from beit3_bench.harness.engine.predict import RowSink, Throughput, predict_all

    if device.type == "cpu" and request.compile != "on":
        pack_weights(loaded.model)
    if device.type == "cuda" and isinstance(loaded.model, Captioning):
        keep_graphs(loaded.model)
    sink: RowSink = store
    features, served = None, 0
    if request.features is not None and task.feature is not None:
        with clock.stage("features"):
            features, served = serve(task, loaded, examples, store.store, request, device, processes)
        sink = KeepingSink(store, features)
    try:
        part = processes.together(
            lambda: predict_all(
                task,
                loaded.model,
                examples,
                sink,
                device,
                request.dtype,
                request.batch_size,
                request.workers,
                request.compile,
                processes=processes,
                hash_images=True,
            )
        )
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(
            f"the rows so far are kept in {store.store.folder}; give the same command again to go on from there"
        )
        raise
    finally:
        if features is not None:
            features.close()
    total = Throughput.merged(processes.gather(part))
    total.samples_from_store, total.resumed_samples = served, total.resumed_samples - served
    return total


def serve(
    task: Task,
    loaded: LoadedModel,
    examples: Sequence[Example],
    store: RunStore,
    request: RunRequest,
    device: torch.device,
    processes: Processes,
) -> tuple[Features, int]:
    """Fill the run folder with the rows that the feature store has, on all processes; how many there were."""
    assert request.features is not None
    root = request.features
    done = processes.broadcast(store.done())
    mine = [example for example in examples if example.id not in done][processes.rank :: processes.world]

    def look() -> tuple[Features, int]:
        features = Features(root, task, loaded, device, request.dtype, request.compile)
        return features, features.serve(mine, store)

    features, count = processes.together(look)
    for keys, _ in (parts := processes.gather((features.keys, count))):
        features.keys.update(keys)  # whoever computes an example can store it
    return features, sum(count for _, count in parts)


def score_rows(task: Task, store: RunStore, examples: Sequence[Example], seed: int) -> card.Verdict:
    """Score the folder's rows, once they are exactly the split's; write submission files where the task has any."""
    rows = stored_rows(store, task, examples)
    folder = store.folder / SUBMISSION
    shutil.rmtree(folder, ignore_errors=True)  # of a scoring that was killed
    make_folder(folder)

    def stored() -> AbstractContextManager[None]:
        return using_stored_rows(task, store.folder) if store.resumed else nullcontext()

    with stored():
        written = task.submission(rows, examples, folder)
    if not any(folder.iterdir()):
        folder.rmdir()
    if written and all(example.target is None for example in examples):
        files = ", ".join(f"{SUBMISSION}/{path.name}" for path in written)
        note = f"the truth of this split is not public; upload {files} to the official server"
        return card.Verdict(Scores({}, {"samples": len(examples)}), {}, [note], "submitted")
    with stored():
        scores = task.score(rows, examples)
    metrics, notes = metric_values(task, scores, seed)
    return card.Verdict(scores, metrics, [*scores.notes, *notes], "scored")


def default_folder(task: str, split: str, checkpoint: Path, tail: str) -> Path:
    """``results/runs/<task>-<split>-<checkpoint>-<tail>`` below the current folder."""
    return RUNS / f"{task}-{split}-{checkpoint.stem}-{tail}"


def is_not_installed(error: BenchError) -> bool:
    """Whether an error came from `requires`, that is, from an optional stack that does not import."""
    return isinstance(error.__cause__, ImportError)


def not_installed(request: RunRequest, task_class: type[Task], error: BenchError) -> Outcome:
    """Record that a task could not run because an optional stack is missing; its install line is the note."""
    split = choose_split(task_class, request.split)
    folder = request.output or default_folder(task_class.name, split, request.checkpoint, NOT_INSTALLED)
    result = card.empty_result(task_class, split, request, str(error))
    write_bare_result(folder, result)
    return Outcome(result, folder)


def forget_not_installed(request: RunRequest, task: str, split: str) -> None:
    """Remove the record of an earlier attempt without the optional stack, now that the task has run."""
    folder = default_folder(task, split, request.checkpoint, NOT_INSTALLED)
    if request.output is None and folder.is_dir():
        (folder / RESULT).unlink(missing_ok=True)
        with suppress(OSError):  # somebody keeps a file of his own there
            folder.rmdir()
