"""The Task contract: examples -> batches -> predictions -> scores.

A task is a small class plus pure functions. It knows its data, its head and its protocol; it knows neither the run
folder, nor the command line, nor how many processes there are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.errors import BenchError
from beit3_bench.tasks.labels import first_difference, labels_of
from beit3_bench.tasks.options import parse_options
from beit3_bench.tasks.scores import ClusterTable, Metric, Scores

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.beit3.config import BEiT3Config
    from beit3_bench.backbones.beit3.tokenizer import Tokenizer
    from beit3_bench.backbones.preprocess import Preprocessing
    from beit3_bench.harness.reuse.image_cache import ImageCache

# What the author of a task needs, from one place.
__all__ = ["ClusterTable", "Example", "Metric", "Row", "ScoreInputs", "Scores", "Task"]

Row = dict[str, Any]
"""One prediction: a JSON object with the key ``id``; an embedding is a float32 array (stored losslessly)."""


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
        row_shape: kinds of the values of a row that `score` reads, as `harness.record.schema.check_shape` takes them; rows that were
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
        from beit3_bench.backbones.beit3.models import build_model

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
