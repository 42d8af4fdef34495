"""A family of models: which files it knows, and how one becomes an ability that can be asked.

`Family.load` gives a `Model`: the ability, and what has to be known of it to trust its numbers (`ModelCard`, `Identity`). A
family that can be fine-tuned offers `Family.start_training`, too.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.abilities import Ability, Batch, Item
    from beit3_bench.backbones.checkpoints import Checkpoint
    from beit3_bench.backbones.recipe import Recipe
    from beit3_bench.backbones.released import ReleasedFile


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-like value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- what is asked ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outputs:
    """What a file says of the outputs of its head, before it is loaded.

    labels: what they mean, in order; None where the file does not say.
    count: how many; None where unknown.
    released: whether it is, by name, a file that the family's authors released for this task.
    metadata: what else the file carries beside its weights.
    """

    checkpoint: Path
    labels: tuple[str, ...] | None = None
    count: int | None = None
    released: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


def _unchecked(outputs: Outputs) -> list[str]:
    return []


@dataclass(frozen=True)
class Asked:
    """What a task wants of a model.

    images: how many an item has.  text: whether it has one.
    labels: what the data takes the outputs to mean, in order; None = nothing.
    check_outputs: compares a file's outputs with the data's; called by `Family.load` as soon as they are known. Returns notes
        for the result (what could not be known). Raises BenchError where they mean something else.
    values: options of the task by name; those that a family knows are its protocol (``num_beams``), None = the family's own.
    """

    ability: type[Ability]
    task: str
    images: int = 1
    text: bool = True
    labels: tuple[str, ...] | None = None
    check_outputs: Callable[[Outputs], list[str]] = _unchecked
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadOptions:
    """How a file is to be loaded, where the file leaves a choice.

    tokenizer: file; None = beside the checkpoint.
    preset: architecture, where the file does not show it.  image_size: pixels; None = the file's.
    allow_missing: patterns of tensors that may be missing or misshapen; they keep random values.
    given: further options, of the family's own (`Family.Options`).
    """

    tokenizer: Path | None = None
    preset: str | None = None
    image_size: int | None = None
    allow_missing: tuple[str, ...] = ()
    given: Any = None


# ---- what is there ------------------------------------------------------------------------------------------------------


class Source:
    """A file or a folder that may hold a model; read when it is first asked about.

    text: as it was named, without the family.
    path: the file, or the folder; the index file of a checkpoint in several files.
    """

    def __init__(self, text: str, path: Path):
        self.text, self.path = text, path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its tensors and what is beside them. Raises: BenchError: it cannot be read; see `checkpoints.read_checkpoint`."""
        from beit3_bench.backbones.checkpoints import read_checkpoint

        return read_checkpoint(self.path)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of its tensors, without wrappers."""
        return frozenset(self.checkpoint.tensors)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The JSON object in ``config.json`` or ``open_clip_config.json`` of a folder, or beside a file; empty where there is none."""
        from beit3_bench.files import read_limited

        folder = self.path if self.path.is_dir() else self.path.parent
        for name in ("config.json", "open_clip_config.json"):
            try:
                content = json.loads(read_limited(folder / name, 2**24))
            except (OSError, ValueError, RecursionError):
                continue
            if isinstance(content, dict):
                return content
        return {}


@dataclass(frozen=True)
class ModelCard:
    """What was evaluated, as results say it.

    family: its name.  preset: architecture (``"base"``), None = one without a name.
    weight: registry name of a released file.  image_size: pixels.  params: number of parameters.
    protocol: how answers come about, in two words (``"dual encoder"``); rows of different protocol are not ranked together.
    trained_for: the task that the head was trained for; "" = for none, None = not known.
    trained_on: data sets whose images it has seen with labels or captions, as far as is known.
    settings: of the network.  preprocessing: of images. Plain values.
    resolved: options by name as they were in force, the family's defaults included.
    """

    family: str
    checkpoint: str
    sha256: str
    preset: str | None = None
    weight: str | None = None
    image_size: int = 0
    params: int = 0
    protocol: str = ""
    trained_for: str | None = None
    trained_on: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Identity:
    """What a model's values depend on, as hashes (hex SHA-256), and what its outputs mean.

    weights: of the checkpoint file.  architecture: of the settings of the network.
    pixels: of a synthetic image after preprocessing.  tokens: of the tokenizer, None without text.
    labels: of the outputs, in order, as far as the file says; None where it does not.
    """

    weights: str
    architecture: str
    pixels: str
    tokens: str | None = None
    labels: tuple[str, ...] | None = None

    def fingerprints(self) -> dict[str, str]:
        """As run folders keep them."""
        return {
            "checkpoint": self.weights,
            "model": self.architecture,
            "preprocessing": self.pixels,
            "tokenizer": self.tokens or "none",
        }


@dataclass
class Model:
    """An ability with its weights, and everything that belongs to them.

    notes: what a reader of a result must know about the weights.
    assumptions: what outputs and token ids are taken to mean where the file does not say; notes for the result.
    missing, unexpected: tensors, in the file's names.  resized: tensor -> "4x4 -> 6x6".
    random: whether tensors kept random values, so that the seed is part of the weights.
    companions: files beside the checkpoint that were read (the tokenizer), by option.
    metadata: what the file carries beside its weights, where this project wrote it.
    outputs: what the file says of the outputs of its head; None for an ability without labels.
    """

    ability: Ability
    card: ModelCard
    identity: Identity
    notes: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: dict[str, str] = field(default_factory=dict)
    random: bool = False
    companions: dict[str, Path] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    outputs: Outputs | None = None

    @property
    def module(self) -> torch.nn.Module | None:
        """The network."""
        return self.ability.module


# ---- training -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingOptions:
    """How a training starts.

    source: pretrained weights; None = from scratch.
    recipe: the hyper-parameters.  seed: of new weights.
    tokenizer: file; None = beside the checkpoint or the data.  data_root: folder of the data.
    shapes_only: the network has shapes but no values (for a dry run).
    """

    recipe: Recipe
    preset: str
    source: Source | None = None
    tokenizer: Path | None = None
    data_root: Path | None = None
    seed: int = 0
    shapes_only: bool = False


class Training(ABC):
    """A network under training. Items carry `Item.target`, what is learned of them:

    `Embeds`: image and text are a pair; ``target`` None, or an int (pairs of equal targets are not each other's negatives).
    `Answers`: ``{position in Asked.labels: weight}``.  `Classifies`: position of the label.  `Captions`: the text is the caption.
    `Detects`: list of ``{"bbox", "segmentation", "class"}`` in COCO's conventions; without masks no ``segmentation``.

    Attributes:
        ability: of the network, for validation.
        settings: of the network, plain values.  preprocessing: of evaluation, plain values.
        fingerprints: of the start, the network and the tokenizer: what has to be the same to resume.
        start: ``{"checkpoint", "sha256", "missing", "unexpected", "resized"}`` of the pretrained file, plain values.
        new: names of tensors that the pretrained file did not have or had too much, as was allowed.
        notes: for a reader of the validation scores.
        companions: files that belong beside the checkpoints, by the name that they get there.
        resolved: options by name as they are in force.
        shard_layers: names of the classes whose modules are gathered one at a time where the network is sharded over processes.
    """

    ability: Ability
    settings: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    fingerprints: dict[str, str]
    start: dict[str, Any]
    new: list[str]
    notes: list[str]
    companions: dict[str, Path]
    resolved: Mapping[str, Any]
    shard_layers: tuple[str, ...] = ()

    @property
    def module(self) -> torch.nn.Module:
        return self.ability.module

    def prepare(self, items: Sequence[Item]) -> None:
        """Do once what all processes can share; see `Reader.prepare`."""
        self.ability.reader.prepare(items)

    @abstractmethod
    def collate(self, items: Sequence[Item], generator: torch.Generator) -> Batch:
        """Decode, augment and pad; in a worker process. Draws from ``generator`` by the item's id or image, so that an item
        looks the same whatever stands beside it.
        """

    @abstractmethod
    def loss(self, module: torch.nn.Module, batch: Batch, gather: Callable, step: int) -> torch.Tensor:
        """Training loss (scalar). ``gather(tensor)`` concatenates over processes, with gradients."""

    @abstractmethod
    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups: ``{"name", "params", "names", "lr_scale", "weight_decay"}``."""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint of this network carries so that it can be loaded without further options; plain values."""

    @abstractmethod
    def state_dict(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The weights under the names in which checkpoints are kept."""

    def mixed(self, batch: Batch, seed: int) -> Batch:
        """The batch on the device with what mixes its samples (mixup, erasing)."""
        return batch

    def memory(self, samples: int, dtype: str, average: bool, shards: int = 1) -> dict[str, int]:
        """Estimated bytes on one device: ``{"weights", "gathered", "activations", "total"}``; zeros where nothing is known."""
        return dict.fromkeys(("weights", "gathered", "activations", "total"), 0)


@dataclass(frozen=True)
class EngineRequest:
    """What a `TrainingEngine` is asked for: what `beit3-bench finetune` was given, and what the task has read.

    root: folder of the data in the layout that the framework reads (`Task.root`).
    training, validation: all samples; their image files are there. `Item.target` is the file of the label map.
    preset: architecture; None = that of the recipe's name, or of the checkpoint.
    recipe: name of the hyper-parameters; None = the preset's.  options: hyper-parameters over it, as strings (``-o``).
    checkpoint: to start from; None = from scratch, which ``from_scratch`` must allow.
    output: folder; None = one below ``results/runs``, named after task and recipe.
    workers: decoding processes; None = chosen from the cores.
    resume, overwrite: what to do with an earlier training in the folder.
    """

    root: Path
    training: Sequence[Item]
    validation: Sequence[Item]
    preset: str | None = None
    recipe: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    checkpoint: Path | None = None
    output: Path | None = None
    device: str = "auto"
    dtype: str = "fp32"
    workers: int | None = None
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    from_scratch: bool = False


class TrainingEngine(ABC):
    """A framework that trains in its own way instead of by the harness's loop."""

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """What a training would do, in plain values; nothing is written."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Train, or go on: ``{"task", "folder", "checkpoint", "steps", "best", "seconds", ...}``."""


class Benchmark(ABC):
    """How fast a family's networks are, as ratios measured in one run."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[str, ...]:
        """For which there is a case."""

    @abstractmethod
    def measure(
        self,
        task: str,
        preset: str,
        device: torch.device,
        dtype: str,
        samples: int | None = None,
        repeats: int = 5,
        image_size: int | None = None,
        same_process: bool = False,
        compiled: bool = False,
    ) -> dict[str, Any]:
        """Medians and ratios of one case, plain values."""


# ---- a family -----------------------------------------------------------------------------------------------------------


class Family(ABC):
    """A kind of model. Importing a family's module must not import torch.

    Class attributes:
        name: as `--checkpoint NAME:SOURCE` says it.  title: as people say it.
        abilities: what its models can be asked; which of them a file holds, `load` finds.
        engines: those of them that a framework trains in its own way (`training_engine`) instead of by the harness's loop.
        scratch_presets: architectures that are meant to be trained without pretrained weights.
        Options: a dataclass of options of the family's own, which no released file needs.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    abilities: ClassVar[tuple[type[Ability], ...]]
    engines: ClassVar[tuple[type[Ability], ...]] = ()
    scratch_presets: ClassVar[tuple[str, ...]] = ()

    @dataclass
    class Options:
        """A family without options of its own."""

    def locate(self, text: str) -> Path:
        """The file or folder that SOURCE names.

        Raises:
            BenchError: there is none.
        """
        from beit3_bench.backbones.file_kinds import checkpoint_file

        return checkpoint_file(Path(text))

    def check(self, asked: Asked) -> None:
        """Raise for options of the task (`Asked.values`) that this family cannot mean, before anything is read.

        Raises:
            BenchError: names the option and what it can be.
        """

    @abstractmethod
    def claims(self, source: Source) -> bool:
        """Whether a file or folder is of this family, by its tensors' names or its config. Raises nothing of its own."""

    @abstractmethod
    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        """The model of a file, in evaluation mode, on the CPU.

        Raises:
            BenchError: the file does not hold this ability, or does not fit; names file and mend.
        """

    def presets(self) -> tuple[str, ...]:
        """Architectures with a name."""
        return ()

    def parameters(self) -> Mapping[str, Mapping[str, int]]:
        """Parameters of every preset by part (``"attention"``), with a ``"total"``."""
        return {}

    def problem(self, package: str) -> str | None:
        """What keeps an optional package that is installed from being used by this family, in a line; for `beit3-bench doctor`."""
        return None

    def benchmark(self) -> Benchmark | None:
        """Its speed, as `beit3-bench bench` measures it."""
        return None

    def released(self) -> Sequence[ReleasedFile]:
        """The files that the authors released. Must not import torch."""
        return ()

    def recipe(self, asked: Asked, name: str) -> Mapping[str, Any] | None:
        """Hyper-parameters of fine-tuning by name, as `recipe.make_recipe` takes them, with all that they inherit; None where the
        family has none.
        """
        return None

    def recipe_names(self, task: str) -> tuple[str, ...]:
        """Names for which `recipe` has hyper-parameters of a task."""
        return ()

    def recipe_tasks(self) -> tuple[str, ...]:
        """Tasks for which there are any, sorted by name."""
        return ()

    def preset_of(self, source: Source) -> str | None:
        """The architecture of a pretrained file; None where it is none with a name.

        Raises:
            BenchError: it is none of this family's.
        """
        return None

    def start_training(self, asked: Asked, options: TrainingOptions) -> Training:
        """A network to be trained, checked against its pretrained weights.

        Raises:
            BenchError: the family cannot be fine-tuned, or something does not fit.
        """
        raise BenchError(f"{self.title} models are evaluated, not fine-tuned, by this version")

    def training_engine(self, asked: Asked, request: EngineRequest) -> TrainingEngine:
        """The framework that trains an ability of `engines`.

        Raises:
            BenchError: bad input, as far as it shows before the training; nothing has been written.
        """
        raise BenchError(f"{self.title} models that {asked.ability.word} are trained by no framework of their own")


def family_options(family: Family) -> set[str]:
    """Names of the options of the family's own."""
    return {f.name for f in fields(family.Options)}
