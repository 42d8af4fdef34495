"""The facts of a task, kept as data beside its module: ``tasks/nlvr2.toml`` beside ``tasks/nlvr2.py``.

What the released data holds, what `beit3-bench table` calls it and sets beside it, and which training data shows it. A task of
another package brings ``<task name>.toml`` beside the module that its entry point names; that module is not imported for it.
Sources stand in the files as comments; a count or checksum that no source states is not in them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from beit3_bench.errors import BenchError
from beit3_bench.plain import fill
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.files import look_for, read_text
from beit3_bench.tasks.layouts.places import packed_places
from beit3_bench.tasks.layouts.tables import find_shards
from beit3_bench.tasks.places import Place
from beit3_bench.tasks.registry import task_locations, task_names

Regime = Literal["fine-tuned", "zero-shot", "transfer"]
"""Kinds of training that have a table of their own; see results/published/README.md."""

Seen = Literal["samples", "images", "some images"]
"""What training data shows: the evaluated samples with their truth, so that the number says nothing about new data; all of the
evaluated images with other labels; or a part of them with other labels or captions."""


@dataclass(frozen=True)
class Need:
    """A file or folder that splits need.

    path: as it is called below one of ``folders`` of the data root.
    copies: other places below the data root that hold it in copies of the data (archives of its own name are known).
    exports: what the Hugging Face hub's exports call the split, where a task reads these in its place.
    git_blob: git's object name of the official file: SHA-1 of ``"blob <bytes>\\0"`` and the content; "" where the
        authors publish the file outside of git.
    """

    path: str
    folders: tuple[str, ...] = (".",)
    splits: tuple[str, ...] = ()
    git_blob: str = ""
    copies: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.git_blob and not re.fullmatch("[0-9a-f]{40}", self.git_blob):
            raise ValueError(f"git_blob {self.git_blob!r} is no SHA-1; write its 40 hexadecimal digits")

    def find(self, root: Path) -> Path | None:
        """Where it lies: itself, or the first archive or export that holds it; None where it is not there."""
        return self.find_itself(root) or next(self._packed(root), None)

    def find_itself(self, root: Path) -> Path | None:
        """Where the file or folder of the original layout lies, or None."""
        return look_for(root, self.path, self.folders)

    def _packed(self, root: Path) -> Iterator[Path]:
        if not Path(self.path).suffix:  # a folder
            yield from (file for file, *_ in packed_places(root, self.path, self.folders) if file.is_file())
        yield from (root / name for name in self.copies if (root / name).exists())
        if self.exports:
            yield from find_shards(root, self.exports)


@dataclass(frozen=True)
class Counts:
    """What a split of the released data holds; None where no source states it, or where there is no such thing.

    samples: examples.  images: distinct image files.  texts: sentences of a retrieval split.
    references: captions of all images, or answers of all questions.
    classes: classes that have images.  objects: annotated objects of all images, crowds left out.
    """

    samples: int | None = None
    images: int | None = None
    texts: int | None = None
    references: int | None = None
    classes: int | None = None
    objects: int | None = None

    def __post_init__(self) -> None:
        for name, count in self.stated().items():
            if count < 0:
                raise ValueError(f"{name} is {count}; counts are not negative")

    def stated(self) -> dict[str, int]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class KarpathyFile:
    """The Karpathy split file that a task reads.

    image_folder: where images are when the file does not say it.
    training_images: how many images the splits have that are only for training.
    """

    file: str
    image_folder: str = ""
    training_images: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleasedData:
    """needs: files and folders.  splits: counts by split.

    folders: what the folder of the data set is called, in a folder that holds several data sets.

    ids: digest (`harness.record.released.digest_of_ids`) of the examples with images, by split; several where ids can be
        written in several ways.
    id_form: what of an example's id is compared: the groups of this regular expression; "" = the whole id.
    unique_ids: whether an id means the same sample in every split (nocaps and ImageNet count anew).
    within: splits that are a part of another one.
    references_per_sample: fewest and most captions of an image (answers of a question), where the data has any.
    counted_as: what `Scores.counts` of the task calls samples, where it does so; other counts are called as in `Counts`.
    places: where the files come from.
    """

    needs: tuple[Need, ...] = ()
    splits: Mapping[str, Counts] = field(default_factory=dict)
    ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    id_form: str = ""
    unique_ids: bool = False
    within: Mapping[str, str] = field(default_factory=dict)
    references_per_sample: tuple[int, int] | None = None
    counted_as: str = ""
    karpathy: KarpathyFile | None = None
    folders: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        for split, digests in self.ids.items():
            for digest in digests:
                if not re.fullmatch("[0-9a-f]{64}", digest):
                    raise ValueError(
                        f"ids.{split} has {digest!r}, which is no SHA-256; write its 64 hexadecimal digits"
                    )
        try:
            re.compile(self.id_form)
        except re.error as error:
            raise ValueError(f"id_form is no regular expression ({error}); mend it") from error


@dataclass(frozen=True)
class View:
    """What one table shows, and our names -> those of published values.

    Attributes:
        metrics: our metric -> (published task, published metric); these become columns, in this order.
        order_by: rows are ordered and ranked by the mean of these metrics.
        extra: further measured metrics that become columns; published rows leave them blank.
        derived: our metric -> the metrics whose mean it is, computed for published rows that give all of them.
    """

    metrics: Mapping[str, tuple[str, str]]
    order_by: tuple[str, ...]
    extra: tuple[str, ...] = ()
    derived: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.order_by:
            raise ValueError("order_by names no metric; name the one that rows are ranked by")
        named = {"order_by": self.order_by, "derived": tuple(self.derived)}
        named |= {f"derived.{name}": parts for name, parts in self.derived.items()}
        for key, metrics in named.items():
            for name in metrics:
                if name not in self.metrics:
                    raise ValueError(
                        f"{key} has {name!r}, which is none of metrics; {did_you_mean(name, self.metrics)}"
                    )


@dataclass(frozen=True)
class PublishedNames(View):
    """The table of a task, and further ones of metrics that answer another question.

    Attributes:
        splits: our split -> the published names of that split.
        regimes: kinds of training that have a table.
        transfer_from: weights of these tasks, evaluated here without fine-tuning, belong to the regime ``transfer``.
        views: title -> a table of its own, of the rows that have one of its metrics.
    """

    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    regimes: tuple[Regime, ...] = ("fine-tuned",)
    transfer_from: tuple[str, ...] = ()
    views: Mapping[str, View] = field(default_factory=dict)

    @property
    def printed(self) -> dict[str, tuple[str, str]]:
        """``metrics`` of all tables."""
        return {name: theirs for view in (self, *self.views.values()) for name, theirs in view.metrics.items()}


@dataclass(frozen=True)
class Leak:
    """Training on ``data`` (a name of `ReleasedWeight.trained_on` or `Facts.trained_on`) shows what these splits evaluate.

    why: goes into the note of a result, in parentheses.
    """

    data: str
    splits: tuple[str, ...]
    seen: Seen
    why: str


@dataclass(frozen=True)
class Facts:
    """What a facts file holds; the top-level keys and tables are called as here.

    Attributes:
        title: heading of the task.
        trained_on: names of the data that `beit3-bench finetune` trains on (see `Task.training_examples`).
        data_of: the task whose `data` is that of this one, too, in place of an own one; `read_facts` puts it in.
        data: what was released.
        names: of the table; None for a task without published values.
        leaks: training data that shows samples or images of this task.
        published: published values, each by the columns of results/published (see its README); what is not said is "".
        published_csv: name of a file with such columns that lies beside the facts.
        checkpoints: what its usual training code calls a checkpoint, where that says which task it is of.
    """

    title: str = ""
    trained_on: tuple[str, ...] = ()
    data_of: str = ""
    data: ReleasedData = field(default_factory=ReleasedData)
    names: PublishedNames | None = None
    leaks: tuple[Leak, ...] = ()
    published: tuple[Mapping[str, str], ...] = ()
    published_csv: str = ""
    checkpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.data_of and self.data != ReleasedData():
            raise ValueError("data_of and data are both there; leave one of them away")
        if Path(self.published_csv).name != self.published_csv:
            raise ValueError(f"published_csv {self.published_csv!r} is no file name; put the file beside this one")


def read_facts(task: str) -> Facts:
    """The facts of a task; empty ones for an unknown task, and for one that brings no facts file.

    Raises:
        BenchError: a file that is not what `Facts` says, with the file and the key.
    """
    place = task_locations().get(task)
    return Facts() if place is None else _facts_at(task, place)


def published_names() -> dict[str, PublishedNames]:
    """Names of the tasks that have any, in the order of `task_names`.

    Raises:
        BenchError: from `read_facts`.
    """
    return {task: names for task in task_names() if (names := read_facts(task).names) is not None}


def facts_file(task: str) -> Path | None:
    """Where the facts of a task are, or None. Nothing of the task is imported."""
    place = task_locations().get(task, "")
    folder = _folder_of(place.partition(":")[0])
    if folder is None or not re.fullmatch(r"[\w.-]+", task):
        return None
    file = folder / f"{task}.toml"
    return file if file.is_file() else None


@cache
def _facts_at(task: str, place: str) -> Facts:
    """place: of the class; another class of this name has other facts."""
    facts = _stated(task)
    data = facts.data
    if facts.data_of:
        data = _stated(facts.data_of).data
        if data == ReleasedData():
            raise BenchError(
                f"{facts_file(task)}: data_of: {facts.data_of!r} is no task that states its data; name one that does"
            )
    places = tuple(_whole_place(task, place) for place in data.places)
    return dataclasses.replace(facts, data_of="", data=dataclasses.replace(data, places=places))


def _whole_place(task: str, place: Place) -> Place:
    """With what another task states of the same file."""
    if not place.of:
        return place
    stated = next((p for p in _stated(place.of).data.places if p.file == place.file and not p.of), None)
    if stated is None:
        raise BenchError(
            f"{facts_file(task)}: data.places: {place.file!r} is of {place.of!r}, which does not say where it is; name a task that does"
        )
    return place.stated_by(stated)


def _stated(task: str) -> Facts:
    """What the facts file of a task says."""
    file = facts_file(task)
    if file is None:
        return Facts()
    text = read_text(file, "facts", "the keys that tasks/facts.py lists")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise BenchError(f"{file}: is not valid TOML ({error}); mend it") from error
    return fill(Facts, table, str(file), "{owner}: no key {key!r}; {hint}", texts=False)


def _folder_of(module: str) -> Path | None:
    """The folder that a module lies in; it is not imported, nor are the packages above it."""
    parts = module.split(".")
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):  # no name of a module
        return None
    for end in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[:end]), spec.submodule_search_locations)
    return Path(spec.origin).parent if spec is not None and spec.has_location and spec.origin else None
