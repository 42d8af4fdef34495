"""A loaded model and pictures -> predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from beit3_bench.backbones.abilities import Answers, Captions, Classifies, Detects, Embeds, Matches, Segments
from beit3_bench.errors import BenchError
from beit3_bench.harness.arguments import as_list, as_texts, check_image
from beit3_bench.harness.pictures.opening import open_upright, upright_copy
from beit3_bench.harness.predicting.predictions import (
    MATCH,
    TOP,
    Answered,
    Asked,
    Described,
    Detected,
    Found,
    Judged,
    Prediction,
    Ranked,
    Segmented,
)
from beit3_bench.tasks.contract import Task

if TYPE_CHECKING:
    from beit3_bench.harness.ready import Candidates, ReadyModel


def predict(
    model: ReadyModel, images: Sequence[Any], texts: Sequence[str] | None, candidates: Candidates | None = None
) -> list[Prediction]:
    """See `ReadyModel.predict`."""
    wanted = [] if texts is None else as_texts(texts, "texts")
    check_texts(model.task, wanted, given=candidates is not None)
    pictures = [as_asked(image, n, model.task.images) for n, image in enumerate(as_list(images, "images"))]
    if issubclass(model.task.ability, Embeds) and candidates is None:
        candidates = model.candidates(wanted)
    return predict_asked(model, pictures, wanted, candidates)


def predict_asked(
    model: ReadyModel, pictures: Sequence[Asked], texts: Sequence[str], candidates: Candidates | None = None
) -> list[Prediction]:
    """As `predict`, of pictures that have been opened and texts that have been checked."""
    ability = model.task.ability
    if issubclass(ability, Embeds):
        assert candidates is not None
        return list(_ranked(model, pictures, candidates))
    if issubclass(ability, Matches):
        return list(_matched(model, pictures, texts))
    if issubclass(ability, Answers):
        pairs = [(one, text) for one in pictures for text in texts]
        answers = model.answer([_given(one) for one, _ in pairs], [text for _, text in pairs])
        return [Answered(one, text, answer) for (one, text), answer in zip(pairs, answers, strict=True)]
    if issubclass(ability, Captions):
        captions = model.caption([_given(one) for one in pictures])
        return [Described(one, caption) for one, caption in zip(pictures, captions, strict=True)]
    if issubclass(ability, Detects):
        return list(_detected(model, pictures))
    if issubclass(ability, Segments):
        maps = model.segment([_given(one) for one in pictures])
        names = _names(model)
        return [Segmented(one, label_map, names) for one, label_map in zip(pictures, maps, strict=True)]
    if issubclass(ability, Classifies):
        return list(_classified(model, pictures, texts))
    raise BenchError(f"task {model.task.name}: predict does not know how to {ability.word}")


def search(names: Sequence[str], cosines: np.ndarray, text: str) -> list[Found]:
    """Pictures by their cosine with one text, the best first (of equals the earlier first); `Asked.images` are left out.

    cosines: float (pictures,).
    """
    order = np.argsort(-cosines, kind="stable").tolist()
    return [
        Found(Asked((names[place],), ()), text, float(cosines[place]), rank, len(names))
        for rank, place in enumerate(order, 1)
    ]


def check_texts(task: Task, texts: Sequence[str], given: bool = False) -> None:
    """Raise for texts that a task lacks, or cannot use. given: candidates stand in for them."""
    for text in texts:
        if not text.strip():
            raise BenchError("a text is empty; give words")
    if given and texts:
        raise BenchError("texts and candidates are given; give one of them")
    if issubclass(task.ability, (Embeds, Matches)):
        if not given:
            task.candidates(texts)
        return
    asks_text = task.uses_text and not issubclass(task.ability, Captions)
    if asks_text and not texts:
        what = "answers a question" if issubclass(task.ability, Answers) else "judges a sentence"
        raise BenchError(f"task {task.name} {what} about the picture; give it as a text (--text)")
    if texts and not asks_text:
        raise BenchError(f"task {task.name} looks at pictures alone; leave the text out")


def as_asked(image: Any, number: int, images: int) -> Asked:
    """What the Python API was given as one image (or a pair), opened and upright."""
    several = tuple(image) if isinstance(image, (tuple, list)) else (image,)
    if len(several) != images:
        wanted = "an image alone is" if images == 1 else f"{images} images, as a pair, are"
        raise BenchError(f"images[{number}]: holds {len(several)} images; {wanted} what the task asks about")
    names, opened = [], []
    for place, one in enumerate(several):
        name = f"images[{number}]" if images == 1 else f"images[{number}][{place}]"
        if isinstance(one, Image.Image):
            check_image(one, name)
            names.append(name)
            opened.append(upright_copy(one))
        elif isinstance(one, (str, Path)):
            names.append(str(one))
            opened.append(open_upright(one))
        else:
            raise BenchError(
                f"{name}: is a {type(one).__name__}; give a path or a PIL image (of an array: Image.fromarray)"
            )
    return Asked(tuple(names), tuple(opened))


def _given(one: Asked) -> Any:
    """As the methods of a ready model take it."""
    return one.images[0] if len(one.images) == 1 else one.images


def _names(model: ReadyModel) -> list[str]:
    """The labels in people's words."""
    return [model.task.words(label) for label in model.labels or ()]


def _ranked(model: ReadyModel, pictures: Sequence[Asked], candidates: Candidates) -> Iterable[Prediction]:
    kind = "classes" if model.task.prompted else "texts"
    for one, cosines in zip(pictures, model.compare([_given(p) for p in pictures], candidates), strict=True):
        order = np.argsort(-cosines, kind="stable").tolist()
        names = tuple(candidates.names[n] for n in order)
        most = TOP if model.task.prompted else len(names)  # who names texts wants to see all of them
        yield Ranked(one, kind, "cosine", names, tuple(float(cosines[n]) for n in order), most=most)


def _matched(model: ReadyModel, pictures: Sequence[Asked], texts: Sequence[str]) -> Iterable[Prediction]:
    for one, scores in zip(pictures, model.match([_given(p) for p in pictures], texts), strict=True):
        order = np.argsort(-scores, kind="stable").tolist()
        names, values = tuple(texts[n] for n in order), tuple(float(scores[n]) for n in order)
        yield Ranked(one, "texts", MATCH, names, values, most=len(names))


def _classified(model: ReadyModel, pictures: Sequence[Asked], texts: Sequence[str]) -> Iterable[Prediction]:
    labels, names = model.labels, _names(model)
    if model.task.uses_text:
        pairs = [(one, text) for one in pictures for text in texts]
        given = [_given(one) for one, _ in pairs]
        for (one, text), row in zip(pairs, model.probabilities(given, [text for _, text in pairs]), strict=True):
            best = int(row.argmax())
            yield Judged(one, text, names[best] if names else f"output {best}", float(row[best]))
        return
    for one, row in zip(pictures, model.probabilities([_given(p) for p in pictures]), strict=True):
        order = np.argsort(-row, kind="stable").tolist()
        yield Ranked(
            one,
            model.task.outputs,
            "probability",
            tuple(names[n] if names else f"output {n}" for n in order),
            tuple(float(row[n]) for n in order),
            tuple(labels[n] for n in order) if labels else None,
        )


def _detected(model: ReadyModel, pictures: Sequence[Asked]) -> Iterable[Prediction]:
    names = _names(model)
    for one, values in zip(pictures, model.detect([_given(p) for p in pictures]), strict=True):
        classes = values["classes"]
        order = np.argsort(-values["scores"], kind="stable")
        yield Detected(
            one,
            tuple(names[n] if names else f"class {n}" for n in classes[order].tolist()),
            values["scores"][order],
            values["boxes"][order],
            values["masks"][order] if "masks" in values else None,
        )
