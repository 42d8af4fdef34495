"""Which class folder is which output of a head: by WordNet id, by number, or by a list that says so."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from beit3_bench.backbones.family import Outputs
from beit3_bench.errors import BenchError
from beit3_bench.tasks.files import read_json
from beit3_bench.tasks.labels import first_difference

WORDNET_ID = re.compile(r"n\d{8}")
IMAGENET_CLASSES = 1_000
LIST_ORDER = 'say which output each folder is with -o class_names=FILE.json (["FOLDER OF OUTPUT 0", ...])'


def in_order(folders: Sequence[str]) -> list[str]:
    """Folder names in label order: numbers by value, everything else (WordNet ids) as text.

    Raises:
        BenchError: two folders of one number (``1`` and ``01``).
    """
    if not are_numbers(folders):
        return sorted(folders)
    ordered = sorted(folders, key=int)
    for a, b in itertools.pairwise(ordered):
        if int(a) == int(b):
            raise BenchError(f"class folders {a!r} and {b!r} are the same number; merge or rename them")
    return ordered


def are_numbers(folders: Sequence[str]) -> bool:
    """Whether all folders are named by a number."""
    return bool(folders) and all(name.isascii() and name.isdecimal() for name in folders)


def count_from_zero(folders: Sequence[str]) -> bool:
    """Whether folders in label order are numbered 0, 1, 2, ... without a gap."""
    return are_numbers(folders) and [int(name) for name in folders] == list(range(len(folders)))


def are_wordnet_ids(folders: Sequence[str]) -> bool:
    return all(WORDNET_ID.fullmatch(name) for name in folders)


def listed_order(folders: Sequence[str], path: Path) -> list[str]:
    """Folder names in the order of a JSON list.

    Raises:
        BenchError: not a list of exactly these folders.
    """
    names = read_json(path, "class list")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BenchError(f"{path}: expected a JSON list of folder names in the order of the head's outputs")
    if sorted(names) != sorted(folders):
        odd = sorted(set(names) ^ set(folders)) or sorted({n for n in names if names.count(n) > 1})
        where = "folders" if odd[0] in set(folders) - set(names) else "list"
        raise BenchError(
            f"{path}: lists {len(names)} classes, there are {len(folders)} class folders, and {odd[0]!r} is in the {where} "
            "only or twice; list every folder once"
        )
    return names


def names_by_number(folders: Sequence[str], names: Sequence[str], path: Path) -> list[str]:
    """The name of each folder from a list in label order, whose place in it is the folder's number.

    Raises:
        BenchError: folders whose place cannot be known.
    """
    places = [int(name) for name in folders]
    if min(places) == 1 and places == list(range(1, len(names) + 1)):
        raise BenchError(
            f"{path}: a list in label order begins with label 0, the class folders are numbered from 1; "
            'give an object by folder name instead ({"1": "...", ...}), or rename the folders to 0, 1, ...'
        )
    if max(places) >= len(names):
        raise BenchError(
            f"{path}: has {len(names)} names, the class folders are numbered up to {max(places)}; "
            "give a name for every label, or an object by folder name"
        )
    return [names[place] for place in places]


def check_class_folders(folders: Sequence[str], listed: Path | None, root: Path, outputs: Outputs) -> list[str]:
    """Compare class folders with the outputs of a head.

    Args:
        folders: names in the order in which they are taken to be the outputs.
        listed: the file that says so; None = their own order.
        outputs: of the checkpoint's head; ``labels`` are the folders that it was trained with.

    Returns:
        Notes for the result: what could not be known.

    Raises:
        BenchError: another number of classes, other classes, or an order that cannot be known.
    """
    checkpoint, count = outputs.checkpoint, outputs.count
    trained = None if outputs.labels is None else list(outputs.labels)
    if trained is None and outputs.released and count == IMAGENET_CLASSES:
        trained = imagenet_classes()
    if count is not None and count != len(folders):
        strange = [n for n in folders if trained and n not in trained] or [
            n for n in folders if not WORDNET_ID.fullmatch(n)
        ]
        some = 0 < len(strange) < len(folders)
        hint = f" (is {strange[0]!r} a class?)" if some else ""
        raise BenchError(
            f"{checkpoint}: its head tells {count} classes apart, {root} has {len(folders)} class folders{hint}; "
            "give the data set that it was trained for"
        )
    if trained is not None and trained == list(folders):
        return []
    if listed is not None:
        if trained is None or set(trained) != set(folders):
            return [f"class folders are paired with the outputs as {listed.name} lists them"]
        raise BenchError(
            f"{listed}: is not the checkpoint's own order: {first_difference(trained, folders, 'output')}; leave it out"
        )
    if are_numbers(folders):
        return _check_numbers(folders, trained, root, checkpoint, outputs.metadata)
    if trained is not None:
        raise BenchError(
            f"{checkpoint}: was trained for other classes than {root} holds: "
            f"{first_difference(trained, folders, 'output')}; give its own data set, or {LIST_ORDER}"
        )
    if not are_wordnet_ids(folders):
        strange = [n for n in folders if not WORDNET_ID.fullmatch(n)]
        raise BenchError(
            f"{root}: class folder {strange[0]!r} is no WordNet id, and the checkpoint carries no class list, so that nobody "
            f"can know which output it is; {LIST_ORDER}"
        )
    if len(folders) == IMAGENET_CLASSES and list(folders) == imagenet_classes():
        return []
    return ["the checkpoint carries no class list: its outputs are taken to be the class folders in sorted order"]


def _check_numbers(
    folders: Sequence[str], trained: Sequence[str] | None, root: Path, checkpoint: Path, metadata: Mapping[str, Any]
) -> list[str]:
    if trained is None and metadata.get("head_arguments") and list(folders) != sorted(folders):
        raise BenchError(
            f"{checkpoint}: carries no class list; the version that fine-tuned it sorted the folders of {root} as text "
            f"({', '.join(sorted(folders)[:3])}, ...); {LIST_ORDER}"
        )
    if not count_from_zero(folders):
        raise BenchError(
            f"{root}: class folders are numbered {folders[0]}..{folders[-1]}, and nothing says which output of the head each "
            "is (ILSVRC's own numbers 1..1000 are in another order than the heads of released checkpoints); rename them by "
            f"WordNet id or to 0..{len(folders) - 1}, or {LIST_ORDER}"
        )
    return ["class folders are named by number: folder N is taken to be output N of the head"]


def imagenet_classes() -> list[str]:
    """The 1,000 WordNet ids of ImageNet-1K in the order of the released heads."""
    return list(imagenet_lemmas())


@cache
def imagenet_lemmas() -> Mapping[str, str]:
    """WordNet id -> its lemmas, joined by ``", "``, of the classes of ImageNet-1K in the order of the released heads.

    Those of timm's `ImageNetInfo`, from its files: the import of ``timm.data`` takes longer than that of torch.
    """
    timm = importlib.util.find_spec("timm")
    if timm is not None and timm.origin is not None:
        folder = Path(timm.origin).parent / "data" / "_info"
        with suppress(OSError, ValueError, KeyError, csv.Error):  # a version that keeps them elsewhere
            ids = (folder / "imagenet_synsets.txt").read_text("utf-8").splitlines()
            lines = (folder / "imagenet_synset_to_lemma.txt").read_text("utf-8").splitlines()
            lemmas = dict(csv.reader(lines, delimiter="\t"))
            return {name: lemmas[name] for name in ids}
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return {name: info.label_name_to_description(name) for name in info.label_names()}


def readable_names(folders: Sequence[str]) -> list[str]:
    """What people call the classes of folders: the first WordNet lemma of an id of ImageNet-1K (all of them
    where another class shares it), the folder's own name elsewhere."""
    if not folders or not are_wordnet_ids(folders):
        return list(folders)
    known = imagenet_lemmas()
    whole = [known.get(name, name) for name in folders]
    first = [name.partition(",")[0] for name in whole]
    return [short if first.count(short) == 1 else long for short, long in zip(first, whole, strict=True)]
