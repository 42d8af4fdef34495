"""From ``[FAMILY:]SOURCE`` to a model that can be asked what a task asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from beit3_bench.backbones.abilities import Item, Reader
from beit3_bench.backbones.family import Asked, Family, LoadOptions, Model, Outputs, family_options
from beit3_bench.backbones.registry import families, family_locations, find_family, get_family, locate
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError
from beit3_bench.garbage import collection_paused
from beit3_bench.harness.request import RunRequest
from beit3_bench.harness.reuse.image_cache import ImageCache
from beit3_bench.harness.settings.files import is_setting
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.contract import Split, Task
from beit3_bench.tasks.options import option_names, parse_options


@dataclass(frozen=True)
class Located:
    """A checkpoint that is there, and its family where it was named."""

    family: Family | None
    source: Source

    @classmethod
    def of(cls, text: str | Path) -> Located:
        """Raises: BenchError: there is no such file or family."""
        return cls(*locate(text))

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def name(self) -> str | None:
        """``FAMILY:SOURCE`` where the family was named, found from any folder where SOURCE is a path; else None."""
        if self.family is None:
            return None
        place = self.path.absolute() if Path(self.source.text) == self.path else self.source.text
        return f"{self.family.name}:{place}"

    @property
    def stem(self) -> str:
        """For the name of a folder."""
        return self.source.path.stem if self.family is None else f"{self.family.name}-{self.source.path.stem}"


def split_options(task_class: type[Task], options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """``-o`` options of the task, and those that only a family knows.

    One that nobody knows is the task's, which refuses it, unless its nearest name is known.

    Raises:
        BenchError: an unknown one, with the nearest name of both.
    """
    own = option_names(task_class.Options)
    others = {name for family in families() for name in family_options(family)} - own
    for key in options:
        name = key.replace("-", "_")
        if name not in own | others and (hint := did_you_mean(name, [*sorted(own), *sorted(others)], otherwise="")):
            raise BenchError(f"task {task_class.name} has no option {key!r}; {hint}")
    family = {key: value for key, value in options.items() if key.replace("-", "_") in others}
    return {key: value for key, value in options.items() if key not in family}, family


def make_task(task_class: type[Task], request: RunRequest, located: Located | None = None) -> Task:
    """The task with its options, as it is asked of the model's family.

    Raises:
        BenchError: an unknown option, or a value that does not convert; no or several families.
    """
    task = task_class(request.data_root, split_options(task_class, request.options)[0])
    return task if located is None else suited_to(task, located)


def suited_to(task: Task, located: Located) -> Task:
    """The same task, as it is asked of the family of a checkpoint.

    Raises:
        BenchError: no or several families, or an option that such a model cannot mean.
    """
    if task.prompted or task.instead:
        _suit(task, located.family or find_family(located.source, task.ability))
    return task


def suited(task: Task, family: str) -> Task:
    """The same task, as it is asked of a model of a family by name; one that is not known is asked as the task would."""
    if (task.prompted or task.instead) and family in family_locations():
        _suit(task, get_family(family))
    return task


def _suit(task: Task, family: Family) -> None:
    """Give a task the family's words, and let it ask what the family offers."""
    if task.prompted:
        task.prompts = family.prompts(task.asks_as or task.name)
    offered = [ability for ability in (task.ability, *task.instead) if ability in family.abilities]
    if offered and offered[0] is not task.ability:
        task.ask(offered[0])


def load_model(located: Located, task: Task, split: Split, request: RunRequest) -> Model:
    """The model of a checkpoint, ready to be asked about a split: labels checked, texts tokenised, images through the cache.

    Raises:
        BenchError: no or several families, an ability that the family does not offer, and everything that `Family.load` raises.
    """
    model = load_asked(located, task.asked(split), request, split_options(type(task), request.options)[1])
    readers = [model.ability.reader, *([model.second.ability.reader] if model.second and not model.all_pairs else [])]
    if request.corruption is not None and not any(example.images for example in split.examples):
        raise BenchError(f"--corrupt {request.corruption.label}: task {task.name} shows no image; leave --corrupt out")
    for reader in readers:
        if request.corruption is not None:
            reader.corrupt(request.corruption)
        if request.image_cache is not None and reader.transform is not None:
            reader.transform = ImageCache(request.image_cache, reader.transform)
    prepare_reader(readers[0], [task.item(example) for example in split.examples])
    return model


@collection_paused()
def prepare_reader(reader: Reader, items: Sequence[Item]) -> None:
    """`Reader.prepare`, for texts that are Unicode: halves of a character mean something else to every tokenizer.

    Raises:
        BenchError: a lone surrogate, or a text that the model cannot take; names the item.
    """
    for item in items:
        try:
            if isinstance(item.text, str):
                item.text.encode()
        except UnicodeEncodeError as error:
            raise BenchError(
                f"example {item.id}: the text {item.text!r:.80} is not Unicode (lone surrogates); mend the file that it comes from"
            ) from error
    reader.prepare(items)


def tokenizer_for(family: Family, request: RunRequest) -> Path | None:
    """The tokenizer that a family is to read: what was typed; what settings say of all runs, if it is a file of its kind.

    Settings that name BEiT-3's ``beit3.spm`` say nothing of a model that reads a ``vocab.txt``.
    """
    if request.tokenizer is None or not is_setting(request.resolved_from.get("tokenizer", "")):
        return request.tokenizer
    kinds = {Path(name).suffix for name in family.tokenizer_files}
    return request.tokenizer if request.tokenizer.suffix in kinds else None


def load_asked(located: Located, asked: Asked, request: RunRequest, options: Mapping[str, str]) -> Model:
    """The model of a checkpoint for what is asked. options: the family's own."""
    able = [family for family in families() if asked.ability in family.abilities]
    if located.family is None and len(able) == 1:
        able[0].check(asked)  # before the file is read: a stack that is missing, options that cannot be
    family = located.family or find_family(located.source, asked.ability)
    if asked.ability not in family.abilities:
        offered = ", ".join(ability.word for ability in family.abilities)
        others = f" ({', '.join(other.name for other in able)})" if able else ""
        raise BenchError(
            f"{located.path}: {family.name} offers {offered}; {asked.task} asks {asked.ability.word}; "
            f"give a checkpoint of another family{others}"
        )
    family.check(asked)
    given = parse_options(family.Options, options, f"family {family.name}")
    how = LoadOptions(tokenizer_for(family, request), request.preset, request.image_size, request.allow_missing, given)
    known: list[Outputs] = []

    def check(outputs: Outputs) -> list[str]:
        known.append(outputs)
        return asked.check_outputs(outputs)

    model = family.load(located.source, replace(asked, check_outputs=check), how)
    located.source.release()
    model.outputs = known[0] if known else None
    model.ability.labels = asked.labels if asked.labels is not None else model.identity.labels
    return model
