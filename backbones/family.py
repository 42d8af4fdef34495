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
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.abilities import Ability, Matches
    from beit3_bench.backbones.benchmark import Benchmark
    from beit3_bench.backbones.numerics import Head
    from beit3_bench.backbones.released import ReleasedFile
    from beit3_bench.backbones.training import EngineRequest, Training, TrainingEngine, TrainingOptions


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
    labels_source: the file or folder that they were read from, for messages.
    asks_as: the task that asks the same, whose released files answer this one, too; "" = no other.
    side: of images in pixels by the task's protocol, to be made whole patches; None = the file's own.
    pooled: of `Patches`, whether their mean is asked for, of unit length: an ability as `Embeds`, of images as the file's own transform
        makes them.
    """

    ability: type[Ability]
    task: str
    images: int = 1
    text: bool = True
    labels: tuple[str, ...] | None = None
    check_outputs: Callable[[Outputs], list[str]] = _unchecked
    values: Mapping[str, Any] = field(default_factory=dict)
    labels_source: Path = Path()
    asks_as: str = ""
    side: int | None = None
    pooled: bool = False


@dataclass(frozen=True)
class Prompts:
    """How a family puts the classes of a task into words, where the task's options do not say it.

    name: what results call it.
    class_names: of ImageNet-1K, in the order of the sorted WordNet ids; empty = the task's own.
    templates: texts with ``{}`` where the class goes; empty = the task's own.
    """

    name: str
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class SecondPass:
    """How a family looks again at what `Model.ability` found; or at everything, where it finds nothing by itself.

    ability: of the same network.  candidates: best of the first pass that a query is compared with; 0 = those that the task names;
        None = there is no first pass, and all pairs are compared.
    adds_first: whether the score of the first pass joins that of the second.  given: whether the user said how many.
    """

    ability: Matches
    candidates: int | None
    adds_first: bool
    given: bool = False

    @property
    def alone(self) -> bool:
        """Whether there is no first pass."""
        return self.candidates is None


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
    second: a second pass over the first one's best; None = there is one pass.
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
    second: SecondPass | None = None

    @property
    def module(self) -> torch.nn.Module | None:
        """The network."""
        return self.ability.module

    @property
    def all_pairs(self) -> bool:
        """Whether the second pass is the only one."""
        return self.second is not None and self.second.alone


# ---- a family -----------------------------------------------------------------------------------------------------------


class Family(ABC):
    """A kind of model. Importing a family's module must not import torch.

    Class attributes:
        name: as `--checkpoint NAME:SOURCE` says it.  title: as people say it.
        tokenizer_files: names under which a tokenizer is looked for beside a checkpoint.
        abilities: what its models can be asked; which of them a file holds, `load` finds.
        engines: those of them that a framework trains in its own way (`training_engine`) instead of by the harness's loop.
        scratch_presets: architectures that are meant to be trained without pretrained weights.
        specimens: task -> SOURCE, below the folder that `write_specimens` fills.
        Options: a dataclass of options of the family's own, which no released file needs.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str]
    tokenizer_files: ClassVar[tuple[str, ...]] = ()
    abilities: ClassVar[tuple[type[Ability], ...]]
    engines: ClassVar[tuple[type[Ability], ...]] = ()
    scratch_presets: ClassVar[tuple[str, ...]] = ()
    specimens: ClassVar[Mapping[str, str]] = {}

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

    def prompts(self, task: str) -> Prompts | None:
        """How the texts of a task are worded by default; None = as the task does it.

        Raises:
            BenchError: an optional package is missing.
        """
        return None

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

    def numerics(self) -> Sequence[Head]:
        """Heads of tiny networks with what the authors' code made of them, as `beit3-bench doctor --numerics` compares them.

        Raises:
            BenchError: an embedded file is missing or damaged.
        """
        return ()

    def released(self) -> Sequence[ReleasedFile]:
        """The files that the authors released. Must not import torch."""
        return ()

    def write_specimens(self, folder: Path, texts: Sequence[str]) -> None:
        """Write tiny models with random weights, `specimens`, in the form of this family's own files: they have learned nothing and
        score near chance.

        Args:
            folder: a new one.
            texts: whose words a vocabulary of theirs should have.

        Raises:
            BenchError: an optional package is missing.
        """

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
