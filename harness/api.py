"""The Python API: load a model, ask it, evaluate it or any object that can be asked."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.abilities import (
    Answers,
)
from beit3_bench.backbones.family import Asked, Model
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError, exhausted
from beit3_bench.files import as_path
from beit3_bench.harness.arguments import (
    Loading,
    as_answers,
    as_device,
    as_dtype,
)
from beit3_bench.harness.clock import Clock
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.models import Located, load_asked, prepare_reader, split_options, suited, suited_to
from beit3_bench.harness.objects import plain_model
from beit3_bench.harness.reading import prepare
from beit3_bench.harness.ready import ReadyModel
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.session import run_model
from beit3_bench.plain import fill
from beit3_bench.tasks.contract import Split, Task
from beit3_bench.tasks.labels import first_difference
from beit3_bench.tasks.options import option_names
from beit3_bench.tasks.registry import get_task

if TYPE_CHECKING:
    import pandas


def load(
    source: str | Path,
    task: str,
    data_root: str | Path | None = None,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    dtype: str = "fp32",
    **options: Any,
) -> ReadyModel:
    """A model for what a task asks.

    Args:
        source: a file or folder, or ``"FAMILY:SOURCE"``.
        task: a task's name; decides what the model can be asked (``"vqav2"`` -> `ReadyModel.answer`).
        data_root: folder of the task's data: what its outputs mean is then compared with the data, and taken from it where the
            file does not say it.
        tokenizer: file; None = beside the checkpoint.
        options: ``preset``, ``image_size`` (pixels), ``allow_missing`` (patterns of tensors); ``answers`` (in the order of the
            outputs: a list, or a file, the official ``answer2label.txt`` or ``answer_list.json``) for vqav2, instead of those of the data;
            options of the task (``num_beams``) and of the family (``num_heads``).

    Raises:
        BenchError: no such file, task, option, device or dtype, or a value of another kind; a file that does not hold what the task
            asks, or does not fit the data.
    """
    from beit3_bench.backbones.seeds import seeded
    from beit3_bench.harness.engine.devices import resolve_device

    task_class = get_task(task)
    answers = options.pop("answers", None)
    if answers is not None and not issubclass(task_class.ability, Answers):
        raise BenchError(f"answers: task {task} asks {task_class.ability.word}, and has none; leave them out")
    if isinstance(answers, (str, Path)):
        options["answer_vocab"], answers = answers, None
    labels = None if answers is None else as_answers(answers)
    how = fill(
        Loading, {name: options.pop(name) for name in option_names(Loading) if name in options}, "load", texts=False
    )
    words = {name: str(value) for name, value in options.items() if value is not None}
    request = RunRequest(
        task,
        as_path(source, "source"),
        as_path("." if data_root is None else data_root, "data_root"),
        tokenizer=None if tokenizer is None else as_path(tokenizer, "tokenizer"),
        compute=Compute(as_device(device), as_dtype(dtype)),
        options=words,
        preset=how.preset,
        image_size=how.image_size,
        allow_missing=how.patterns,
    )
    own, of_family = split_options(task_class, words)
    if task_class.own_data and data_root is not None:
        raise BenchError(f"task {task}: reads a file of one's own; give it to evaluate, as data")
    located = Located.of(source)
    instance = suited_to(task_class(request.data_root, own), located)
    where = resolve_device(request.compute.device, dtype=request.compute.dtype)
    try:
        with seeded(request.seed):  # as `run` is: what a file may lack (allow_missing) is the same every time
            model = load_asked(located, _asked(instance, data_root, labels), request, of_family)
        model.ability.make_ready(where, compiled=False)
        if model.module is not None:
            model.module.to(where).eval()
    except (RuntimeError, MemoryError) as error:
        line = exhausted(error)
        if line is None:
            raise
        raise BenchError(f"{located.path}: {line}") from error
    return ReadyModel(model, located, instance, where, request)


def _asked(task: Task, data_root: str | Path | None, answers: tuple[str, ...] | None) -> Asked:
    """What a task asks, with labels from the data, from the caller, or as far as the task knows them by itself."""
    if data_root is not None and answers is None:
        return task.asked(task.read(task.default_split))
    labels = task.labels_without_data() if answers is None else answers
    file = vars(task.options).get("answer_vocab") if answers is None else None
    return task.asked(Split(task.default_split, (), labels, Path(file or "answers")))


# ---- evaluating -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetricResult:
    """value, ci95 (low, high; None without an interval): in ``unit``, ``"percent"`` or ``"fraction"``."""

    value: float
    unit: str
    ci95: tuple[float, float] | None
    headline: bool


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` finds.

    metrics: by name.  counts: how many samples they stand on.  chance: what guessing scores on the headline metric.
    record: the content of result.json.  folder: the run folder, None where none was asked for.
    predictions: rows by id.
    """

    metrics: dict[str, MetricResult]
    counts: dict[str, int]
    notes: list[str]
    chance: float | None
    record: dict[str, Any]
    folder: Path | None
    predictions: Mapping[str, Mapping[str, Any]]

    def rows(self) -> pandas.DataFrame:
        """One line per prediction, with its ``id``."""
        import pandas

        return pandas.DataFrame(list(self.predictions.values()))


def evaluate(
    model: Any,
    task: str,
    data_root: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    data: str | Path | None = None,
    data_name: str | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate a model on a task, as `beit3-bench run` does.

    Args:
        model: from `load`, or any object with the methods of the ability that the task asks, called with keyword arguments:
            ``embed(images=[...])`` and ``embed(texts=[...])`` -> (n, D); ``answer(images=, questions=)``, ``caption(images=)`` -> strings;
            ``classify(images=[, texts=])`` -> (n, labels) scores in the order of the data's labels, or (label, score) pairs;
            ``detect(images=)``, ``segment(images=)`` as of `ReadyModel`. Images are paths (pairs of paths for tasks with two).
        data_root, split: of the task's data set.
        data, data_name: for ``classify``, ``retrieval``, ``caption`` and ``vqa`` instead of those: a file of your own, with a JSON object
            a line (see `beit3-bench tasks NAME`), and what it is called in tables; None = as the file.
        limit: only so many examples, by the task's rule.
        output: run folder, kept and resumable; None = nothing is kept.
        options: of the task; those that a model from `load` was loaded with stay in force, and cannot be others.

    Raises:
        BenchError: bad input; see `load` and `harness.session.run_task`.  What an object's own method raises passes through.
    """
    from beit3_bench.backbones.seeds import seeded
    from beit3_bench.harness.engine.devices import resolve_device

    task_class = get_task(task)
    place, split = _data_of(task_class, data_root, split, data, data_name)
    words = {name: str(value) for name, value in options.items() if value is not None}
    ready = model if isinstance(model, ReadyModel) else None
    own, of_family = split_options(task_class, words)
    if of_family:
        raise BenchError(f"{min(of_family)}: says how a file is loaded; give it to load")
    with _folder(output) as folder:
        if ready is None:
            name = type(model).__name__
            located, begun = (
                Located(None, Source(name, Path(name))),
                RunRequest(task, name, Path(), compute=Compute("cpu", workers=0)),
            )
        else:
            located, begun = ready.located, ready.request
            words = {**_kept_options(ready, task_class), **words}
            own = split_options(task_class, words)[0]
        request = dataclasses.replace(
            begun,
            task=task,
            data_root=place,
            split=split,
            limit=limit,
            output=folder,
            options=words,
        )
        instance = task_class(request.data_root, own)
        if ready is not None:
            _check_options(ready, instance)
        prepared = prepare(suited(instance, "" if ready is None else ready.card.family), split, limit)
        loaded = (
            plain_model(model, prepared.task, prepared.split)
            if ready is None
            else _for_split(ready, prepared.task, prepared.split)
        )
        prepare_reader(loaded.ability.reader, [prepared.task.item(example) for example in prepared.split.examples])
        device = resolve_device(request.compute.device, dtype=request.compute.dtype)
        with (
            nullcontext() if ready is None else seeded(request.seed)
        ):  # what an object of the caller draws is its own matter
            outcome = run_model(request, located, prepared, loaded, device, Processes(), Clock())
        rows = RunStore.read(outcome.folder).rows()
    metrics = {
        name: MetricResult(m["value"], m["unit"], tuple(m["ci95"]) if m["ci95"] else None, m["headline"])
        for name, m in outcome.result["metrics"].items()
    }
    return Evaluation(
        metrics,
        dict(outcome.result["counts"]),
        list(outcome.result["notes"]),
        outcome.result["chance"],
        outcome.result,
        None if output is None else outcome.folder,
        rows,
    )


def _data_of(
    task: type[Task],
    data_root: str | Path | None,
    split: str | None,
    data: str | Path | None,
    data_name: str | None,
) -> tuple[Path, str | None]:
    """Where the data is, and which split of it: what the data is called, where it is of one's own.

    Raises:
        BenchError: one of them is missing, or belongs to the other kind of task.
    """
    own = {"data": data, "data_name": data_name}
    others = {"data_root": data_root, "split": split}
    wanted, strange = (own, others) if task.own_data else (others, own)
    kind = "a file of one's own" if task.own_data else "a data set"
    for name, value in strange.items():
        if value is not None:
            raise BenchError(f"task {task.name}: reads {kind}, and has no {name}; give {' and '.join(wanted)}")
    place, called = wanted.values()
    if place is None:
        raise BenchError(f"task {task.name}: reads {kind}; give {next(iter(wanted))}")
    return as_path(place, next(iter(wanted))), called  # type: ignore[return-value]


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    if output is not None:
        yield as_path(output, "output")
        return
    with tempfile.TemporaryDirectory(prefix="beit3-bench-") as folder:
        yield Path(folder) / "run"


def _kept_options(ready: ReadyModel, task_class: type[Task]) -> dict[str, str]:
    """Options that a model was loaded with, as far as a task or the family knows them."""
    own = option_names(task_class.Options)
    _, of_family = split_options(task_class, ready.request.options)
    return {
        name: value
        for name, value in ready.request.options.items()
        if name.replace("-", "_") in own or name in of_family
    }


def _check_options(ready: ReadyModel, task: Task) -> None:
    """Raise for options that are decided when a model is loaded and were decided otherwise."""
    for name, value in vars(task.options).items():
        decided = ready.card.resolved.get(name, value)
        if value is not None and value != decided:
            raise BenchError(
                f"{name}: the model was loaded with {name}={decided}, not {value}; load it again with {name}={value}"
            )


def _for_split(ready: ReadyModel, task: Task, split: Split) -> Model:
    """A loaded model for another split or data set: what its outputs mean is compared with this data.

    Raises:
        BenchError: the model was loaded for something else, or its outputs mean something else.
    """
    model = ready.model
    if not isinstance(model.ability, task.ability) or task.images != ready.task.images:
        raise BenchError(
            f"{model.card.checkpoint}: was loaded for {ready.task.name}, {task.name} asks {task.ability.word}; "
            f"load it for {task.name}"
        )
    if split.labels is None:
        known = model.outputs and dataclasses.replace(model.outputs, labels=model.ability.labels)
        notes = [] if known is None else task.asked(split).check_outputs(known)
        return dataclasses.replace(model, assumptions=list(dict.fromkeys([*model.assumptions, *notes])))
    loaded = model.ability.labels
    if loaded is not None and loaded != split.labels:
        raise BenchError(
            f"{model.card.checkpoint}: was loaded for other {task.outputs} than those of {split.labels_source}: "
            f"{first_difference(loaded, split.labels, 'output')}; load it for this data"
        )
    ability = model.ability.of(model.module)
    ability.labels = split.labels
    assumptions = task.check_outputs(split, model.outputs) if model.outputs is not None else []
    kept = [line for line in model.assumptions if line not in assumptions]
    return dataclasses.replace(model, ability=ability, assumptions=[*kept, *assumptions])
