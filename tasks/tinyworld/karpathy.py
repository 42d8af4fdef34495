"""Image entries of a Karpathy split file (``dataset_coco.json``, ``dataset_flickr30k.json``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beit3_bench.tasks.tinyworld.text import words


class KarpathyFile:
    """Collects images and their sentences; imgid and sentid count from 0 over the whole file."""

    def __init__(self, dataset: str):
        self._dataset = dataset
        self._images: list[dict[str, Any]] = []
        self._sentences = 0

    def add(self, filename: str, split: str, captions: Sequence[str], **fields: Any) -> list[int]:
        """Append an image; returns the ids of its sentences."""
        imgid = len(self._images)
        sentids = list(range(self._sentences, self._sentences + len(captions)))
        self._sentences += len(captions)
        sentences = [
            {"tokens": words(raw), "raw": raw, "imgid": imgid, "sentid": sentid}
            for raw, sentid in zip(captions, sentids, strict=True)
        ]
        self._images.append(
            {**fields, "sentids": sentids, "filename": filename, "imgid": imgid, "split": split, "sentences": sentences}
        )
        return sentids

    def content(self) -> dict[str, Any]:
        return {"images": self._images, "dataset": self._dataset}
