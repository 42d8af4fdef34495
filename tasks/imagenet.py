"""ImageNet-1K, twice: as image-to-text retrieval (the paper's form) and with a linear head (the released checkpoints).

Retrieval form (BEiT-3 paper, section 3.2.2): class names are texts, an image gets the class of highest cosine. The class
text is the WordNet lemma names of the synset joined by ", " (authors' reply, unilm issue 965), from timm's `ImageNetInfo`.
A family of models may bring names and templates of its own (CLIP's do; texts of a class are averaged as CLIP does), and a
class-name file and prompt templates can be given instead of either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Classifies
from beit3_bench.backbones.family import Outputs
from beit3_bench.errors import BenchError
from beit3_bench.tasks.class_folders import (
    IMAGENET_CLASSES,
    WORDNET_ID,
    are_numbers,
    are_wordnet_ids,
    check_class_folders,
    imagenet_classes,
    imagenet_lemmas,
    in_order,
    listed_order,
    names_by_number,
    readable_names,
)
from beit3_bench.tasks.contract import Example, Row, Split, Task
from beit3_bench.tasks.embedding import EmbeddingTask, embeddings_of
from beit3_bench.tasks.files import read_json
from beit3_bench.tasks.image_folders import IMAGE_SUFFIXES, left_out_line
from beit3_bench.tasks.layouts.imagenet import Classes, find_classes
from beit3_bench.tasks.layouts.places import names_of
from beit3_bench.tasks.metrics.topk import (
    CUTS,
    class_ranks,
    estimate_topk,
    topk_classes,
    topk_table,
    zero_shot_scores,
    zero_shot_weights,
)
from beit3_bench.tasks.scores import Metric, Scores, ratio_of

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

TEMPLATES_FORM = 'a JSON list of prompts such as ["a photo of a {}."]'
CLASS_NAMES_FORM = 'a JSON list of names in label order, or an object such as {"n01440764": "tench"}'
LAYOUT = """\
DATA_ROOT/
  val/n01440764/*.JPEG          one folder per class, 50,000 images in 1,000 folders
  train/n01440764/*.JPEG        only for fine-tuning
or ILSVRC2012_img_val.tar with ILSVRC2012_devkit_t12.tar.gz (or -o truth=FILE), ILSVRC2012_img_train.tar, Kaggle's tree, or
data/validation-*.parquet of the Hugging Face hub."""


class ImageFolders(Task):
    """What both forms share: class folders named by WordNet id."""

    splits = ("val", "train")
    default_split = "val"
    metrics = (
        Metric("top1", "fraction", headline=True, formula=estimate_topk, ratio=ratio_of("top1", "images")),
        Metric("top5", "fraction", formula=estimate_topk, ratio=ratio_of("top5", "images")),
    )
    layout = LAYOUT
    score_files = ()

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        super().__init__(data_root, options)
        self._stored: dict[str, Classes] = {}

    def stored(self, split: str) -> Classes:
        """The images of a split by class, found once."""
        if split not in self._stored:
            self._stored[split] = find_classes(self.data_root, split, self.options.truth if split == "val" else None)
        return self._stored[split]

    def classes(self) -> list[str]:
        """The folders of ``val`` in label order: WordNet ids sorted as text, numbers as numbers."""
        names = in_order(self.stored("val").names())
        if not names:
            raise BenchError(
                f"{self.stored('val').shown}: no class folders; sort the images into val/<WordNet id>/ first"
            )
        return names

    def labelled_images(self, split: str) -> Split:
        """One example per image file in a class folder or below it; the target is the class index, the labels are the folders."""
        examples: list[Example] = []
        classes, stored = self.classes(), self.stored(split)
        left_out = list(stored.stray())
        for label, name in enumerate(classes):
            images, others = stored.images(name)
            left_out += [f"{name}/{file}" for file in others]
            examples += [
                Example(
                    f"image:{name}/{file}",
                    (picture.path,),
                    cluster=f"{name}/{file}",
                    target=label,
                    kind="image",
                    names=names_of(picture),
                )
                for file, picture in images
            ]
        for name in sorted(set(stored.names()) - set(classes)):  # of train, and not of val
            images, others = stored.images(name)
            left_out += [f"{name}/{file}" for file in (*(file for file, _ in images), *others)]
        line = left_out_line(stored.shown, left_out)
        if not examples:
            raise BenchError(
                f"{stored.shown}: no images ({', '.join(IMAGE_SUFFIXES)}) in {len(classes)} class folders; "
                + (line or "the split is empty")
            )
        return Split(split, tuple(examples), tuple(classes), self.data_root, left_out=line)

    def limited(self, split: Split, n: int) -> Split:
        return limited_images(split, n)


class ImageNet(ImageFolders, EmbeddingTask):
    """ImageNet-1K as retrieval of the class text."""

    name = "imagenet"
    prompted = True

    @dataclass
    class Options:
        """class_names: JSON file, {folder: name} or a list in label order (WordNet ids sorted, or folders 0, 1, ...); default:
        the names of the model's family, or WordNet lemmas.
        templates: JSON file, list of prompts with ``{}`` where the class goes; default: those of the model's family, or the bare
        class text.
        truth: classes of flat validation images, a file of lines of name and WordNet id; default: the devkit or Kaggle's file.
        """

        class_names: Path | None = None
        templates: Path | None = None
        truth: Path | None = None

    def spoken_names(self) -> Sequence[str]:
        """What the classes are called in their texts, in label order."""
        classes = self.classes()
        return self._named(classes) if self.options.class_names else self._by_default(classes)

    def class_texts(self) -> dict[str, list[str]]:
        """WordNet id -> the texts of its class, one per template."""
        classes = self.classes()
        return dict(zip(classes, self._in_templates(self.spoken_names()), strict=True))

    def candidates(self, names: Sequence[str]) -> list[tuple[str, list[str]]]:
        """Classes by name, in the templates of the evaluation: those given, those of ``class_names``, else ImageNet's 1,000."""
        listed = self.options.class_names
        if names and listed is not None:
            raise BenchError(f"{listed}: classes are given as texts, too; leave one of them out")
        if not names and listed is not None:
            content = read_json(listed, "class names", CLASS_NAMES_FORM)
            names = list(content.values() if isinstance(content, dict) else content) if content else []
            if not names or not all(isinstance(name, str) for name in names):
                raise BenchError(f"{listed}: expected {CLASS_NAMES_FORM}")
        chosen = names or self._by_default(imagenet_classes())
        return list(zip(chosen, self._in_templates(chosen), strict=True))

    def _in_templates(self, names: Sequence[str]) -> list[list[str]]:
        """The texts of each name, one per template."""
        templates: Sequence[str] = (self.prompts and self.prompts.templates) or ["{}"]
        if self.options.templates:
            templates = read_templates(self.options.templates)
        return [[t.replace("{}", name) for t in templates] for name in names]

    def _named(self, classes: list[str]) -> list[str]:
        path = self.options.class_names
        content = read_json(path, "class names", CLASS_NAMES_FORM)
        if isinstance(content, dict):
            missing = [c for c in classes if not isinstance(content.get(c), str)]
            if missing:
                raise BenchError(f"{path}: no name for class {missing[0]} ({len(missing)} missing); add it")
            return [content[c] for c in classes]
        if not isinstance(content, list) or not all(isinstance(n, str) for n in content):
            raise BenchError(f"{path}: expected {len(classes)} names in label order, or an object by folder name")
        if are_numbers(classes):
            return names_by_number(classes, content, path)
        if not are_wordnet_ids(classes):
            raise BenchError(
                f"{path}: a list in label order does not say which name belongs to a folder like {classes[0]!r}; "
                "give an object by folder name"
            )
        if len(content) != len(classes):
            raise BenchError(
                f"{path}: has {len(content)} names, there are {len(classes)} class folders; "
                "give a name for each in the order of WordNet ids, or an object by folder name"
            )
        return content

    def _by_default(self, classes: list[str]) -> Sequence[str]:
        """The names of the model's family, or WordNet lemmas."""
        names = imagenet_lemmas()
        if self.prompts is not None and self.prompts.class_names:
            if are_numbers(classes):
                return names_by_number(classes, self.prompts.class_names, self.data_root / "val")
            names = dict(zip(names, self.prompts.class_names, strict=True))
        unknown = [c for c in classes if c not in names]
        if unknown:
            raise BenchError(
                f"class folder {unknown[0]!r} is not a WordNet id of ImageNet-1K ({len(unknown)} such folders); "
                "rename it, or name the classes with -o class_names=FILE.json"
            )
        return [names[c] for c in classes]

    def options_in_force(self) -> dict[str, Any]:
        given = super().options_in_force()
        if self.prompts is None:
            return given
        worded = {"class_names": self.prompts.class_names, "templates": self.prompts.templates}
        return {**given, **{name: self.prompts.name for name, words in worded.items() if words and given[name] is None}}

    def read(self, split: str) -> Split:
        images = self.labelled_images(split)
        texts = text_examples(self.class_texts())
        return dataclasses.replace(images, examples=(*images.examples, *texts), labels=None)

    def in_every_part(self, example: Example) -> bool:
        return example.kind == "text"

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        return score_class_texts(rows, split)

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.classes import NamedClassDisplay

        return NamedClassDisplay(self, split, rows, scores, self.spoken_names())

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def training_split(self) -> Split:
        """One (image, class text) pair per image; with templates, the first one. Images of the same class are not each other's
        negatives.
        """
        texts = [t[0] for t in self.class_texts().values()]
        images = self.labelled_images("train")
        pairs = [Example(e.id, e.images, texts[e.target], e.cluster, e.target, names=e.names) for e in images.examples]
        return dataclasses.replace(images.of(pairs), labels=None)


class ImageNetLinear(ImageFolders):
    """ImageNet-1K with the linear head on mean-pooled patches (official `BEiT3ForImageClassification`)."""

    name = "imagenet-linear"
    ability = Classifies
    uses_text = False
    outputs = "classes"
    row_shape: ClassVar[Mapping[str, Any]] = {"top5": list[int]}

    @dataclass
    class Options:
        """class_names: JSON list of the class folders in the order of the head's outputs; default: WordNet ids sorted, or
        folders 0, 1, 2, ...
        truth: classes of flat validation images, a file of lines of name and WordNet id; default: the devkit or Kaggle's file.
        """

        class_names: Path | None = None
        truth: Path | None = None

    def classes(self) -> list[str]:
        """The folders of ``val`` in the order of the head's outputs."""
        folders, listed = super().classes(), self.options.class_names
        return listed_order(folders, listed) if listed else folders

    def check_outputs(self, split: Split, outputs: Outputs) -> list[str]:
        assert split.labels is not None
        return check_class_folders(split.labels, self.options.class_names, self.data_root / "val", outputs)

    def customary_labels(self, count: int) -> tuple[str, ...] | None:
        """WordNet ids in sorted order, of a head with ImageNet's 1,000 outputs."""
        return tuple(imagenet_classes()) if count == IMAGENET_CLASSES else None

    def words(self, label: str) -> str:
        """The lemmas of a WordNet id."""
        if not WORDNET_ID.fullmatch(label):
            return label
        return imagenet_lemmas().get(label, label)

    def read(self, split: str) -> Split:
        return self.labelled_images(split)

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """The five best classes, best first (lower index first among equals), and their probabilities."""
        scores = np.stack(values)
        best = topk_classes(scores)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True), dtype=np.float64)
        shares = np.take_along_axis(shares / shares.sum(axis=1, keepdims=True), best, axis=1)
        parts = zip(examples, best.tolist(), shares.tolist(), strict=True)
        return [{"id": e.id, "top5": classes, "probabilities": sure} for e, classes, sure in parts]

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        def rank(example: Example) -> int:
            best = rows[example.id]["top5"]
            return best.index(example.target) + 1 if example.target in best else len(best) + 1

        examples = split.examples
        ranks = np.array([rank(e) for e in examples])
        counts = {"images": len(examples), "classes": len({e.target for e in examples})}
        return ranked_scores(ranks, examples, counts, len(split.labels or ()))

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.classes import ClassDisplay

        return ClassDisplay(self, split, rows, scores, readable_names(split.labels or ()))


def limited_images(split: Split, n: int) -> Split:
    """n images spread evenly over the classes (files are sorted by class), and every class text."""
    images = [e for e in split.examples if e.kind == "image"]
    if len(images) <= n:
        return split
    chosen = {images[i * len(images) // n].id for i in range(n)}
    return split.of([e for e in split.examples if e.kind != "image" or e.id in chosen])


def read_templates(path: Path) -> list[str]:
    """Prompts with ``{}`` where the class goes, from a JSON list.

    Raises:
        BenchError: the file holds something else.
    """
    templates = read_json(path, "prompt templates", TEMPLATES_FORM)
    if not isinstance(templates, list) or not templates or not all(isinstance(t, str) and "{}" in t for t in templates):
        raise BenchError(f"{path}: expected a non-empty JSON list of strings that contain {{}}")
    return templates


def text_examples(texts: Mapping[str, Sequence[str]]) -> list[Example]:
    """The texts of each class, equally many of all, as examples; their target is the number of the class."""
    return [
        Example(f"text:{name}:{n}", text=text, cluster=name, target=label, kind="text")
        for label, (name, of_class) in enumerate(texts.items())
        for n, text in enumerate(of_class)
    ]


def score_class_texts(rows: Mapping[str, Row], split: Split) -> Scores:
    """Top-1 and top-5 of images by the class of highest cosine; several texts of a class are averaged as CLIP does."""
    images = [e for e in split.examples if e.kind == "image"]
    weights = class_weights(rows, split)
    num_classes = len(weights)
    embeddings = embeddings_of(images, rows)
    labels = np.array([e.target for e in images])
    ranks = np.concatenate(
        [
            class_ranks(zero_shot_scores(embeddings[i : i + 4096], weights), labels[i : i + 4096])
            for i in range(0, len(images), 4096)
        ]
    )
    texts = sum(e.kind == "text" for e in split.examples)
    counts = {"images": len(images), "classes": num_classes, "class texts": texts}
    return ranked_scores(ranks, images, counts, num_classes)


def class_weights(rows: Mapping[str, Row], split: Split) -> np.ndarray:
    """The embedding of each class, of unit length, from those of its texts: (classes, D)."""
    texts = [e for e in split.examples if e.kind == "text"]
    features = embeddings_of(texts, rows)
    return zero_shot_weights(features.reshape(max(e.target for e in texts) + 1, -1, features.shape[-1]))


def ranked_scores(ranks: np.ndarray, images: Sequence[Example], counts: dict[str, int], classes: int) -> Scores:
    """Top-1 and top-5 from the rank (from 1) of each image's class; chance is guessing among the classes."""
    hits = {f"top{k}": (ranks <= k).astype(float).tolist() for k in CUTS}
    return Scores.of(
        ImageFolders.metrics,
        topk_table(ranks, [e.cluster for e in images]),
        counts,
        samples={name: dict(zip([e.id for e in images], values, strict=True)) for name, values in hits.items()},
        chance=1.0 / classes,
    )
