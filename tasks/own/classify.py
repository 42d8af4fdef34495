"""Images of one's own with the names of their classes: classified zero-shot, as ImageNet by its class texts (`tasks.imagenet`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError
from beit3_bench.spelling import did_you_mean
from beit3_bench.tasks.contract import Example, Row, Split
from beit3_bench.tasks.embedding import EmbeddingTask
from beit3_bench.tasks.files import read_json, unique
from beit3_bench.tasks.imagenet import (
    ImageFolders,
    limited_images,
    read_templates,
    score_class_texts,
    text_examples,
)
from beit3_bench.tasks.own.lines import Line, OwnData
from beit3_bench.tasks.scores import Scores

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

CLASSES_FORM = (
    'a JSON list of class names, or an object such as {"cat": "domestic cat"} of labels and the words for them'
)


class Classify(OwnData, EmbeddingTask):
    """Images of your own and the classes that they are of, by the cosine of image and class text."""

    name = "classify"
    asks_as = "imagenet"
    prompted = True
    metrics = ImageFolders.metrics
    score_files = ()
    form = '{"image": "a.jpg", "label": "cat"}'
    required = ("label",)
    layout = """\
{"image": "a.jpg", "label": "cat"}
{"image": "b.jpg", "label": "dog", "id": "42"}
image: a path below the folder of the file, or an absolute one.  label: the class, and its text.
id: in every line or in none; default: the number of the line.
Classes are the labels of the file, or those of -o class_names."""

    @dataclass
    class Options:
        """class_names: JSON file, a list of classes (more than the data's may stand there) or {label: text}; default: the labels of
        the data in sorted order, which are their own texts.
        templates: JSON file, list of prompts with ``{}`` where the class goes; default: those of the model's family, or the bare
        class text.
        """

        class_names: Path | None = None
        templates: Path | None = None

    def classes(self, lines: Sequence[Line]) -> dict[str, str]:
        """Class -> what it is called in texts, in the order of the classes.

        Raises:
            BenchError: a file of class names that holds something else; a label that is not among them, with file and line; a
                single class.
        """
        path = self.options.class_names
        labels: dict[str, str] = {}
        for line in lines:
            labels.setdefault(line.texts["label"][0], line.source)
        if path is None:
            classes = {label: label for label in sorted(labels)}
        else:
            content = read_json(path, "class names", CLASSES_FORM)
            if isinstance(content, list):
                unique((name for name in content if isinstance(name, str)), str(path), "class")
                content = {name: name for name in content if isinstance(name, str)} if _texts(content) else None
            if not isinstance(content, dict) or not _texts(list(content.values())):
                raise BenchError(f"{path}: expected {CLASSES_FORM}")
            classes = content
            unknown = [label for label in labels if label not in classes]
            if unknown:
                raise BenchError(
                    f"{labels[unknown[0]]}: label {unknown[0]!r} is no class of {path}; "
                    f"{did_you_mean(unknown[0], classes, otherwise='add it there')}"
                )
        if len(classes) < 2:
            raise BenchError(
                f"{self.data_root}: all labels are {next(iter(classes))!r}; one class needs no classifier, name others with "
                "-o class_names=FILE.json"
            )
        return classes

    def templates(self) -> tuple[Sequence[str], str]:
        """Templates of the texts, and where they are from."""
        if self.options.templates:
            return read_templates(self.options.templates), str(self.options.templates)
        if self.prompts is not None and self.prompts.templates:
            return self.prompts.templates, self.prompts.name
        return ["{}"], "none"

    def read(self, split: str) -> Split:
        lines = self.lines()
        classes = self.classes(lines)
        number = {name: n for n, name in enumerate(classes)}
        images = [
            Example(
                f"image:{line.id}",
                (line.image,),
                cluster=line.name,
                target=number[line.texts["label"][0]],
                kind="image",
            )
            for line in lines
        ]
        templates, source = self.templates()
        texts = {name: [t.replace("{}", words) for t in templates] for name, words in classes.items()}
        where = f"those of {self.options.class_names}" if self.options.class_names else "the labels of the data, sorted"
        prompts = "bare" if source == "none" else f"in {len(templates)} templates of {source}"
        note = f"{len(classes)} classes: {where}; their texts stand {prompts}"
        return self.split_with(split, lines, examples=(*images, *text_examples(texts)), notes=(note,))

    def options_in_force(self) -> dict[str, Any]:
        given = super().options_in_force()
        brought = self.prompts is not None and self.prompts.templates and given["templates"] is None
        return {**given, "templates": self.prompts.name} if brought and self.prompts is not None else given

    def limited(self, split: Split, n: int) -> Split:
        return limited_images(split, n)

    def in_every_part(self, example: Example) -> bool:
        return example.kind == "text"

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.classes import NamedClassDisplay

        return NamedClassDisplay(self, split, rows, scores, list(self.classes(self.lines())))

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        scores = score_class_texts(rows, split)
        if scores.counts["classes"] <= 5:
            scores.metrics.pop("top5")  # which would be 1
            scores.samples.pop("top5")
        return scores


def _texts(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, str) and value.strip() for value in values)
