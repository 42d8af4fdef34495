"""Data of one's own: a file with one JSON object a line, and images that its lines name from its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from beit3_bench.backbones.archives.members import exists
from beit3_bench.backbones.family import digest
from beit3_bench.errors import BenchError
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.contract import Split, Task
from beit3_bench.tasks.files import field, identifier, read_json_lines

NAME = re.compile(r"\w[\w .+()-]{0,79}")
"""What data may be called: the name stands in tables and in the name of a run's folder."""
LISTED = ("captions", "answers")
"""Keys that hold several texts; in the singular, one."""


@dataclass(frozen=True)
class Line:
    """One sample as the file says it.

    source: ``FILE:NUMBER``, for messages.
    id: the line's own, or its number.
    image: the file to open.  name: how the data calls it, relative to the folder of the file.
    texts: key -> the texts that it holds; one for ``label``, ``question``, ``caption``, ``answer``, which stand under
        ``captions`` and ``answers``. A key that the line leaves out is not there.
    """

    source: str
    id: str
    image: str
    name: str
    texts: Mapping[str, tuple[str, ...]]


class OwnData(Task):
    """What the tasks of one's own data share. ``data_root`` is the file; its one split is called as the data is.

    form: a line of the file, for messages.
    required, optional: keys of a line beside ``image`` and ``id``; one of ``captions`` and ``answers`` may stand in the singular.
    once: whether an image stands in one line only.
    """

    own_data = True
    splits: ClassVar[tuple[str, ...]] = ()
    default_split = ""
    form: ClassVar[str] = ""
    required: ClassVar[tuple[str, ...]] = ()
    optional: ClassVar[tuple[str, ...]] = ()
    once: ClassVar[bool] = True

    @classmethod
    def split_of(cls, name: str | None, data_root: Path) -> str:
        """The name of the data: the one that was given, or that of the file.

        Raises:
            BenchError: none that can stand in the name of a folder.
        """
        chosen = data_root.stem if name is None else name
        if not isinstance(chosen, str) or not NAME.fullmatch(chosen):
            whose = "the file's name" if name is None else "the name"
            raise BenchError(
                f"{data_root}: {whose} {str(chosen)[:80]!r} cannot be that of data in a table; give letters, digits, spaces and "
                ".+()- with --data-name, 80 at most"
            )
        return chosen

    def lines(self) -> list[Line]:
        """The samples of the file, in its order.

        Raises:
            BenchError: bad lines, with file and line: no JSON, unknown or missing keys, empty texts, an id or image that comes twice,
                keys that only some lines have, an image that is not there.
        """
        path = self.data_root
        if path.is_dir():
            raise BenchError(f"{path}: is a folder; give the file, with a line such as {self.form} for each sample")
        lines: list[Line] = []
        own_ids: dict[str, bool] = {}
        for number, record in read_json_lines(path, f"{self.name} data", self.form):
            line = self._line(record, f"{path}:{number}", number)
            own_ids[line.source] = "id" in record
            lines.append(line)
        if not lines:
            raise BenchError(f"{path}: holds no samples; write a line such as {self.form} for each")
        there = {key: {line.source: key in line.texts for line in lines} for key in self.optional}
        _check_alike({"id": own_ids} | there)
        _check_once("id", {line.source: line.id for line in lines}, "give each line its own")
        if self.once:
            _check_once("image", {line.source: line.name for line in lines}, "put what belongs to it into one line")
        missing = [line for line in lines if not exists(line.image)]
        if missing:
            raise BenchError(
                f"{missing[0].source}: image {missing[0].name} not found in {path.parent} ({len(missing)} of {len(lines)} lines name "
                "such); get it, or mend its path, which starts at the folder of the file"
            )
        return lines

    def _line(self, record: Any, source: str, number: int) -> Line:
        if not isinstance(record, dict):
            raise BenchError(f"{source}: expected an object such as {self.form}, found {type(record).__name__}")
        singular = {key.removesuffix("s"): key for key in LISTED if key in (*self.required, *self.optional)}
        known = ["image", "id", *self.required, *self.optional, *singular]
        for key in record:
            if key not in known:
                raise BenchError(f"{source}: no key {key[:40]!r} in a line of {self.name}; {did_you_mean(key, known)}")
        name = field(record, "image", str, source)
        if not name.strip() or "\0" in name:
            raise BenchError(f"{source}: 'image' is empty; name a file")
        texts: dict[str, tuple[str, ...]] = {}
        for key in (*self.required, *self.optional):
            one = next((single for single, several in singular.items() if several == key and single in record), None)
            if one is not None and key in record:
                raise BenchError(f"{source}: has both {one!r} and {key!r}; keep one of them")
            if one is None and key not in record and key in self.optional:
                continue
            texts[key] = _texts(record, one or key, source, several=one is None and key in LISTED)
        name = os.path.normpath(name)
        where = str(self.data_root.parent / name)
        own_id = identifier(record, "id", source) if "id" in record else str(number)
        if not own_id.strip():
            raise BenchError(f"{source}: 'id' is empty; write one, or leave ids out of all lines")
        return Line(source, own_id, where, name, texts)

    def split_with(self, split: str, lines: Sequence[Line], **parts: Any) -> Split:
        """A split of these lines; it knows which data it is by what the lines say."""
        own = digest([[line.id, line.name, line.texts] for line in lines])
        return Split(split, own=own, **parts)

    def training_split(self) -> Split:
        raise BenchError(
            f"{self.name} has no training split; fine-tune on {self.asks_as} and evaluate that checkpoint with --task {self.name}"
        )


def _texts(record: dict[str, Any], key: str, source: str, several: bool) -> tuple[str, ...]:
    """The texts under a key.

    Raises:
        BenchError: it is missing, empty, or holds something else.
    """
    if not several:
        texts = [field(record, key, str, source)]
    else:
        listed = field(record, key, list, source)
        places = {f"{key}[{n}]": text for n, text in enumerate(listed)}
        texts = [field(places, place, str, source) for place in places]
        if not texts:
            raise BenchError(f"{source}: {key!r} is empty; give at least one text, or leave the line out")
    for n, text in enumerate(texts):
        if not text.strip():
            place = f"{key}[{n}]" if several else key
            raise BenchError(f"{source}: {place!r} is an empty text; write it, or leave the line out")
    return tuple(texts)


def _check_alike(keys: Mapping[str, Mapping[str, bool]]) -> None:
    """Raise where some lines have a key and others have not. keys: key -> line -> whether it has it."""
    for key, has in keys.items():
        first, *others = has.items()
        odd = next((source for source, there in others if there != first[1]), None)
        if odd is not None:
            number = first[0].rpartition(":")[2]
            words = f"has no {key!r}, line {number} has" if first[1] else f"has {key!r}, line {number} has none"
            raise BenchError(f"{odd}: {words}; give it in every line, or in none")


def _check_once(what: str, values: Mapping[str, str], mend: str) -> None:
    """Raise where two lines have one id or image. values: line -> value."""
    seen: dict[str, str] = {}
    for source, value in values.items():
        other = seen.setdefault(value, source)
        if other != source:
            raise BenchError(f"{source}: {what} {value} is that of line {other.rpartition(':')[2]}, too; {mend}")
