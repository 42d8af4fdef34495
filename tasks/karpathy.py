"""Karpathy's split files, `dataset_coco.json` and `dataset_flickr30k.json`: images, their split and their sentences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.tasks.files import field, identifier, read_json, unique

SPLITS = ("train", "restval", "val", "test")
"""Names of splits in the released files; Flickr30K has no ``restval``."""


@dataclass(frozen=True)
class CaptionedImage:
    """An image of the split file.

    id: the dataset's own image id (``cocoid``; Flickr30K has none: the file name's stem).
    path: relative to the data root, POSIX form.
    sentences: (sentence id, raw text) in the file's order.
    """

    id: str
    path: str
    split: str
    sentences: tuple[tuple[str, str], ...]


def read_karpathy(path: str | Path, image_folder: str | None = None) -> list[CaptionedImage]:
    """Read a whole split file.

    Args:
        image_folder: where images are when the file does not say it (Flickr30K: ``flickr30k-images``).

    Raises:
        BenchError: missing file or key, an image or sentence id listed twice.
    """
    path = Path(path)
    content = read_json(path, "Karpathy split", each={"images": _without_tokens})
    images: list[CaptionedImage] = []
    for n, record in enumerate(field(content, "images", list, str(path))):
        source = f"{path}: images[{n}]"
        filename = field(record, "filename", str, source)
        folder = record.get("filepath", image_folder or "")
        image_id = identifier(record, "cocoid", source) if "cocoid" in record else Path(filename).stem
        sentences = []
        for k, sentence in enumerate(field(record, "sentences", list, source)):
            raw = field(sentence, "raw", str, f"{source}.sentences[{k}]")
            sentences.append((identifier(sentence, "sentid", f"{source}.sentences[{k}]"), raw))
        images.append(
            CaptionedImage(
                image_id, f"{folder}/{filename}".lstrip("/"), field(record, "split", str, source), tuple(sentences)
            )
        )
    unique((i.id for i in images), str(path), "image id")
    unique((s for i in images for s, _ in i.sentences), str(path), "sentence id")
    return images


def _without_tokens(image: Any) -> Any:
    """A record without the words of its sentences, which nobody reads: they take four times the memory of everything else."""
    sentences = image.get("sentences") if isinstance(image, dict) else None
    for sentence in sentences if isinstance(sentences, list) else ():
        if isinstance(sentence, dict):
            sentence.pop("tokens", None)
    return image


def select(images: list[CaptionedImage], splits: tuple[str, ...], path: str | Path) -> list[CaptionedImage]:
    """Images of some splits, in the file's order; an empty selection is an error."""
    chosen = [i for i in images if i.split in splits]
    if not chosen:
        found = ", ".join(sorted({i.split for i in images})) or "none"
        raise BenchError(
            f"{path}: no image of split {' or '.join(splits)} (splits in the file: {found}); give another --split"
        )
    return chosen
