"""The Task contract: examples -> batches -> predictions -> scores.

A task is a small class plus pure functions. It knows its data, its head and its protocol; it knows neither the run
folder, nor the command line, nor how many processes there are.
"""

from __future__ import annotations

import dataclasses
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import numpy as np

from beit3_bench.backbones.errors import BenchError

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.config import BEiT3Config
    from beit3_bench.backbones.image_cache import ImageCache
    from beit3_bench.backbones.preprocess import Preprocessing
    from beit3_bench.backbones.tokenizer import Tokenizer

Row = dict[str, Any]
"""One prediction: a JSON object with the key ``id``; an embedding is a float32 array (stored losslessly)."""


@dataclass(frozen=True)
class Metric:
    """What a number of this task is called and how it reads.

    unit: ``"percent"`` (0..100) or ``"fraction"`` (0..1, shown x100 in the table).
    decimals: the rounding of the paper's table.
    """

    name: str
    unit: str = "percent"
    headline: bool = False
    higher_is_better: bool = True
    decimals: int = 1


@dataclass
class Example:
    """One sample as the dataset file says it.

    id: unique within the split.
    images: files, in the order in which the model takes them.
    text: what is tokenised once, by `Task.tokenize`; None for image-only samples.
    cluster: the unit of resampling for confidence intervals (the image; for NLVR2 the sentence).
    target: what `score` compares the prediction with; None where the truth is not public.
    kind: examples of one kind are batched together (a dual encoder has ``image`` and ``text`` examples).
    truth_files: files of the truth whose contents ``target`` does not hold (label maps); part of the data's fingerprint.
    """

    id: str
    images: tuple[str, ...] = ()
    text: str | None = None
    cluster: str = ""
    target: Any = None
    kind: str = "pair"
    meta: dict[str, Any] = field(default_factory=dict)
    token_ids: list[int] | None = None
    truth_files: tuple[str, ...] = ()


@dataclass
class ClusterTable:
    """Additive statistics per cluster: metrics, their intervals and paired comparisons are made from column sums.

    ids: cluster names, length n.  columns: name -> float64 (n,) or (n, k).
    centred: the metrics' values depend on the number of clusters, so that intervals are centred on the value itself.
    """

    ids: list[str]
    columns: dict[str, np.ndarray]
    centred: ClassVar[bool] = False

    def sums(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Column sums; with weights (R, n), the sums of R resamples: (R,) or (R, k) per column."""
        if weights is None:
            return {name: column.sum(axis=0) for name, column in self.columns.items()}
        return {name: weights @ column for name, column in self.columns.items()}

    @classmethod
    def collect(cls, clusters: Sequence[str], columns: Mapping[str, np.ndarray]) -> ClusterTable:
        """Sum per-sample values (n_samples,) or (n_samples, k) into their clusters, in order of first appearance."""
        ids = list(dict.fromkeys(clusters))
        position = {name: i for i, name in enumerate(ids)}
        index = np.fromiter((position[c] for c in clusters), dtype=np.int64, count=len(clusters))
        summed = {}
        for name, values in columns.items():
            values = np.asarray(values, dtype=np.float64)
            total = np.zeros((len(ids), *values.shape[1:]))
            np.add.at(total, index, values)
            summed[name] = total
        return cls(ids, summed)


@dataclass
class Scores:
    """What `Task.score` returns: the aggregate, how many samples it stands on, and what intervals are made from.

    notes: one line each, shown under the result (a metric that was skipped and why, a partial coverage, ...).
    samples: optional per-sample values, name -> {example id: value}, kept in the run folder for comparisons.
    """

    metrics: dict[str, float]
    counts: dict[str, int]
    table: ClusterTable | None = None
    notes: list[str] = field(default_factory=list)
    samples: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass
class ScoreInputs:
    """The files of `beit3-bench score`; a task takes those that its protocol knows and refuses the others."""

    predictions: Path
    annotations: Path | None = None
    questions: Path | None = None
    iou_type: str | None = None
    ap_backend: str | None = None
    zero_based: bool = False
    allow_partial: bool = False


class Task(ABC):
    """One downstream task. Subclasses set the class attributes and implement the five steps.

    Class attributes:
        name, title: ``"coco-retrieval"``, ``"COCO retrieval (Karpathy 5K)"``.
        head: the model form, as `backbones.build_model` names it.
        splits, default_split: names that `--split` takes.
        metrics: the specs; exactly one is the headline.
        layout: the expected directory tree below ``--data-root``, shown by `beit3-bench tasks NAME`.
        batch_size: examples per batch where the user says ``auto``; None = chosen from the model and the memory.
        feature: key of a row that depends on one image or one text and the weights alone (an embedding); such values
            are kept by ``--features``. None = rows are not reused.
        text_multiple: `collate` pads texts to a multiple of this many tokens, and `plan_batches` puts texts of one padded
            length into a batch: a row is then the same at any batch size. 1: equal lengths, no padding at all.
        row_shape: kinds of the values of a row that `score` reads, as `harness.schema.check_shape` takes them; rows that were
            read from a folder are checked by it.
        outputs: what `labels` are, in the words of this task (``"answers"``, ``"classes"``).
        data_of: the task whose file in `tasks.expected` says what the released data holds; "" = the task's own.
        Options: a dataclass of task options; ``-o key=value`` fills it, unknown keys are refused.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    head: ClassVar[str]
    splits: ClassVar[tuple[str, ...]]
    default_split: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    layout: ClassVar[str] = ""
    uses_text: ClassVar[bool] = True
    data_of: ClassVar[str] = ""
    text_multiple: ClassVar[int] = 8
    score_files: ClassVar[tuple[str, ...]] = ("annotations",)
    batch_size: ClassVar[int | None] = None
    feature: ClassVar[str | None] = None
    row_shape: ClassVar[Mapping[str, Any]] = {}
    outputs: ClassVar[str] = "labels"

    @dataclass
    class Options:
        """A task without options of its own."""

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        self.data_root = Path(data_root)
        self.options: Any = parse_options(self.Options, options or {}, f"task {self.name}")
        self.preprocessing: Preprocessing | None = None
        self.tokenizer: Tokenizer | None = None
        self.image_cache: ImageCache | None = None

    def bind(self, preprocessing: Preprocessing, tokenizer: Tokenizer | None) -> None:
        """Attach what belongs to the weights; called once, before `tokenize` and `collate`."""
        self.preprocessing, self.tokenizer = preprocessing, tokenizer

    # ---- the five steps -------------------------------------------------------------------------------------------

    @abstractmethod
    def examples(self, split: str) -> list[Example]:
        """Read the dataset files of a split. Needs no model.

        Raises:
            BenchError: a missing file or key, a duplicated id, an empty split.
        """

    def left_out(self, split: str) -> str | None:
        """Files among the images of a split that are no samples, in one line: how many of which suffix, and an example.

        None where every file is one, and for tasks whose annotation file lists the images. Hidden files do not count.
        """
        return None

    def data_notes(self, split: str) -> list[str]:
        """What else a reader of a number on this split must know about its files, a line each.

        Called after `examples`; needs no model. `data verify` reports the same lines as findings.
        """
        return []

    def size_problem(self, example: Example) -> str | None:
        """How the size of a sample's image contradicts its truth, in words and from file headers; None where it fits.

        Raises:
            BenchError: a file does not open.
        """
        return None

    def model(self, config: BEiT3Config) -> torch.nn.Module:
        """The network of this task, untrained, in eval mode."""
        from beit3_bench.backbones.models import build_model

        return build_model(self.head, config, **self.head_arguments())

    def head_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the head (``num_classes``)."""
        return {}

    def labels(self) -> list[str] | None:
        """What the outputs of the head mean, in their order; None for a head without labels.

        Fine-tuning writes them into the checkpoint, `check_labels` compares; called after `examples`.
        """
        return None

    def labels_source(self) -> Path:
        """The file or folder that `labels` were read from."""
        return self.data_root

    def check_labels(self, checkpoint: Path, metadata: Mapping[str, Any], outputs: int | None) -> list[str]:
        """Compare what a checkpoint's outputs mean with what this data takes them to mean.

        Args:
            metadata: what the file carries beside its weights; ``labels`` are its own.
            outputs: of its head, before it is loaded; None where unknown.

        Returns:
            Notes for the result: what could not be known.

        Raises:
            BenchError: another number of outputs, or another meaning; names the first difference.
        """
        labels, trained = self.labels(), labels_of(metadata, checkpoint)
        if labels is None:
            return []
        if outputs is not None and outputs != len(labels):
            raise BenchError(
                f"{checkpoint}: its head has {outputs} {self.outputs}, {self.labels_source()} has {len(labels)}; "
                "give the data that it was trained for, or the checkpoint of this data"
            )
        if trained is not None and trained != labels:
            raise BenchError(
                f"{checkpoint}: was trained for other {self.outputs} than those of {self.labels_source()}: "
                f"{first_difference(trained, labels, 'output')}; give the data that it was trained for"
            )
        return []

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Decode images (uint8) and pad token ids: a dict of tensors, moved to the device by the engine."""

    @abstractmethod
    def predict(self, model: torch.nn.Module, batch: dict[str, Any]) -> list[Row]:
        """One row per example of the batch, each with the example's ``id``; values on the CPU."""

    @abstractmethod
    def score(self, rows: Mapping[str, Row], examples: Sequence[Example]) -> Scores:
        """Rows by id, examples of the same id set -> metrics. Pure: no model, no files, no globals."""

    # ---- intervals ------------------------------------------------------------------------------------------------

    def estimate(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Metrics from column sums of the cluster table; every array may carry a leading axis of resamples."""
        return {}

    # ---- scoring a file, and writing one --------------------------------------------------------------------------

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        """Score a prediction file in the official format against the official annotation files."""
        raise BenchError(f"task {cls.name} has no prediction file format of its own; evaluate it with: beit3-bench run")

    def submission(self, rows: Mapping[str, Row], examples: Sequence[Example], folder: Path) -> list[Path]:
        """Write the official submission file(s) into the run folder; returns what was written."""
        return []

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def configure_training(self, recipe: Mapping[str, Any]) -> None:
        """Take what the training data and the loss need from the recipe (mask probability, label smoothing, ...)."""

    def training_examples(self) -> list[Example]:
        """Samples to learn from; a dual encoder pairs image and text here."""
        return self.examples("train")

    def training_collate(
        self, examples: Sequence[Example], generator: torch.Generator, image_ops: Callable
    ) -> dict[str, Any]:
        """Like `collate`, with the training transform ``image_ops(PIL image, generator) -> uint8 (3, S, S)``."""
        raise BenchError(f"task {self.name} cannot be fine-tuned by this version")

    def loss(self, model: torch.nn.Module, batch: dict[str, Any], gather: Callable, step: int = 0) -> torch.Tensor:
        """Training loss (scalar). ``gather(tensor)`` concatenates over processes, with gradients."""
        raise BenchError(f"task {self.name} cannot be fine-tuned by this version")

    # ---- shared by all tasks --------------------------------------------------------------------------------------

    def tokenize(self, examples: Sequence[Example]) -> None:
        """Tokenise every distinct text once, in place."""
        if self.tokenizer is None or not self.uses_text:
            return
        known: dict[str, list[int]] = {}
        for example in examples:
            if example.text is not None:
                if example.text not in known:
                    known[example.text] = self.tokenizer.encode(example.text, source=f"example {example.id}")
                example.token_ids = known[example.text]

    def load_images(self, paths: Sequence[str]) -> torch.Tensor:
        """Decode and resize, or take from the cache: uint8 (n, 3, S, S), not yet normalised."""
        import torch

        source = self.image_cache or self.preprocessing
        assert source is not None
        return torch.stack([source.load(path) for path in paths])

    def load_shared_images(self, paths: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode each distinct file once: (uint8 (u, 3, S, S), int64 (n,) index of each path's image)."""
        import torch

        distinct = list(dict.fromkeys(paths))
        position = {path: i for i, path in enumerate(distinct)}
        return self.load_images(distinct), torch.tensor([position[path] for path in paths])

    def pad_text(self, examples: Sequence[Example], multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids (n, L) int64 padded to the longest of the batch, or the next ``multiple``, and padding_mask (n, L)
        bool, True = padding; None where nothing is padded.
        """
        assert self.tokenizer is not None
        return self.tokenizer.pad([example.token_ids or [] for example in examples], multiple)


def labels_of(metadata: Mapping[str, Any], checkpoint: Path) -> list[str] | None:
    """What the outputs of a fine-tuned checkpoint mean, as it says itself; None where it does not.

    Raises:
        BenchError: something else than a list of names.
    """
    labels = metadata.get("labels")
    if labels is not None and not (isinstance(labels, (list, tuple)) and all(isinstance(n, str) for n in labels)):
        raise BenchError(f"{checkpoint}: its 'labels' are no list of names; this file was not written by beit3-bench")
    return None if labels is None else list(labels)


def first_difference(trained: Sequence[str], labels: Sequence[str], what: str) -> str:
    """In words, where a checkpoint's labels and those of the data part."""
    for n, (a, b) in enumerate(zip(trained, labels, strict=False)):
        if a != b:
            return f"{what} {n} is {str(a)[:60]!r} in the checkpoint, {str(b)[:60]!r} here"
    return f"{len(trained)} {what}s in the checkpoint, {len(labels)} here"


def parse_options(cls: type, values: Mapping[str, str], owner: str) -> Any:
    """Fill an options dataclass from ``key=value`` strings, converting by the field's type.

    Raises:
        BenchError: unknown key (with the nearest known one) or a value that does not convert.
    """
    hints = get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    filled: dict[str, Any] = {}
    for key, text in values.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
            raise BenchError(f"{owner} has no option {key!r}; {hint}")
        filled[name] = _convert(text, hints[name], f"{owner}: option {key}")
    return cls(**filled)


def _convert(text: str, hint: Any, owner: str) -> Any:
    kinds = [k for k in getattr(hint, "__args__", (hint,)) if k is not type(None)] if "|" in str(hint) else [hint]
    kind = kinds[0]
    try:
        if kind is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        return kind(*text.split(",")) if kind is not Path else Path(text)
    except (KeyError, ValueError, TypeError) as error:
        raise BenchError(f"{owner}: {text!r} is not a {kind.__name__}") from error


def plan_batches(examples: Sequence[Example], batch_size: int, text_multiple: int = 1) -> Iterator[list[Example]]:
    """Cut examples into batches of one kind and one padded text length, examples of the same images side by side (so
    that an image is decoded and encoded once).

    A text is padded to a multiple of ``text_multiple`` whatever stands beside it, so that its row does not depend on
    the batch. The longest batches come first: an out-of-memory error shows at the start.
    """
    groups: dict[tuple, list[Example]] = {}
    for example in examples:
        length = -(-len(example.token_ids or ()) // text_multiple)
        groups.setdefault((example.kind, -length, example.images or (example.id,)), []).append(example)
    batch: list[Example] = []
    planned: tuple = ()
    for key, group in sorted(groups.items()):
        for example in sorted(group, key=lambda e: (-len(e.token_ids or ()), e.id)):
            if batch and (len(batch) == batch_size or planned != key[:2]):
                yield batch
                batch = []
            batch.append(example)
            planned = key[:2]
    if batch:
        yield batch


def match_ids(
    predicted: Sequence[str], expected: Sequence[str], source: str, what: str, allow_partial: bool = False
) -> float:
    """Check that predictions cover exactly the expected ids.

    Returns:
        The coverage: 1.0, or less with ``allow_partial``.

    Raises:
        BenchError: duplicated, unknown or (unless ``allow_partial``) missing ids; counts them, lists the first five.
    """

    def first(ids: Sequence[str]) -> str:
        return ", ".join(str(i)[:80] for i in ids[:5]) + (", ..." if len(ids) > 5 else "")

    seen: set[str] = set()
    twice = [i for i in predicted if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
    if twice:
        raise BenchError(f"{source}: {len(twice)} {what} predicted twice ({first(twice)}); keep one prediction each")
    wanted = set(expected)
    unknown = [i for i in predicted if i not in wanted]
    if unknown:
        raise BenchError(
            f"{source}: {len(unknown)} unknown {what} ({first(unknown)}); are the annotations of the same split?"
        )
    missing = [i for i in dict.fromkeys(expected) if i not in seen]
    if missing and not allow_partial:
        raise BenchError(
            f"{source}: {len(missing)} of {len(wanted)} {what} without prediction ({first(missing)}); "
            "complete the file, or score what is there with --allow-partial"
        )
    return len(seen) / max(len(wanted), 1)
