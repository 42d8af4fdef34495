"""Files that the authors of a family released, and everything that belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from beit3_bench.errors import BenchError
from beit3_bench.spelling import did_you_mean

Kind = Literal["pretrained", "fine-tuned", "tokenizer"]
Mode = Literal["squash", "crop"]


@dataclass(frozen=True)
class PublishedScore:
    """One value that the official README prints for a file: our task, split and metric names, in percent."""

    task: str
    split: str
    metric: str
    value: float


def recalls(task: str, values: Sequence[float]) -> tuple[PublishedScore, ...]:
    """Retrieval on the test split: TR@1, 5, 10 and IR@1, 5, 10, in percent."""
    names = [f"{direction}@{k}" for direction in ("TR", "IR") for k in (1, 5, 10)]
    return tuple(PublishedScore(task, "test", name, value) for name, value in zip(names, values, strict=True))


@dataclass(frozen=True)
class ReleasedFile:
    """One released file and everything that belongs to it.

    Attributes:
        name: registry name, the file name without its suffix.
        file: the official file name.
        kind: pretrained, fine-tuned or tokenizer.
        preset: architecture preset; empty for the tokenizer.
        image_size: side of the input in pixels; 0 for the tokenizer.
        task: the task of the head it carries; None for pre-trained weights.
        preprocessing: ``"squash"`` (bicubic to S x S, mean = std = 0.5) or ``"crop"`` (resize, centre crop, ImageNet
            mean and std); see `backbones.preprocess.Preprocessing`.
        params: parameters in millions as the README prints them; 0 for the tokenizer.
        parent: registry name of the weights it was fine-tuned from; None for pre-trained ones.
        trained_on: data sets whose images it has seen with labels or captions, beyond the web-scale pre-training pairs.
        note: what a reader must know about its training data.
        published: scores printed for this very file.
        tokenizer: the released file that it goes with.
        family: its name.  location: address of the folder that it can be downloaded from.
        remote: what it is called there, where that is not ``file`` (one name for many files).
        sha256: hex, where the authors publish it; others are pinned, see `backbones.pins`.
        zero_shot: tasks that it is evaluated on as it was pre-trained, beyond those it has published scores of.
        protocol: of its published scores, as `family.ModelCard.protocol` says it, where options can ask for another; "" elsewhere.
    """

    name: str
    file: str
    kind: Kind
    preset: str = ""
    image_size: int = 0
    task: str | None = None
    preprocessing: Mode = "squash"
    params: int = 0
    parent: str | None = None
    trained_on: tuple[str, ...] = ()
    note: str = ""
    published: tuple[PublishedScore, ...] = ()
    tokenizer: str = ""
    licence: str = "MIT"
    family: str = ""
    location: str = ""
    remote: str = ""
    sha256: str = ""
    zero_shot: tuple[str, ...] = ()
    protocol: str = ""

    def answers(self, task: str) -> bool:
        """Whether it is evaluated on a task as it is."""
        return task in (self.task, *self.zero_shot) or any(score.task == task for score in self.published)

    @property
    def url(self) -> str:
        """Official download location."""
        return f"{self.location}/{self.remote or self.file}"


@cache
def released_files() -> tuple[ReleasedFile, ...]:
    """Every released file of every family, in the families' order."""
    from beit3_bench.backbones.registry import families

    return tuple(file for family in families() for file in family.released())


@cache
def _by_key() -> dict[str, ReleasedFile]:
    return {key: file for file in reversed(released_files()) for key in (file.name, file.file)}


def find_released(name_or_filename: str | Path, family: str | None = None) -> ReleasedFile | None:
    """The record of a released file by registry name, file name or path; None for any other file.

    family: whose file it is, where that is known: names such as ``vqa.pth`` are anybody's.
    """
    found = _by_key().get(Path(name_or_filename).name)
    return found if found is None or family in (None, found.family) else None


def get_released(name: str) -> ReleasedFile:
    """The record of a released file that must exist.

    Raises:
        BenchError: no released file is called so; names the nearest.
    """
    file = find_released(name)
    if file is None:
        hint = did_you_mean(name, [f.name for f in released_files()], otherwise="see: beit3-bench models")
        raise BenchError(f"no released file is called {name!r}; {hint}")
    return file


def find_of_task(task: str, family: str | None = None, preset: str | None = None) -> ReleasedFile:
    """The file to evaluate on a task: fine-tuned for it, else evaluated on it as it was pre-trained; the first of these.

    Args:
        family: None: the first that has any.
        preset: None: the first, which is the smallest.

    Raises:
        BenchError: there is none; names the families and presets that have one.
    """
    files = [file for file in released_files() if file.answers(task)]
    if not files:
        known = dict.fromkeys(file.task for file in released_files() if file.task)
        raise BenchError(
            f"no released file is of task {task}; train one (see: beit3-bench finetune --help); they are of: {', '.join(known)}"
        )
    family = family or files[0].family
    of_family = [file for file in files if file.family == family]
    if not of_family:
        names = dict.fromkeys(file.family for file in files)
        raise BenchError(
            f"no released file of family {family!r} is of task {task}; {did_you_mean(family, names, 'there are')}"
        )
    chosen = [file for file in of_family if preset in (None, file.preset)]
    if not chosen:
        names = dict.fromkeys(file.preset for file in of_family)
        raise BenchError(
            f"no released {family} file of preset {preset!r} is of task {task}; {did_you_mean(str(preset), names, 'there are')}"
        )
    return min(chosen, key=lambda file: file.task != task)
