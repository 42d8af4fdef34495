"""Images with captions and Karpathy's split: from his split file, or from an export that carries the split.

Exports: yerevann/coco-karpathy (captions and split; the images lie in their folders), HuggingFaceM4/COCO (a row per caption, or
``2014_captions``: a row per image), nlphuji/flickr30k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from beit3_bench.errors import BenchError
from beit3_bench.tasks.files import unique
from beit3_bench.tasks.karpathy import CaptionedImage, read_karpathy, select
from beit3_bench.tasks.layouts.coco import CaptionImages
from beit3_bench.tasks.layouts.places import Picture
from beit3_bench.tasks.layouts.tables import Column, Record, find_shards, read_rows

FLICKR_FOLDER = "flickr30k-images"
ALSO = {FLICKR_FOLDER: ("flickr30k_images/flickr30k_images", "flickr30k_images", "Images", "images")}
"""What Kaggle's copies call the folder, by the official name."""

COLUMNS = (
    Column(("filename", "file_name"), "which names the images"),
    Column(("split",), "Karpathy's split, which the protocol stands on"),
    Column(("sentences", "sentences_raw", "caption"), "the captions"),
    Column(("sentids", "sentences_sentid"), "the ids of the captions"),
    Column(("filepath",)),
    Column(("cocoid",)),
    Column(("imgid", "img_id")),
    Column(("image",), image=True),
)


@dataclass(frozen=True)
class CaptionData:
    """images: in the order of the split file.  source: what they were read from.  picture: where the image at a path is."""

    images: list[CaptionedImage]
    source: Path
    picture: Callable[[str], Picture]

    def select(self, *splits: str) -> list[CaptionedImage]:
        """Images of some splits; an empty selection is an error."""
        return select(self.images, splits, self.source)


def read_captions(root: Path, split_file: str, image_folder: str | None = None) -> CaptionData:
    """The images and captions of a data set.

    Args:
        image_folder: where images are when the split file does not say it.

    Raises:
        BenchError: as `read_karpathy`; an export without the split, or one that contradicts itself.
    """
    path = root / split_file
    lying = CaptionImages(root, ALSO)
    shards = [] if path.exists() else find_shards(root)
    if not shards:
        return CaptionData(read_karpathy(path, image_folder), path, lying.picture)
    images: dict[str, CaptionedImage] = {}
    stored: dict[str, Picture] = {}
    orders: dict[str, int] = {}
    for record in read_rows(shards, COLUMNS, split_file.removesuffix(".json").removeprefix("dataset_")):
        image = _image(record, image_folder)
        known = images.setdefault(image.path, image)
        if known is not image:
            images[image.path] = _joined(known, image, record["source"])
        elif record["image"] is not None:
            stored[image.path] = record["image"].named(f"{root}/{image.path}")
        orders.setdefault(image.path, _order(record["imgid"], len(orders)))
    ordered = sorted(images.values(), key=lambda image: orders[image.path])
    source = shards[0].parent
    unique((i.id for i in ordered), str(source), "image id")
    unique((s for i in ordered for s, _ in i.sentences), str(source), "sentence id")
    return CaptionData(ordered, source, lambda path: stored.get(path) or lying.picture(path))


def _image(record: Record, image_folder: str | None) -> CaptionedImage:
    source = record["source"]
    for key in ("filename", "split", "sentences"):
        if record[key] is None:
            raise BenchError(f"{source}: {key!r} is null; get the export again")
    if isinstance(record["sentences"], dict):  # a row per caption
        texts, ids = [record["sentences"].get("raw")], [record["sentences"].get("sentid")]
    else:
        texts, ids = record["sentences"], record["sentids"] or []
    if len(texts) != len(ids) or None in texts or None in ids:
        raise BenchError(f"{source}: {len(texts)} captions and {len(ids)} ids of captions; get the export again")
    filename = record["filename"]
    folder = record["filepath"] or image_folder or ""
    identity = Path(filename).stem if record["cocoid"] is None else str(record["cocoid"])
    sentences = tuple((str(i), str(text)) for i, text in zip(ids, texts, strict=True))
    return CaptionedImage(identity, f"{folder}/{filename}".lstrip("/"), record["split"], sentences)


def _joined(a: CaptionedImage, b: CaptionedImage, source: str) -> CaptionedImage:
    """An image whose captions stand in several rows."""
    if (a.id, a.split) != (b.id, b.split):
        raise BenchError(
            f"{source}: {b.path} is of image {b.id}, split {b.split}, and in another row of {a.id}, {a.split}"
        )
    known = {i for i, _ in a.sentences}
    new = tuple(sentence for sentence in b.sentences if sentence[0] not in known)
    return CaptionedImage(a.id, a.path, a.split, (*a.sentences, *new))


def _order(value: object, otherwise: int) -> int:
    text = str(value)
    return int(text) if text.isdecimal() else otherwise
