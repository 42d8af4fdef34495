"""A model that can be asked: by itself, from Python, or by `beit3-bench predict`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from beit3_bench.backbones.abilities import (
    Ability,
    Answers,
    Captions,
    Classifies,
    Detects,
    Embeds,
    Item,
    Matches,
    Segments,
    checked_values,
)
from beit3_bench.backbones.family import Model
from beit3_bench.errors import BenchError
from beit3_bench.harness.arguments import as_texts, check_image, image_items, pair_items
from beit3_bench.harness.models import Located, prepare_reader
from beit3_bench.harness.request import RunRequest
from beit3_bench.tasks.contract import Task
from beit3_bench.tasks.metrics.topk import zero_shot_scores, zero_shot_weights

if TYPE_CHECKING:
    import torch

    from beit3_bench.harness.predicting.predictions import Prediction

BATCH = 16
"""Items per forward pass of `ReadyModel`."""


@dataclass(frozen=True)
class Candidates:
    """What pictures are compared with. names: as people say them.  vectors: float32 (names, D) of unit length."""

    names: tuple[str, ...]
    vectors: np.ndarray


class ReadyModel:
    """A model that can be asked: the network, what is known of it, and the methods of its ability.

    Attributes:
        module: the network (`torch.nn.Module`; None where the model is none of torch's), on its device, in evaluation mode.
        card: what was loaded (`backbones.family.ModelCard`).
        identity: hashes of weights, architecture, pixels and tokens, and the labels that the file says of its outputs.
        task: what it was loaded for, with its options (`tasks.contract.Task`).
        labels: what the outputs are taken to mean, in order; None for an ability without labels, and where nothing says it.
        notes: what a reader of its numbers must know.

    Images are paths or PIL images; a path is read as an evaluation reads it, by most tasks without its EXIF orientation. `predict`
    takes pictures as people see them. A method of another ability raises BenchError.
    """

    def __init__(self, model: Model, located: Located, task: Task, device: torch.device, request: RunRequest):
        self.located, self.request = located, request
        self.model, self.task, self.device, self.compute = model, task, device, request.compute
        self.card, self.identity = model.card, model.identity
        self.notes = [*model.notes, *model.assumptions]
        self._customary: tuple[str, ...] | None = None
        count = None if model.outputs is None else model.outputs.count
        if model.ability.labels is None and count is not None:
            self._customary = task.customary_labels(count)
        if self._customary is not None:
            self.notes.append(
                f"the checkpoint does not say what its {count:,} outputs are: they are taken to be the {task.outputs} of released "
                f"heads, {self._customary[0]}, {self._customary[1]}, ..."
            )

    @property
    def module(self) -> torch.nn.Module | None:
        return self.model.module

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.model.ability.labels or self._customary

    def embed(self, images: Sequence[Any] | None = None, texts: Sequence[str] | None = None) -> np.ndarray:
        """Images or texts -> float32 (n, D), rows of unit length."""
        if (images is None) == (texts is None):
            raise BenchError("embed: give images=[...] or texts=[...], one of them")
        if images is not None:
            items = image_items(images)
        else:
            items = [Item(str(n), text=text) for n, text in enumerate(as_texts(texts, "texts"))]
        return np.stack(self.ask(Embeds, items)) if items else np.zeros((0, 0), np.float32)

    def answer(self, images: Sequence[Any], questions: Sequence[str]) -> list[str]:
        """One answer per image and question."""
        return self.ask(Answers, pair_items(images, questions, "questions"))

    def caption(self, images: Sequence[Any]) -> list[str]:
        """One caption per image."""
        return [caption.text for caption in self.ask(Captions, image_items(images))]

    def classify(self, images: Sequence[Any], texts: Sequence[str] | None = None) -> list[tuple[str, float]]:
        """The best label of each image (pair of images, for a model that takes two) and its probability.

        Where nothing says what the outputs mean, the label is the number of the output.
        """
        best = []
        for row in self.probabilities(images, texts):
            place = int(row.argmax())
            best.append((self.labels[place] if self.labels else str(place), float(row[place])))
        return best

    def probabilities(self, images: Sequence[Any], texts: Sequence[str] | None = None) -> list[np.ndarray]:
        """Of each image (pair of images, for a model that takes two) the softmax over `labels`, float32 or wider (labels,)."""
        items = image_items(images) if texts is None else pair_items(images, texts, "texts")
        rows = []
        for scores in self.ask(Classifies, items):
            shifted = np.exp(scores - scores.max())
            rows.append(shifted / shifted.sum())
        return rows

    def candidates(
        self, names: Sequence[str] | None = None, advance: Callable[[int], None] = lambda count: None
    ) -> Candidates:
        """Texts or classes to compare images with, embedded once.

        Args:
            names: texts of retrieval; classes of imagenet, which are put into the words that the task and the model's family have for
                them and averaged as in its evaluation. None = the task's own (ImageNet's 1,000 classes).
            advance: called with a number of texts whenever as many are embedded.

        Raises:
            BenchError: the model was not loaded to embed; no names, and the task has none of its own.
        """
        if not isinstance(self.model.ability, Embeds):
            raise self._another(Embeds)
        listed = self.task.candidates([] if names is None else as_texts(names, "names"))
        texts = [text for _, several in listed for text in several]
        parts = []
        for start in range(0, len(texts), 8 * BATCH):
            parts.append(self.embed(texts=texts[start : start + 8 * BATCH]))
            advance(len(parts[-1]))
        vectors = np.concatenate(parts)
        return Candidates(
            tuple(name for name, _ in listed),
            zero_shot_weights(vectors.reshape(len(listed), -1, vectors.shape[-1])).astype(np.float32),
        )

    def compare(self, images: Sequence[Any], with_: Candidates | Sequence[str] | None = None) -> np.ndarray:
        """Cosines of images with texts or classes -> float32 (images, candidates).

        with_: texts, or what `candidates` gave for them; None = the task's own.
        """
        candidates = with_ if isinstance(with_, Candidates) else self.candidates(with_)
        vectors = self.embed(images=images)
        if not len(vectors):
            return np.zeros((0, len(candidates.names)), np.float32)
        return zero_shot_scores(vectors, candidates.vectors).astype(np.float32)

    def match(self, images: Sequence[Any], texts: Sequence[str]) -> list[np.ndarray]:
        """Per image float32 (texts,): how well each text fits it, on the model's own scale."""
        candidates = tuple(as_texts(texts, "texts"))
        return self.ask(Matches, [replace(item, texts=candidates) for item in image_items(images)])

    def predict(
        self, images: Sequence[Any], texts: Sequence[str] | None = None, candidates: Candidates | None = None
    ) -> list[Prediction]:
        """What the model says of pictures, to be read (`str`), kept (``record()``) or looked at (``picture()``; a notebook shows it).

        Args:
            images: paths or PIL images (pairs of them, for nlvr2); they are turned upright by their EXIF orientation, unlike those of
                the other methods, and so given to the model.
            texts: of vqav2 the questions, of nlvr2 the sentences, each asked of every image; of retrieval the texts, of imagenet the
                classes that every image is compared with.
            candidates: instead of texts that pictures are compared with: what the method `candidates` gave for them.

        Returns:
            One `Prediction` per image, and per text where each is asked of every image; images in the outer order.

        Raises:
            BenchError: a text is missing, or not asked for; an image that is none.
        """
        from beit3_bench.harness.predicting.asking import predict

        return predict(self, images, texts, candidates)

    def detect(self, images: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        """Per image ``boxes`` (n, 4) x1 y1 x2 y2 in pixels, ``scores`` (n,), ``classes`` (n,) positions in `labels`, and with a mask
        head ``masks`` (n, H, W).
        """
        return self.ask(Detects, image_items(images))

    def segment(self, images: Sequence[Any]) -> list[np.ndarray]:
        """Per image uint8 (H, W), positions in `labels`."""
        return self.ask(Segments, image_items(images))

    def ask(self, kind: type[Ability], items: Sequence[Item]) -> list[Any]:
        """The ability's values, in the order of the items; a value does not depend on the items beside it.

        Raises:
            BenchError: the model has another ability, or takes another number of images or no text; an image that is none or does
                not decode, a text that cannot be taken; outputs that are not finite.
        """
        ability = self.model.ability
        if not isinstance(ability, kind):
            raise self._another(kind)
        for item in items:
            self._check(item, kind)
        reader = ability.reader
        prepare_reader(reader, items)
        values: dict[int, Any] = {}
        order = sorted(range(len(items)), key=lambda n: (items[n].text is None, -reader.length(items[n]), n))
        batch: list[int] = []
        for n in [*order, None]:
            full = batch and (
                n is None
                or len(batch) == BATCH
                or reader.length(items[n]) != reader.length(items[batch[0]])
                or (items[n].text is None) != (items[batch[0]].text is None)
            )
            if full:
                values.update(zip(batch, self._predict([items[i] for i in batch]), strict=True))
                batch = []
            if n is not None:
                batch.append(n)
        return [values[n] for n in range(len(items))]

    def _another(self, kind: type[Ability]) -> BenchError:
        return BenchError(
            f"{self.card.checkpoint}: was loaded to {self.model.ability.word}, not to {kind.word}; load it for a task that asks "
            f"{kind.word}"
        )

    def _check(self, item: Item, kind: type[Ability]) -> None:
        """Raise for what the model cannot be asked."""
        alone = issubclass(kind, Embeds)  # an image or a text
        wanted = int(item.text is None) if alone else self.task.images
        if len(item.images) != wanted:
            number = "an image alone is" if wanted == 1 else f"{wanted} images, as a pair, are"
            raise BenchError(
                f"images[{item.id}]: holds {len(item.images)} images; {number} what {self.task.name} asks about"
            )
        spoken = item.text is not None or bool(item.texts)
        if not alone and spoken != self.task.uses_text:
            how = "give a text per image" if self.task.uses_text else "give images alone"
            raise BenchError(
                f"example {item.id}: {self.task.name} asks {'with' if self.task.uses_text else 'without'} a text; {how}"
            )
        for image in item.images:
            if not isinstance(image, (str, Path, Image.Image)):
                raise BenchError(
                    f"images[{item.id}]: is a {type(image).__name__}; give a path or a PIL image (of an array: Image.fromarray)"
                )

    def _predict(self, items: Sequence[Item]) -> list[Any]:
        import torch

        from beit3_bench.backbones.precision import arithmetic, full_float32
        from beit3_bench.harness.engine.devices import to_device

        for item in items:
            for image in item.images:
                check_image(image, f"images[{item.id}]")
        ability = self.model.ability
        batch = ability.reader.collate(items)
        with torch.inference_mode(), full_float32(), arithmetic(self.compute.dtype, self.device):
            values = ability.predict(to_device(batch, self.device))
        return checked_values(ability, values, [item.id for item in items])
