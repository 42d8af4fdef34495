"""COCO val2017: 5,000 images with 36,781 objects, and 100 detections of each image with boxes and masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from beit3_bench.tasks.contract import Row, Split, Task
from beit3_bench.tasks.files import write_json
from beit3_bench.tasks.madeup import MadeUp, batches, touch
from beit3_bench.tasks.madeup.coco_boxes import IMAGES, made_up_coco

CORNERS = 24
"""Of a polygon; COCO's have about as many."""
_ANGLES = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)


def write(root: Path, samples: int) -> None:
    """The instances file, in which every object is an ellipse, and a crowd the whole of its box."""
    truth, _ = made_up_coco(samples)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']:012d}.jpg"
    outlines = ellipses(np.array([o["bbox"] for o in truth["annotations"]])).round(2).tolist()
    for record, outline in zip(truth["annotations"], outlines, strict=True):
        record["segmentation"] = _filled(record["bbox"]) if record["iscrowd"] else [outline]
    touch(root / "val2017", [image["file_name"] for image in truth["images"]])
    (root / "annotations").mkdir()
    write_json(root / "annotations" / "instances_val2017.json", truth)


def ellipses(boxes: np.ndarray) -> np.ndarray:
    """Outlines of what fills boxes, x and y in turn: float64 (n, 2 * CORNERS).  boxes: (n, 4), x, y, width, height."""
    half = boxes[:, 2:, None] / 2
    points = boxes[:, :2, None] + half + half * np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])
    return points.transpose(0, 2, 1).reshape(len(boxes), -1)


def _filled(box: list[float], height: int = 480, width: int = 640) -> dict[str, Any]:
    """A box as uncompressed RLE, as the file has its crowds."""
    left, top, right, bottom = (int(v) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    bottom, right = min(max(bottom, top + 1), height), min(max(right, left + 1), width)
    runs = [left * height + top]
    for _ in range(left, right):
        runs += [bottom - top, height - (bottom - top)]
    runs[-1] = height * width - sum(runs[:-1])
    return {"size": [height, width], "counts": runs}


def rows(task: Task, split: Split) -> Iterator[list[Row]]:
    """Boxes and masks, as rows hold them: making bitmaps of them to encode would be what a network's own masks cost."""
    from pycocotools import mask

    _, detections = made_up_coco(len(split.examples))
    by_image: dict[int, list[dict[str, Any]]] = {}
    for record in detections:
        by_image.setdefault(record["image_id"], []).append(record)
    for examples in batches(split):
        made = []
        for example in examples:
            found = by_image.get(int(example.id), [])
            outlines = ellipses(np.array([d["bbox"] for d in found]).reshape(-1, 4)).tolist()
            size = example.meta["height"], example.meta["width"]
            rles = mask.frPyObjects(outlines, *size) if outlines else []
            made.append(
                {
                    "id": example.id,
                    "detections": [
                        {
                            "category_id": d["category_id"],
                            "bbox": np.float32(d["bbox"]).tolist(),
                            "score": float(np.float32(d["score"])),
                            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                        }
                        for d, rle in zip(found, rles, strict=True)
                    ],
                    "masks": True,
                }
            )
        yield made


MADE_UP = MadeUp(IMAGES, write, rows)
