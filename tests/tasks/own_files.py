"""Files of one's own data, made of the pictures and truths of the mini world."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from native import Native

from beit3_bench.tasks.imagenet import ImageNet
from beit3_bench.tasks.registry import get_task

CHECKPOINTS = {"classify": "imagenet", "retrieval": "coco-retrieval", "caption": "coco-caption", "vqa": "vqav2"}
"""Task of one's own data -> the one that asks the same."""


def write_lines(file: Path, records: Iterable[Mapping[str, Any] | str]) -> Path:
    """A file with a record a line; texts stand as they are."""
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def records_of(native: Native, task: str) -> list[dict[str, Any]]:
    """The mini world's data of a task as lines, with its ids."""
    like = CHECKPOINTS[task]
    split = get_task(like)(native.root(like)).read(get_task(like).default_split)
    images = [e for e in split.examples if e.images]
    if task == "classify":
        names = ImageNet(native.root(like)).classes()
        return [{"image": e.images[0], "id": e.id, "label": names[e.target]} for e in images]
    if task == "retrieval":
        texts: dict[str, list[str]] = {}
        for e in split.examples:
            if e.text is not None:
                texts.setdefault(e.target, []).append(e.text)
        return [{"image": e.images[0], "id": e.target, "captions": texts[e.target]} for e in images]
    if task == "caption":
        return [{"image": e.images[0], "id": e.id, "captions": e.target} for e in images]
    answers = [[a["answer"] for a in e.target["answers"]] for e in images]
    return [
        {"image": e.images[0], "id": e.id, "question": e.text, "answers": given}
        for e, given in zip(images, answers, strict=True)
    ]


def options_of(native: Native, task: str, folder: Path) -> list[str]:
    """Options with which a task of one's own asks what the task of the mini world asks: the same class texts, the same answers."""
    if task == "classify":
        texts = {wnid: texts[0] for wnid, texts in ImageNet(native.root("imagenet")).class_texts().items()}
        (folder / "names.json").write_text(json.dumps(texts))
        return ["-o", f"class_names={folder / 'names.json'}"]
    if task == "caption":
        return ["-o", "max_length=8"]
    return ["-o", f"answer_vocab={answer_list(native, folder)}"] if task == "vqa" else []


def answer_list(native: Native, folder: Path) -> Path:
    """The answers of the mini world's vqav2 as an official file."""
    answers = get_task("vqav2")(native.root("vqav2")).vocabulary()  # type: ignore[attr-defined]
    return write_lines(folder / "answer2label.txt", [{"answer": a, "label": n} for n, a in enumerate(answers)])


def own_words(native: Native, task: str, file: Path) -> list[object]:
    """The beginning of a `run` command."""
    checkpoint = native.checkpoint(CHECKPOINTS[task])
    return ["run", "--task", task, "--checkpoint", checkpoint, "--data", file, "--workers", 0, "--device", "cpu"]
