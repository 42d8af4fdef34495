"""A network under training: what the harness asks of a family that can be fine-tuned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.abilities import Ability, Batch, Item
    from beit3_bench.backbones.recipe import Recipe
    from beit3_bench.backbones.sources import Source


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
        module = self.ability.module
        assert module is not None
        return module

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


class Watcher:
    """Who looks on while a `TrainingEngine` trains. This one does nothing, and never wants it to end."""

    def started(self, step: int, steps: int) -> None:
        """The training goes on from ``step`` of ``steps``."""

    def stepped(self, step: int, values: Mapping[str, float]) -> None:
        """A step is done. values: ``loss``, ``lr``, ``grad_norm`` as far as they are known."""

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The weights of a step have been scored; fractions."""

    def wants_end(self) -> bool:
        """Whether the training is to stop at the end of this step (`Halted`)."""
        return False

    def in_worker(self) -> None:
        """Called in each decoding process."""


class Halted(Exception):
    """A training ended because its `Watcher` wanted it to; the state of ``step`` is kept in ``folder``."""

    def __init__(self, step: int, folder: Path):
        super().__init__(f"step {step} is kept in {folder}")
        self.step, self.folder = step, folder


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
    watcher: is told of steps and scores, and asked whether to end.
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
    watcher: Watcher = field(default=Watcher(), repr=False)


class TrainingEngine(ABC):
    """A framework that trains in its own way instead of by the harness's loop."""

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """What a training would do, in plain values; nothing is written."""

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Train, or go on: ``{"task", "folder", "checkpoint", "steps", "best", "seconds", ...}``.

        Raises:
            Halted: the watcher wanted it; resumed, the training comes to the weights that it would have come to.
        """
