"""VQAv2 from an export: HuggingFaceM4/VQAv2, lmms-lab/VQAv2, and others with their columns.

A row is a question with its image; many rows show the same one, and the first of them is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beit3_bench.errors import BenchError
from beit3_bench.tasks.files import whole_number
from beit3_bench.tasks.layouts.places import Images, Picture
from beit3_bench.tasks.layouts.tables import Column, Record, find_shards, read_rows

EXPORTED = {
    "train2014": ("train",),
    "val2014": ("validation", "val"),
    "test-dev2015": ("testdev", "test-dev", "test_dev"),
    "test2015": ("test", "test-std", "test_std"),
}
"""What exports call the splits."""

QUESTIONS = (
    Column(("question_id",), "by which answers are scored"),
    Column(("image_id",), "which names the images"),
    Column(("question",), "the questions"),
    Column(("image",), "the images", image=True),
)
ANNOTATIONS = (
    *QUESTIONS[:2],
    Column(("answers",), "the ten human answers"),
    Column(("multiple_choice_answer",), "which the answer vocabulary is made of"),
    Column(("answer_type",), "by which accuracies are told apart"),
    Column(("question_type",), "by which accuracies are told apart"),
)


@dataclass(frozen=True)
class ExportedImages(Images):
    """Images by the names of 2014 and 2015, in the rows of an export."""

    rows: Mapping[str, Picture]

    def picture(self, name: str) -> Picture:
        return self.rows[name]


def exported_questions(root: Path, subset: str) -> list[Record]:
    """Rows with ``question_id``, ``image_id``, ``question`` and ``image``; none where there is no export."""
    return read_rows(find_shards(root, EXPORTED[subset]), QUESTIONS, "VQAv2")


def exported_annotations(root: Path, subset: str) -> tuple[dict[str, Any] | None, Path]:
    """The content of an official annotations file, from an export; None where there is none. And the first file of it."""
    shards = find_shards(root, EXPORTED[subset])
    if not shards:
        return None, root
    rows = read_rows(shards, ANNOTATIONS, "VQAv2")
    empty = next((row for row in rows if not row["answers"]), None)
    if empty is not None:
        raise BenchError(f"{empty['source']}: has no answers; give another export of VQAv2, or its original files")
    for row in rows:
        row["answers"] = [value if isinstance(value, dict) else {"answer": value} for value in row["answers"]]
        del row["source"]
    return {"annotations": rows}, shards[0]


def exported_images(root: Path, folder: str, rows: list[Record]) -> Images:
    """The images of questions; folder: as the original layout calls it."""
    place, pictures = str(root / folder), {}
    for row in rows:
        name = f"COCO_{folder}_{whole_number(row, 'image_id', row['source']):012d}.jpg"
        if name not in pictures:
            pictures[name] = row["image"].named(f"{place}/{name}")
    return ExportedImages(place, "", pictures)
