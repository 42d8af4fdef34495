"""What a task may ask of a model, in the task's words: files and words go in, plain values come out.

An ability has two halves. The reader runs in decoding processes, holds no weights and turns items into a batch of tensors; the
ability itself holds the network and turns a batch, on the device, into one plain value per item. Which pixels and tokens
lie between is the family's affair.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor, nn

Batch = dict[str, Any]
"""What a reader makes and an ability takes: a dict of tensors, moved to the device in between. Where there are ``token_ids``
(n, L) and ``padding_mask`` (n, L), they are counted; ``images`` uint8 (n, 3, H, W) are."""


@dataclass(frozen=True)
class Item:
    """One thing that a model is asked about.

    id: for messages.
    images: files, or PIL images, in the order in which the model takes them.
    text: a question, a sentence, a caption; None where there is none.
    texts: candidates, for `Matches` and for answers that are ranked.
    size: (width, height) of the upright image as the truth says it; a detector refuses another. None = not known.
    target: what a training learns of this item; see `backbones.training.Training`.
    """

    id: str = ""
    images: tuple[Any, ...] = ()
    text: str | None = None
    texts: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    target: Any = None


class PixelTransform(Protocol):
    """From an image file to the uint8 pixels of the network's input: what an image cache can stand in for."""

    @property
    def as_rgb(self) -> bool:
        """Whether `pixels` takes RGB images; False = images in the mode of their file."""

    @property
    def size(self) -> int:
        """Side of the square input, pixels."""

    def load(self, path: str | Path) -> Tensor:
        """Image file -> uint8 (3, S, S). Raises: BenchError: it is missing or does not decode."""

    def pixels(self, image: Image.Image) -> Tensor:
        """PIL image -> uint8 (3, S, S); RGB where `as_rgb`."""

    def pixel_facts(self) -> dict[str, Any]:
        """Everything that the pixels depend on beside the file's bytes, as plain values."""


class Reader(ABC):
    """The half of an ability that runs in decoding processes.

    transform: of one image, where that is all that happens to its pixels; the harness may put a cache in its place. None
        where images are read otherwise: they are then not cached.
    """

    transform: PixelTransform | None = None

    def prepare(self, items: Sequence[Item]) -> None:
        """Do once, in the main process, what every process can share (tokenise the distinct texts).

        Raises:
            BenchError: a text that the model cannot take; names the item.
        """

    def length(self, item: Item) -> int:
        """Items of different length never share a batch, so that the value of an item does not depend on its batch: the
        length of its text in tokens, padding included. The longest batches come first.
        """
        return 0

    def text_key(self, item: Item) -> bytes | None:
        """SHA-256 of all that the model sees of the item's text; by it an embedding is kept. None = it is not kept."""
        return None if item.text is None else hashlib.sha256(item.text.encode("utf-8", "surrogatepass")).digest()

    @abstractmethod
    def collate(self, items: Sequence[Item]) -> Batch:
        """Decode and pad.

        Raises:
            BenchError: an image that does not decode; names the file.
        """


class Ability(ABC):
    """What one network can be asked, ready to be asked.

    Class attributes:
        word: as messages and `-o` name it (``"embed"``).
        value: what `predict` gives for an item, in words.

    module: the network; None for a model that is none of torch's.
    labels: what the outputs of a classifier are taken to mean, in order; set by whoever knows.
    """

    word: ClassVar[str]
    value: ClassVar[str]

    labels: tuple[str, ...] | None = None

    def __init__(self, module: nn.Module | None, reader: Reader):
        self.module, self.reader = module, reader

    @abstractmethod
    def predict(self, batch: Batch) -> list[Any]:
        """One value per item of the batch, on the CPU. Called in inference mode, under autocast where that is asked for."""

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """Do once what makes `predict` faster on a device and does not change its values beyond rounding; the network is still where it
        was loaded.

        compiled: whether `compile` was or will be asked for.
        """

    def compile(self) -> None:
        """Compile the network in place."""
        if self.module is not None:
            self.module.compile()

    def item_bytes(self) -> int | None:
        """About how many bytes of activations an item takes in float32; None = not known."""
        return None

    def of(self, module: nn.Module | None) -> Ability:
        """The same ability with another network of the same kind (averaged weights, a whole copy of sharded ones)."""
        other = copy.copy(self)
        other.module = module
        return other


class Embeds(Ability):
    """Items with one image and no text, or a text and no image, of one kind per batch -> float32 (D,) of unit length."""

    word, value = "embed", "a vector of unit length"


class Matches(Ability):
    """Items with an image and ``texts``, or a text and ``images`` -> float32 (candidates,) match scores, higher = better."""

    word, value = "match", "a score per candidate"


class Answers(Ability):
    """Items with an image and a question -> str."""

    word, value = "answer", "a text"


class Classifies(Ability):
    """Items with one or two images and maybe a text -> float32 (labels,), any scale on which softmax gives probabilities.

    What the scores are of is in the model's identity, in the order of the scores.
    """

    word, value = "classify", "a score per label"


@dataclass(frozen=True)
class Caption:
    """token_ids: as generated, where the model says them."""

    text: str
    token_ids: tuple[int, ...] | None = None


class Captions(Ability):
    """Items with one image -> `Caption`."""

    word, value = "caption", "a text"


class Detects(Ability):
    """Items with one image -> ``{"boxes": float32 (n, 4) x1 y1 x2 y2 in pixels of the upright image, "scores": float32 (n,) falling,
    "classes": int64 (n,) positions in the identity's labels}``, and with a mask head ``"masks": bool (n, H, W)``.
    """

    word, value = "detect", "boxes"


class Segments(Ability):
    """Items with one image -> uint8 (H, W), positions in the identity's labels."""

    word, value = "segment", "a label map"


ABILITIES: tuple[type[Ability], ...] = (Embeds, Matches, Answers, Classifies, Captions, Detects, Segments)
