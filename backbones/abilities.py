"""What a task may ask of a model, in the task's words: files and words go in, plain values come out.

An ability has two halves. The reader runs in decoding processes, holds no weights and turns items into a batch of tensors; the
ability itself holds the network and turns a batch, on the device, into one plain value per item. Which pixels and tokens
lie between is the family's affair.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from torch import Tensor, nn

    from beit3_bench.backbones.corruptions import Corruption

NOT_FINITE = (
    "the model's output is not finite ({}); run with --dtype fp32 or bf16, and check that the checkpoint is whole"
)
"""Of an overflow, and of weights that are none: no prediction."""

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

    def load(self, path: str | Path, content: bytes | None = None) -> Tensor:
        """Image file -> uint8 (3, S, S). content: its bytes, where they have been read already.

        Raises:
            BenchError: it is missing or does not decode.
        """

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

    def corrupt(self, corruption: Corruption) -> None:
        """Have every image corrupted from now on, before anything else is done to it (``run --corrupt``).

        A reader with a `transform` has nothing to add; one that reads images otherwise does it itself, or leaves it refused.

        Raises:
            BenchError: this reader opens images by itself.
        """
        from beit3_bench.backbones.corruptions import CorruptedPixels

        if self.transform is None:
            raise BenchError(
                f"--corrupt {corruption.label}: the reader of this model ({type(self).__name__}) opens images by itself, so that they "
                "cannot be corrupted; leave --corrupt out, or give a checkpoint of another family"
            )
        self.transform = CorruptedPixels(self.transform, corruption)

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

    def checked(self, value: Any) -> Any:
        """A value as the class says it; numbers may be lists or torch's tensors, too, where arrays are said.

        Raises:
            ValueError: it is none; says how it is instead.
        """
        return value

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

    def checked(self, value: Any) -> np.ndarray:
        """A vector of any length but 0: float32, or the floating point type that it has."""
        return _vector(value, "an embedding")


class Matches(Ability):
    """Items with an image and ``texts``, or a text and ``images`` -> float32 (candidates,) match scores, higher = better."""

    word, value = "match", "a score per candidate"

    def checked(self, value: Any) -> np.ndarray:
        return _vector(value, "scores")


class Answers(Ability):
    """Items with an image and a question -> str."""

    word, value = "answer", "a text"

    def checked(self, value: Any) -> str:
        return _text(value, "an answer")


class Classifies(Ability):
    """Items with one or two images and maybe a text -> float32 (labels,), any scale on which softmax gives probabilities.

    What the scores are of is in the model's identity, in the order of the scores.
    """

    word, value = "classify", "a score per label"

    def checked(self, value: Any) -> np.ndarray:
        scores = _vector(value, "scores")
        if self.labels is not None and len(scores) != len(self.labels):
            raise ValueError(f"{len(scores)} scores for {len(self.labels)} labels")
        return scores


@dataclass(frozen=True)
class Caption:
    """token_ids: as generated, where the model says them."""

    text: str
    token_ids: tuple[int, ...] | None = None


class Captions(Ability):
    """Items with one image -> `Caption`."""

    word, value = "caption", "a text"

    def checked(self, value: Any) -> Caption:
        if not isinstance(value, Caption):
            raise ValueError(f"a caption is a {type(value).__name__}")
        _text(value.text, "a caption")
        return value


class Detects(Ability):
    """Items with one image -> ``{"boxes": float32 (n, 4) x1 y1 x2 y2 in pixels of the upright image, "scores": float32 (n,) falling,
    "classes": int64 (n,) positions in the identity's labels}``, and with a mask head ``"masks": bool (n, H, W)``.
    """

    word, value = "detect", "boxes"

    def checked(self, value: Any) -> dict[str, np.ndarray]:
        missing = [
            name for name in ("boxes", "scores", "classes") if not isinstance(value, Mapping) or name not in value
        ]
        if missing:
            raise ValueError(f"detections have no {missing[0]!r}")
        boxes, scores = _numbers(value["boxes"], "boxes"), _numbers(value["scores"], "scores")
        boxes = boxes.reshape(0, 4) if not boxes.size else boxes
        if boxes.shape != (len(scores), 4) or scores.ndim != 1:
            raise ValueError(
                f"boxes {boxes.shape} and scores {scores.shape}; there are four numbers and a score per box"
            )
        classes = _places(value["classes"], "classes", self.labels)
        if classes.shape != scores.shape:
            raise ValueError(f"classes {classes.shape} of {len(scores)} boxes")
        detections = {**value, "boxes": boxes, "scores": scores, "classes": classes}
        if "masks" in value:
            detections["masks"] = masks = _array(value["masks"], "masks")
            if masks.dtype != bool or masks.ndim != 3 or len(masks) != len(scores):
                raise ValueError(f"masks are {masks.dtype} {masks.shape}; there is a bool (H, W) per box")
        return detections


class Segments(Ability):
    """Items with one image -> uint8 (H, W), positions in the identity's labels."""

    word, value = "segment", "a label map"

    def checked(self, value: Any) -> np.ndarray:
        places = _places(value, "a label map", self.labels)
        if places.ndim != 2:
            raise ValueError(f"a label map is of shape {places.shape}, not (H, W)")
        return places


class Patches(Ability):
    """Items with one image -> floating point (h, w, D): a vector for each patch of the whole image, squared to the input, row by row."""

    word, value = "give patches", "a grid of vectors"

    def checked(self, value: Any) -> np.ndarray:
        grid = _numbers(value, "patches")
        if grid.ndim != 3 or not grid.size:
            raise ValueError(f"patches of shape {grid.shape}, not (h, w, D)")
        return grid


ABILITIES: tuple[type[Ability], ...] = (Embeds, Matches, Answers, Classifies, Captions, Detects, Segments, Patches)


# ---- what a value is ----------------------------------------------------------------------------------------------------


def checked_values(ability: Ability, values: Sequence[Any], ids: Sequence[str]) -> list[Any]:
    """The values of a batch, each as the ability promises it.

    Raises:
        BenchError: one is not; names its id and what it is instead.
    """
    checked = []
    for value, name in zip(values, ids, strict=True):
        try:
            checked.append(ability.checked(value))
        except FloatingPointError as error:
            raise BenchError(f"row {name}: {NOT_FINITE.format(error)}") from error
        except ValueError as error:
            raise BenchError(
                f"row {name}: the model was asked to {ability.word} and gave no value of that kind ({error}); expected is "
                f"{ability.value}"
            ) from error
    return checked


def _array(value: Any, what: str) -> np.ndarray:
    import numpy as np

    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{what} of uneven lengths") from error


def _numbers(value: Any, what: str) -> np.ndarray:
    """An array of finite numbers: of its floating point type, else float32."""
    import numpy as np

    array = _array(value, what)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{what} of type {type(value).__name__ if array.dtype.kind == 'O' else array.dtype}")
    array = array if array.dtype.kind == "f" else array.astype(np.float32)
    if not np.isfinite(array).all():
        raise FloatingPointError("an array holds NaN or infinity")
    return array


def _vector(value: Any, what: str) -> np.ndarray:
    array = _numbers(value, what)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{what} of shape {array.shape}")
    return array


def _places(value: Any, what: str, labels: Sequence[str] | None) -> np.ndarray:
    """Whole numbers, positions in the labels where those are known."""
    import numpy as np

    array = _array(value, what)
    if array.dtype.kind not in "iu" and array.size:
        raise ValueError(f"{what} of {array.dtype}, not of whole numbers")
    if array.size and (array.min() < 0 or (labels is not None and array.max() >= len(labels))):
        worst = int(array.min() if array.min() < 0 else array.max())
        raise ValueError(
            f"{what}: {worst} is no position in {'the labels' if labels is None else f'{len(labels)} labels'}"
        )
    return array if array.size else array.astype(np.int64)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is a {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is not Unicode (lone surrogates)") from error
    return value
