"""A family from another package that shares nothing with BEiT-3: no network, no torch, no tokenizer, a model file of its own.

An image is told by the share of its pixels that is near to each named colour, a text by its words; both are hashed into the same
places, so that a text that names an image's colours is near to it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from beit3_bench.backbones.abilities import Batch, Embeds, Item, Reader
from beit3_bench.backbones.family import Asked, Family, Identity, LoadOptions, Model, ModelCard, digest
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError

FORMAT = "colour-words"
COLOURS = {
    "red": (215, 35, 40),
    "green": (35, 160, 60),
    "blue": (40, 75, 220),
    "yellow": (245, 220, 40),
    "purple": (140, 45, 180),
    "orange": (245, 130, 25),
}


def write_model(path: Path, places: int = 32, colours: Mapping[str, Sequence[int]] = COLOURS) -> Path:
    """A model file: JSON, of which `ColourWords` reads all."""
    path.write_text(json.dumps({"format": FORMAT, "places": places, "colours": {n: [*c] for n, c in colours.items()}}))
    return path


def content_of(path: Path) -> dict[str, Any] | None:
    """What a model file says; None for any other file."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == FORMAT else None


def unit(vector: np.ndarray) -> np.ndarray:
    """float32 (D,) of unit length; of equal parts where nothing is known."""
    length = np.linalg.norm(vector)
    return (vector / length if length else np.full(len(vector), len(vector) ** -0.5)).astype(np.float32)


class PlainReader(Reader):
    """Pixels as they are, and words."""

    def collate(self, items: Sequence[Item]) -> Batch:
        """``pixels``: float32 (P, 3) per image, or ``words`` per text."""
        if items[0].text is not None:
            return {"words": [re.findall("[a-z]+", item.text.lower()) for item in items]}
        return {"pixels": [self.pixels(item) for item in items]}

    @staticmethod
    def pixels(item: Item) -> np.ndarray:
        try:
            with Image.open(item.images[0]) as image:
                return np.asarray(image.convert("RGB").resize((48, 48)), dtype=np.float32).reshape(-1, 3)
        except OSError as error:
            raise BenchError(f"{item.images[0]}: image does not decode ({error}); get it again") from error


class ColourWords(Embeds):
    """Unit vectors of ``places`` numbers."""

    def __init__(self, places: int, colours: Mapping[str, Sequence[int]]):
        super().__init__(None, PlainReader())
        self.places, self.names = places, list(colours)
        self.colours = np.array(list(colours.values()), dtype=np.float32)

    def place(self, word: str) -> int:
        return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % self.places

    def of_words(self, words: Sequence[str]) -> np.ndarray:
        return unit(np.bincount([self.place(word) for word in words], minlength=self.places).astype(np.float64))

    def of_pixels(self, pixels: np.ndarray) -> np.ndarray:
        apart = np.linalg.norm(pixels[:, None] - self.colours, axis=2)
        vector = np.zeros(self.places)
        for n, name in enumerate(self.names):
            vector[self.place(name)] += ((apart.argmin(axis=1) == n) & (apart[:, n] < 60)).mean()
        return unit(vector)

    def predict(self, batch: Batch) -> list[Any]:
        if "words" in batch:
            return [self.of_words(words) for words in batch["words"]]
        return [self.of_pixels(pixels) for pixels in batch["pixels"]]


class OutsideFamily(Family):
    """Found by what stands in the file; a file is never read as a checkpoint of torch."""

    name, title = "outside", "Colour words"
    abilities = (Embeds,)

    def claims(self, source: Source) -> bool:
        return content_of(source.path) is not None

    def load(self, source: Source, asked: Asked, options: LoadOptions) -> Model:
        content = content_of(source.path)
        if content is None:
            raise BenchError(f"{source.path}: is no model of colour words; write one with write_model")
        sha256 = hashlib.sha256(source.path.read_bytes()).hexdigest()
        card = ModelCard(
            "outside",
            source.path.name,
            sha256,
            image_size=48,
            protocol="dual encoder",
            trained_for="",  # nothing
            settings={"places": content["places"]},
        )
        identity = Identity(sha256, digest(content), digest("48 x 48"), tokens=digest("[a-z]+"))
        return Model(ColourWords(content["places"], content["colours"]), card, identity)


class SecondFamily(OutsideFamily):
    """Claims the same files."""

    name, title = "second", "Colour words, again"
