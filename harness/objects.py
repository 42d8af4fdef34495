"""Any Python object that has an ability's methods, as a model that the harness can run."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from beit3_bench.backbones.abilities import (
    Ability,
    Answers,
    Batch,
    Caption,
    Captions,
    Classifies,
    Detects,
    Embeds,
    Item,
    Reader,
    Segments,
)
from beit3_bench.backbones.archives.members import member_at
from beit3_bench.backbones.family import Identity, Model, ModelCard, digest
from beit3_bench.backbones.preprocess import decode
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Split, Task

OBJECT = "object"
"""The family that a run's card names where the model was any object."""


@runtime_checkable
class CanEmbed(Protocol):
    def embed(self, *, images: Any = None, texts: Any = None) -> Any: ...


@runtime_checkable
class CanAnswer(Protocol):
    def answer(self, *, images: Any, questions: Any) -> Any: ...


@runtime_checkable
class CanCaption(Protocol):
    def caption(self, *, images: Any) -> Any: ...


@runtime_checkable
class CanClassify(Protocol):
    def classify(self, *, images: Any, texts: Any = None) -> Any: ...


@runtime_checkable
class CanDetect(Protocol):
    def detect(self, *, images: Any) -> Any: ...


@runtime_checkable
class CanSegment(Protocol):
    def segment(self, *, images: Any) -> Any: ...


class _AsAsked(Reader):
    """Items as they are; images and texts never share a batch."""

    def length(self, item: Item) -> int:
        return int(item.text is None)

    def collate(self, items: Sequence[Item]) -> Batch:
        return {"items": list(items)}


class _Object(Ability):
    """An object's method as an ability."""

    def __init__(self, asked: Any):
        super().__init__(None, _AsAsked())
        self.asked = asked

    def predict(self, batch: Batch) -> list[Any]:
        items: list[Item] = batch["items"]
        given = self.values(items)
        if isinstance(given, (str, bytes, Mapping, Set)) or not isinstance(given, Iterable):
            raise BenchError(
                f"{type(self.asked).__name__}.{self.word}: gave a {type(given).__name__}; expected is a list, with {self.value} "
                "for each thing that it was asked about"
            )
        values = list(given)
        if len(values) != len(items):
            raise BenchError(
                f"{type(self.asked).__name__}.{self.word}: gave {len(values)} values for {len(items)} items"
            )
        return values

    @abstractmethod
    def values(self, items: Sequence[Item]) -> Any:
        """What the method gives, as it stands."""

    def images(self, items: Sequence[Item]) -> list[Any]:
        given = [tuple(_openable(image) for image in item.images) for item in items]
        return [images[0] if len(images) == 1 else images for images in given]


def _openable(image: Any) -> Any:
    """What an object can open: a member of an archive, which only this project's reader finds, as a PIL image."""
    return image if isinstance(image, Image.Image) or member_at(image) is None else decode(image)


class _Embedding(_Object, Embeds):
    def values(self, items: Sequence[Item]) -> Any:
        given = {"images": self.images(items)} if items[0].images else {"texts": [item.text for item in items]}
        return self.asked.embed(**given)

    def checked(self, value: Any) -> np.ndarray:
        with np.errstate(over="ignore"):  # refused below
            return super().checked(super().checked(value).astype(np.float32))


class _Answering(_Object, Answers):
    def values(self, items: Sequence[Item]) -> Any:
        return self.asked.answer(images=self.images(items), questions=[item.text for item in items])


class _Captioning(_Object, Captions):
    def values(self, items: Sequence[Item]) -> Any:
        return self.asked.caption(images=self.images(items))

    def checked(self, value: Any) -> Caption:
        return value if isinstance(value, Caption) else super().checked(Caption(value))


class _Classifying(_Object, Classifies):
    def values(self, items: Sequence[Item]) -> Any:
        texts = {} if items[0].text is None else {"texts": [item.text for item in items]}
        return self.asked.classify(images=self.images(items), **texts)

    def checked(self, value: Any) -> np.ndarray:
        """Scores, or the best (label, score), as scores over the data's labels."""
        listed = value if isinstance(value, (tuple, list)) else ()
        if any(isinstance(part, (bool, np.bool_)) for part in listed):
            raise ValueError(f"{value!r} holds true or false; name a label as text, such as {self._some_label()!r}")
        if not (len(listed) == 2 and isinstance(listed[0], str)):
            if (
                isinstance(value, tuple)
                and len(value) == 2
                and isinstance(value[0], int)
                and isinstance(value[1], float)
            ):
                raise ValueError(
                    f"{value!r} may be two scores or a number and its score; give scores as a list, a label as text, such as "
                    f"{self._some_label()!r}"
                )
            return super().checked(value)
        label, score = listed
        if self.labels is None or label not in self.labels:
            raise ValueError(f"label {label!r} is none of the data's, such as {self._some_label()!r}")
        scores = np.zeros(len(self.labels), dtype=np.float32)
        scores[self.labels.index(label)] = max(
            super().checked([score] * len(self.labels))[0], np.finfo(np.float32).tiny
        )
        return scores

    def _some_label(self) -> str:
        return self.labels[0] if self.labels else ""


class _Detecting(_Object, Detects):
    def values(self, items: Sequence[Item]) -> Any:
        return self.asked.detect(images=self.images(items))


class _Segmenting(_Object, Segments):
    def values(self, items: Sequence[Item]) -> Any:
        return self.asked.segment(images=self.images(items))


_KINDS: dict[type[Ability], tuple[type, type[_Object]]] = {
    Embeds: (CanEmbed, _Embedding),
    Answers: (CanAnswer, _Answering),
    Captions: (CanCaption, _Captioning),
    Classifies: (CanClassify, _Classifying),
    Detects: (CanDetect, _Detecting),
    Segments: (CanSegment, _Segmenting),
}


def plain_model(asked: Any, task: Task, split: Split) -> Model:
    """An object with an ability's methods, as a model. It has no identity: a run folder of another object is never gone on with.

    Raises:
        BenchError: it lacks the method that the task asks for.
    """
    needed, kind = _KINDS[task.ability]
    if isinstance(asked, type):
        raise BenchError(f"{asked.__name__}: is a class; give an object of it, {asked.__name__}(...)")
    if not isinstance(asked, needed):
        raise BenchError(
            f"{type(asked).__name__}: task {task.name} asks {task.ability.word}, and it has no method of that name; "
            "see beit3_bench.evaluate"
        )
    name = type(asked).__name__
    ability = kind(asked)
    ability.labels = split.labels
    unknown = digest(secrets.token_hex(16))
    return Model(ability, ModelCard(OBJECT, name, "", protocol=""), Identity(unknown, digest(name), unknown))
