"""The task contract: what the data holds, what is asked of a model, and how its answers are scored.

A task is a small class plus pure functions. It knows data, truth and protocol; it knows no tensor, pixel or token, neither the
run folder nor the command line, and no kind of model. Everything that a task may offer stands here, with its default.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Ability, Item
from beit3_bench.backbones.family import Asked, Outputs, Prompts, SecondPass
from beit3_bench.errors import BenchError
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.labels import first_difference
from beit3_bench.tasks.options import parse_options
from beit3_bench.tasks.scores import ClusterTable, Metric, Scores, evaluate

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

# What the author of a task needs, from one place.
__all__ = ["ClusterTable", "Example", "Item", "Metric", "Row", "ScoreInputs", "Scores", "Split", "Task"]

Row = dict[str, Any]
"""One prediction: a JSON object with the key ``id``; an embedding is a float32 array (stored losslessly)."""


@dataclass(frozen=True)
class Example:
    """One sample as the dataset file says it.

    id: unique within the split.
    images: files, in the order in which the model takes them; or members of archives, as `backbones.archives.members` spells them.
    names: what the images are called in the data set's original layout, below the data root, where they are read from elsewhere;
        () = as ``images``. Fingerprints are made of these, so that data is the same in any container.
    text: a question, a sentence, a caption; None for image-only samples.
    cluster: the unit of resampling for confidence intervals (the image; for NLVR2 the sentence).
    target: what `score` compares the prediction with; None where the truth is not public.
    kind: examples of one kind are batched together (retrieval has ``image`` and ``text`` examples).
    truth_files: files of the truth whose contents ``target`` does not hold (label maps); part of the data's fingerprint.
    """

    id: str
    images: tuple[str, ...] = ()
    text: str | None = None
    cluster: str = ""
    target: Any = None
    kind: str = "pair"
    meta: dict[str, Any] = field(default_factory=dict)
    truth_files: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def image_names(self) -> tuple[str, ...]:
        """The images as the original layout calls them."""
        return self.names or self.images


@dataclass(frozen=True)
class Split:
    """What the files of a split say; made by `Task.read`, passed on, never changed.

    labels: what the data takes the outputs of a classifier to mean, in their order; None for an ability without labels.
    labels_source: the file or folder that they were read from.
    truth: of the split as a whole, for `Task.score` (COCO's categories).
    left_out: files among the images that are no samples, in one line: how many of which suffix, and an example; None where every file
        is one, and where the annotation file lists the images. Hidden files do not count.
    notes: what else a reader of a number on this split must know about its files, a line each.
    own: of data of one's own, SHA-256 (hex) of what its lines say; "" of a data set that others have, too.
    """

    name: str
    examples: tuple[Example, ...]
    labels: tuple[str, ...] | None = None
    labels_source: Path = Path()
    truth: Any = None
    left_out: str | None = None
    notes: tuple[str, ...] = ()
    own: str = ""

    def of(self, examples: Sequence[Example]) -> Split:
        """The same split with other examples (some of them)."""
        return dataclasses.replace(self, examples=tuple(examples))


@dataclass
class ScoreInputs:
    """The files of `beit3-bench score`; a task takes those that its protocol knows (`Task.score_files`), others are refused."""

    predictions: Path
    annotations: Path | None = None
    questions: Path | None = None
    iou_type: str | None = None
    ap_backend: str | None = None
    zero_based: bool = False
    allow_partial: bool = False


class Task(ABC):
    """One downstream task. Subclasses set the class attributes and implement `read`, `rows` and `score`.

    Class attributes:
        name: ``"coco-retrieval"``; the facts file ``coco-retrieval.toml`` beside the module holds title, released data and published
            names (see `tasks.facts`).
        ability: what is asked of a model.
        instead: abilities that are asked of a model whose family does not offer ``ability``, the first that it offers (`ask`).
        images, uses_text: how many images an example has, and whether it has a text.
        splits, default_split: names that `--split` takes.
        training_splits: the splits that `training_examples` reads.
        metrics: the specs, each with the formula of its value; exactly one is the headline.
        layout: the expected directory tree below ``--data-root``, shown by `beit3-bench tasks NAME`.
        batch_size: examples per batch where the user says ``auto``; None = chosen from the model and the memory.
        feature: key of a row that depends on one image or one text and the weights alone (an embedding); such values
            are kept by ``--features``. None = rows are not reused.
        row_shape: kinds of the values of a row that `score` reads, as `harness.record.shapes.check_shape` takes them; rows that were
            read from a folder are checked by it.
        outputs: what `Split.labels` are, in the words of this task (``"answers"``, ``"classes"``).
        prompted: whether the model's family words the texts where the options do not (`prompts`).
        data_of: the task whose facts file says what the released data holds; "" = the task's own.
        own_data: whether it reads a file of one's own (``--data FILE.jsonl``); ``data_root`` is that file then, and the one split
            is called as the data is (`split_of`).
        asks_as: the task that asks a model the same: its checkpoints, its words and what is known of its answers hold for this
            one; "" = no other.
        score_files: the fields of `ScoreInputs` beside predictions that `score_file` reads; others are refused.
        scoring_options: options that bear on what is scored and not on the rows: a run that had none may be scored again with them.
        Options: a dataclass of task options; ``-o key=value`` fills it, unknown keys are refused. Every field has a line in
            its docstring. Options that a family knows (``num_beams``) are its protocol; None there = the family's own.

    prompts: the family's words, for a task that is `prompted`; set before `read`. None = the task's own.
    """

    name: ClassVar[str] = ""
    ability: type[Ability]
    instead: ClassVar[tuple[type[Ability], ...]] = ()
    images: ClassVar[int] = 1
    uses_text: ClassVar[bool] = True
    splits: ClassVar[tuple[str, ...]]
    default_split: ClassVar[str]
    metrics: tuple[Metric, ...]
    layout: ClassVar[str] = ""
    data_of: ClassVar[str] = ""
    own_data: ClassVar[bool] = False
    asks_as: ClassVar[str] = ""
    score_files: ClassVar[tuple[str, ...]] = ("annotations",)
    scoring_options: ClassVar[tuple[str, ...]] = ()
    batch_size: ClassVar[int | None] = None
    feature: ClassVar[str | None] = None
    row_shape: ClassVar[Mapping[str, Any]] = {}
    outputs: ClassVar[str] = "labels"
    prompted: ClassVar[bool] = False

    prompts: Prompts | None = None

    @dataclass
    class Options:
        """A task without options of its own."""

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        self.data_root = Path(data_root)
        self.options: Any = parse_options(self.Options, options or {}, f"task {self.name}")

    # ---- data -----------------------------------------------------------------------------------------------------

    @classmethod
    def split_of(cls, name: str | None, data_root: Path) -> str:
        """The split that is asked for, the default one for None.

        Raises:
            BenchError: a name that the task does not have.
        """
        if name is None:
            return cls.default_split
        if not isinstance(name, str):
            raise BenchError(
                f"a split is named by a text, not a {type(name).__name__}; it has: {', '.join(cls.splits)}"
            )
        if name not in cls.splits:
            raise BenchError(f"task {cls.name} has no split {name!r}; {did_you_mean(name, cls.splits, 'it has')}")
        return name

    @abstractmethod
    def read(self, split: str) -> Split:
        """Read the dataset files of a split. Needs no model.

        Raises:
            BenchError: a missing file or key, a duplicated id, an empty split.
        """

    def limited(self, split: Split, n: int) -> Split:
        """The first ``n`` examples of a split, by the task's own rule."""
        return split.of(split.examples[:n])

    def in_every_part(self, example: Example) -> bool:
        """Whether every part of a split holds an example, because the others are scored with it (the texts of the classes)."""
        return False

    def headline(self, split: Split) -> Metric:
        """The metric that a split's table shows first."""
        return next(metric for metric in self.metrics if metric.headline)

    def size_problem(self, example: Example) -> str | None:
        """How the size of a sample's image contradicts its truth, in words and from file headers; None where it fits.

        Raises:
            BenchError: a file does not open.
        """
        return None

    # ---- asking ---------------------------------------------------------------------------------------------------

    def ask(self, ability: type[Ability]) -> None:
        """Ask one of `instead`; before `read`.

        Raises:
            BenchError: an option that such a model cannot mean.
        """
        self.ability = ability

    def item(self, example: Example) -> Item:
        """What a model is asked of an example."""
        return Item(example.id, example.images, example.text)

    def asked(self, split: Split) -> Asked:
        """What this task wants of a model for a split."""
        return Asked(
            self.ability,
            self.name,
            self.images,
            self.uses_text,
            split.labels,
            lambda outputs: self.check_outputs(split, outputs) if split.labels is not None else [],
            dict(vars(self.options)),
            split.labels_source,
            self.asks_as,
        )

    def options_in_force(self) -> dict[str, Any]:
        """The options, with the name of the family's words where those stand in for one."""
        return dict(vars(self.options))

    def labels_without_data(self) -> tuple[str, ...] | None:
        """What the outputs of released heads mean, where that is known without the data."""
        return None

    def customary_labels(self, count: int) -> tuple[str, ...] | None:
        """What so many outputs of a head mean that does not say it itself, where neither data nor `labels_without_data` do: the order
        of the heads that were released for this task. For showing alone; no number stands on it.
        """
        return None

    def words(self, label: str) -> str:
        """A label as people say it."""
        return label

    def candidates(self, names: Sequence[str]) -> list[tuple[str, list[str]]]:
        """What pictures are compared with where there is no data, for a task that asks `Embeds`: names, each with the texts that stand
        for it, of each name as many.

        Args:
            names: as the caller gives them; none = the task's own.

        Raises:
            BenchError: none are given, and the task has none of its own.
        """
        raise BenchError(f"task {self.name} compares pictures with nothing")

    def check_outputs(self, split: Split, outputs: Outputs) -> list[str]:
        """Compare what a checkpoint's outputs mean with what this data takes them to mean.

        Returns:
            Notes for the result: what could not be known.

        Raises:
            BenchError: another number of outputs, or another meaning; names the first difference.
        """
        labels, trained = split.labels, outputs.labels
        if labels is None:
            return []
        if outputs.count is not None and outputs.count != len(labels):
            raise BenchError(
                f"{outputs.checkpoint}: its head has {outputs.count} {self.outputs}, {split.labels_source} has {len(labels)}; "
                "give the data that it was trained for, or the checkpoint of this data"
            )
        if trained is not None and trained != labels:
            raise BenchError(
                f"{outputs.checkpoint}: was trained for other {self.outputs} than those of {split.labels_source}: "
                f"{first_difference(trained, labels, 'output')}; give the data that it was trained for"
            )
        return []

    def read_ahead(self, example: Example) -> Any:
        """What `rows` needs of an example beside the model's value and takes time to read (a label map); runs in a decoding process.

        Raises:
            BenchError: a file that does not decode.
        """
        return None

    @abstractmethod
    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """One row per example, with the example's ``id``, from what the ability gives for them (and `read_ahead`)."""

    def second_rows(self, split: Split, alone: bool) -> Mapping[str, Mapping[str, Any]]:
        """Ids of the rows of a second pass, for a task that has one, and the kinds of their values as of ``row_shape``.

        alone: there is no first pass; a row then has the id of the example whose images it was made from.
        """
        return {}

    def second_wanted(self) -> str:
        """The option that asks for a second pass, as it was given (``"rerank=16"``); "" = none does, and a family decides."""
        return ""

    def check_second(self, split: Split, second: SecondPass) -> None:
        """Raise for a second pass that a split cannot have; before the first begins.

        Raises:
            BenchError: the task has none, or more candidates were asked for than there are.
        """
        raise BenchError(
            f"task {self.name} has no second pass, and the model brings one; give a model of another family"
        )

    def second_leave(self, split: Split, second: SecondPass) -> str | None:
        """The option without which a second pass does not begin because of what it costs (``"all_pairs=yes"``); None = it begins."""
        return None

    def second_pass(self, rows: Mapping[str, Row], split: Split, second: SecondPass) -> tuple[Task, Split]:
        """What is asked of a model that looks again at the best of the first pass (`backbones.family.SecondPass`): a task and a split
        for the engine, whose rows are `second_rows` and are scored with those of the first. Asked after `check_second` alone.

        rows: of the first pass; empty where there was none.
        """
        raise BenchError(f"task {self.name} has no second pass")

    # ---- scores ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """Rows by id -> metrics, and what guessing scores. Pure: no model, no files, no globals; the task does not change."""

    def estimate(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Metrics from column sums of the cluster table; every array may carry a leading axis of resamples."""
        return evaluate(self.metrics, sums)

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        """Score a prediction file in the official format against the official annotation files."""
        raise BenchError(f"task {cls.name} has no prediction file format of its own; evaluate it with: beit3-bench run")

    def submission(self, rows: Mapping[str, Row], split: Split, folder: Path) -> list[Path]:
        """Write the official submission file(s) into the run folder; returns what was written."""
        return []

    # ---- people ---------------------------------------------------------------------------------------------------

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        """What of a run people look at (`beit3-bench show`, `compare`): samples in plain values, and numbers by kind. The default
        shows id, pictures, truth and the values of the row.

        Args:
            rows: by id; of all examples of the split, or of some.
            scores: values per sample, as in `Scores.samples`; empty where the truth is not public.
        """
        from beit3_bench.tasks.display import Display

        return Display(self, split, rows, scores)

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def training_split(self) -> Split:
        """Samples to learn from; retrieval pairs image and text here.

        Raises:
            BenchError: the task has no training split.
        """
        return self.read("train")

    def root(self) -> Path:
        """The folder whose layout a framework with a training of its own reads (`backbones.training.EngineRequest`)."""
        return self.data_root

    def training_item(self, example: Example) -> Item:
        """What a training learns of an example; `Item.target` as `backbones.training.Training` says it for the ability."""
        return dataclasses.replace(self.item(example), target=example.target)

    @classmethod
    def recipes(cls) -> Mapping[str, Mapping[str, Any]]:
        """Hyper-parameters of fine-tuning by name, for a task that the model's family has no recipe for."""
        return {}
