"""The Python API: load a model, ask it, evaluate it or any object that can be asked."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from beit3_bench.backbones.abilities import (
    Ability,
    Answers,
    Batch,
    Captions,
    Classifies,
    Detects,
    Embeds,
    Item,
    Segments,
)
from beit3_bench.backbones.family import Asked, Model
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError
from beit3_bench.harness.engine.compute import Compute
from beit3_bench.harness.engine.processes import Processes
from beit3_bench.harness.models import Located, load_asked, split_options, with_prompts_of
from beit3_bench.harness.objects import plain_model
from beit3_bench.harness.reading import prepare
from beit3_bench.harness.record.store import RunStore
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.session import Clock, run_model
from beit3_bench.tasks.contract import Split, Task
from beit3_bench.tasks.registry import get_task

if TYPE_CHECKING:
    import pandas
    import torch

BATCH = 16
"""Items per forward pass of `ReadyModel`."""
LOADING = ("preset", "image_size", "allow_missing")
"""Options of `load` that say how a file is to be loaded."""


class ReadyModel:
    """A model that can be asked: the network, what is known of it, and the methods of its ability.

    Attributes:
        module: the network (`torch.nn.Module`; None where the model is none of torch's), on its device, in evaluation mode.
        card: what was loaded (`backbones.family.ModelCard`).
        identity: hashes of weights, architecture, pixels and tokens, and the labels that the file says of its outputs.
        labels: what the outputs are taken to mean, in order; None for an ability without labels, and where nothing says it.
        notes: what a reader of its numbers must know.

    Images are paths or PIL images. A method of another ability raises BenchError.
    """

    def __init__(self, model: Model, path: Path, task: type[Task], device: torch.device, compute: Compute):
        self.path = path
        self.model, self.task, self.device, self.compute = model, task, device, compute
        self.card, self.identity = model.card, model.identity
        self.notes = [*model.notes, *model.assumptions]

    @property
    def module(self) -> torch.nn.Module | None:
        return self.model.module

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.model.ability.labels

    def embed(self, images: Sequence[Any] | None = None, texts: Sequence[str] | None = None) -> np.ndarray:
        """Images or texts -> float32 (n, D), rows of unit length."""
        if (images is None) == (texts is None):
            raise BenchError("embed: give images=[...] or texts=[...], one of them")
        if images is not None:
            items = [Item(str(n), (image,)) for n, image in enumerate(images)]
        else:
            items = [Item(str(n), text=text) for n, text in enumerate(texts or ())]
        return np.stack(self.ask(Embeds, items)) if items else np.zeros((0, 0), np.float32)

    def answer(self, images: Sequence[Any], questions: Sequence[str]) -> list[str]:
        """One answer per image and question."""
        return self.ask(Answers, _pairs(images, questions, "answer"))

    def caption(self, images: Sequence[Any]) -> list[str]:
        """One caption per image."""
        return [caption.text for caption in self.ask(Captions, [Item(str(n), (i,)) for n, i in enumerate(images)])]

    def classify(self, images: Sequence[Any], texts: Sequence[str] | None = None) -> list[tuple[str, float]]:
        """The best label of each image (pair of images, for a model that takes two) and its probability.

        Where nothing says what the outputs mean, the label is the number of the output.
        """
        if texts is None:
            items = [Item(str(n), _tuple(image)) for n, image in enumerate(images)]
        else:
            items = _pairs(images, texts, "classify")
        best = []
        for scores in self.ask(Classifies, items):
            shifted = np.exp(scores - scores.max())
            place = int(scores.argmax())
            best.append((self.labels[place] if self.labels else str(place), float(shifted[place] / shifted.sum())))
        return best

    def detect(self, images: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        """Per image ``boxes`` (n, 4) x1 y1 x2 y2 in pixels, ``scores`` (n,), ``classes`` (n,) positions in `labels`, and with a mask
        head ``masks`` (n, H, W).
        """
        return self.ask(Detects, [Item(str(n), (image,)) for n, image in enumerate(images)])

    def segment(self, images: Sequence[Any]) -> list[np.ndarray]:
        """Per image uint8 (H, W), positions in `labels`."""
        return self.ask(Segments, [Item(str(n), (image,)) for n, image in enumerate(images)])

    def ask(self, kind: type[Ability], items: Sequence[Item]) -> list[Any]:
        """The ability's values, in the order of the items; a value does not depend on the items beside it.

        Raises:
            BenchError: the model has another ability, an image that does not decode, a text that cannot be taken.
        """
        ability = self.model.ability
        if not isinstance(ability, kind):
            raise BenchError(
                f"{self.card.checkpoint}: was loaded to {ability.word}, not to {kind.word}; load it for a task that asks {kind.word}"
            )
        reader = ability.reader
        reader.prepare(items)
        values: dict[int, Any] = {}
        order = sorted(range(len(items)), key=lambda n: (items[n].text is None, -reader.length(items[n]), n))
        batch: list[int] = []
        for n in [*order, None]:
            full = batch and (
                n is None
                or len(batch) == BATCH
                or reader.length(items[n]) != reader.length(items[batch[0]])
                or (items[n].text is None) != (items[batch[0]].text is None)
            )
            if full:
                values.update(zip(batch, self._predict(reader.collate([items[i] for i in batch])), strict=True))
                batch = []
            if n is not None:
                batch.append(n)
        return [values[n] for n in range(len(items))]

    def _predict(self, batch: Batch) -> list[Any]:
        import torch

        from beit3_bench.backbones.precision import DTYPES
        from beit3_bench.harness.engine.devices import to_device

        kind = DTYPES[self.compute.dtype]
        precision = nullcontext() if kind is torch.float32 else torch.autocast(self.device.type, dtype=kind)
        with torch.inference_mode(), precision:
            return self.model.ability.predict(to_device(batch, self.device))


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
        options: ``preset``, ``image_size`` (pixels), ``allow_missing`` (patterns of tensors); ``answers`` (a list, or the official
            ``answer2label.txt``) for vqav2; options of the task (``num_beams``) and of the family (``num_heads``).

    Raises:
        BenchError: no such file, task or option; a file that does not hold what the task asks, or does not fit the data.
    """
    from beit3_bench.harness.engine.devices import resolve_device

    task_class = get_task(task)
    answers = options.pop("answers", None)
    if isinstance(answers, (str, Path)):
        options["answer_vocab"], answers = answers, None
    how = {name: options.pop(name) for name in LOADING if name in options}
    if isinstance(how.get("allow_missing"), list):
        how["allow_missing"] = tuple(how["allow_missing"])
    words = {name: str(value) for name, value in options.items() if value is not None}
    compute = Compute(device, dtype)
    request = RunRequest(
        task,
        source,
        Path(data_root or "."),
        tokenizer=None if tokenizer is None else Path(tokenizer),
        compute=compute,
        options=words,
        **how,
    )
    own, of_family = split_options(task_class, words)
    instance = task_class(request.data_root, own)
    located = Located.of(source)
    model = load_asked(located, _asked(instance, data_root, answers), request, of_family)
    where = resolve_device(device)
    model.ability.make_ready(where, compiled=False)
    if model.module is not None:
        model.module.to(where).eval()
    return ReadyModel(model, located.path, task_class, where, compute)


def _asked(task: Task, data_root: str | Path | None, answers: Sequence[str] | None) -> Asked:
    """What a task asks, with labels from the data, from the caller, or as far as the task knows them by itself."""
    if data_root is not None and answers is None:
        return task.asked(task.read(task.default_split))
    labels = tuple(answers) if answers is not None else task.labels_without_data()
    return task.asked(Split(task.default_split, (), labels, Path("answers")))


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
    data_root: str | Path,
    split: str | None = None,
    limit: int | None = None,
    output: str | Path | None = None,
    **options: Any,
) -> Evaluation:
    """Evaluate a model on a task, as `beit3-bench run` does.

    Args:
        model: from `load`, or any object with the methods of the ability that the task asks, called with keyword arguments:
            ``embed(images=[...])`` and ``embed(texts=[...])`` -> (n, D); ``answer(images=, questions=)``, ``caption(images=)`` -> strings;
            ``classify(images=[, texts=])`` -> (n, labels) scores in the order of the data's labels, or (label, score) pairs;
            ``detect(images=)``, ``segment(images=)`` as of `ReadyModel`. Images are paths (pairs of paths for tasks with two).
        limit: only so many examples, by the task's rule.
        output: run folder, kept and resumable; None = nothing is kept.
        options: of the task.

    Raises:
        BenchError: bad input; see `load` and `harness.session.run_task`.
    """
    from beit3_bench.harness.engine.devices import resolve_device

    task_class = get_task(task)
    words = {name: str(value) for name, value in options.items() if value is not None}
    with _folder(output) as folder:
        ready = isinstance(model, ReadyModel)
        compute = model.compute if ready else Compute("cpu", workers=0)
        source = str(model.path) if ready else type(model).__name__
        request = RunRequest(
            task, source, Path(data_root), split=split, limit=limit, compute=compute, output=folder, options=words
        )
        instance = task_class(request.data_root, split_options(task_class, words)[0])
        prepared = prepare(with_prompts_of(instance, model.card.family if ready else ""), split, limit)
        loaded = (
            _for_split(model, prepared.task, prepared.split)
            if ready
            else plain_model(model, prepared.task, prepared.split)
        )
        loaded.ability.reader.prepare([prepared.task.item(example) for example in prepared.split.examples])
        located = Located(None, Source(source, Path(source)))
        device = resolve_device(compute.device)
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


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    if output is not None:
        yield Path(output)
        return
    with tempfile.TemporaryDirectory(prefix="beit3-bench-") as folder:
        yield Path(folder) / "run"


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
        return model
    ability = model.ability.of(model.module)
    ability.labels = split.labels
    assumptions = task.check_outputs(split, model.outputs) if model.outputs is not None else []
    kept = [line for line in model.assumptions if line not in assumptions]
    return dataclasses.replace(model, ability=ability, assumptions=[*kept, *assumptions])


def _tuple(image: Any) -> tuple[Any, ...]:
    return tuple(image) if isinstance(image, (tuple, list)) else (image,)


def _pairs(images: Sequence[Any], texts: Sequence[str], method: str) -> list[Item]:
    if len(images) != len(texts):
        raise BenchError(f"{method}: {len(images)} images and {len(texts)} texts; give one text per image")
    return [Item(str(n), _tuple(image), text) for n, (image, text) in enumerate(zip(images, texts, strict=True))]
