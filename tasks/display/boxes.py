"""Detection for people: objects and detections on the picture, matched at IoU 0.5 as COCOeval matches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from beit3_bench.tasks.coco_instances import instances_content, official_id, result_records
from beit3_bench.tasks.display import Display, Line, Mark, Picture, Samples, Shown, State, listed
from beit3_bench.tasks.display.breakdowns import Breakdown, reliability
from beit3_bench.tasks.metrics.coco_ap import coco_ap
from beit3_bench.tasks.metrics.coco_matches import CategoryTable, estimate_ap
from beit3_bench.tasks.metrics.coco_matching import matched_pairs
from beit3_bench.tasks.metrics.coco_truth import compressed, has_mask, polygons_rle

if TYPE_CHECKING:
    from beit3_bench.tasks.contract import Example, Row, Split, Task

OVERLAP = 0.5
DRAWN = 40
"""Detections that are drawn on a picture at most, those of the highest scores."""
FAINTEST = 0.05
"""Least score of a detection that is drawn."""


class DetectionDisplay(Display):
    """The score of a picture is the AP of its boxes by itself; its confident errors are detections that find nothing."""

    groups: ClassVar[Mapping[str, str]] = {
        "bbox/AP_": "Box AP by size of the object",
        "segm/AP_": "Mask AP by size of the object",
    }

    def __init__(self, task: Task, split: Split, rows: Mapping[str, Row], scores: Mapping[str, Mapping[str, float]]):
        super().__init__(task, split, rows, scores)
        self._found: dict[str, list[tuple[float, State]]] = {}

    def found(self) -> dict[str, list[tuple[float, State]]]:
        """Score and state of the detections of each picture with truth, made once."""
        if not self._found:
            for example in self.examples.values():
                if example.target is not None:
                    detections = [d for d in self.rows[example.id]["detections"] if d["score"] >= FAINTEST]
                    pairs = matched(example.target, detections)
                    states = [_found(example.target, pairs, n) for n in range(len(detections))]
                    self._found[example.id] = [(d["score"], state) for d, state in zip(detections, states, strict=True)]
        return self._found

    def samples(self) -> Samples:
        given = super().samples()
        wrong = {i: [score for score, state in found if state == "false"] for i, found in self.found().items()}
        return Samples(given.ids, given.metric, given.values, {i: min(max(w), 1.0) for i, w in wrong.items() if w})

    def truth(self, example: Example) -> str:
        """The objects by category."""
        names = {c["id"]: c["name"] for c in self.split.truth}
        return "" if example.target is None else listed(names[o["category_id"]] for o in example.target) or "none"

    def shown(self, example: Example, row: Row) -> Shown:
        names = {c["id"]: c["name"] for c in self.split.truth}
        size = example.meta["width"], example.meta["height"]
        everything = sorted(row["detections"], key=lambda d: -d["score"])
        detections = [d for d in everything if d["score"] >= FAINTEST][:DRAWN]
        objects = example.target
        found = matched(objects, detections) if objects is not None else {}
        finder = {o: detections[d]["score"] for d, o in sorted(found.items(), reverse=True)}
        marks = [
            Mark(tuple(o["bbox"]), names[o["category_id"]], _state_of(o, n in finder), finder.get(n), _rle(o, size))
            for n, o in enumerate(objects or ())
        ]
        states: list[State] = [_found(objects, found, n) for n in range(len(detections))]
        marks += [
            Mark(tuple(d["bbox"]), names.get(d["category_id"], ""), state, d["score"], d.get("segmentation"))
            for d, state in zip(detections, states, strict=True)
        ]
        classes = sorted(
            {names[o["category_id"]] for o in objects or ()} | {m.label for m in marks if m.state == "false"}
        )
        alt = f"Picture {example.id} with {len(objects or ())} objects and {len(detections)} detections"
        lines = [] if objects is None else [Line("objects", self.truth(example))]
        left = len(everything) - len(detections)
        lines += [Line("not drawn", f"{left} detections of lower scores")] if left else []
        picture = Picture(example.images[0], alt, size=size, marks=tuple(marks))
        return Shown(example.id, "", (picture,), tuple(lines), classes=tuple(classes))

    def breakdowns(self) -> list[Breakdown]:
        examples = [e for e in self.examples.values() if e.target is not None]
        if not examples:
            return []
        image_ids = {e.id: official_id(e) for e in examples}
        truth = instances_content(examples, self.split.truth)
        records = result_records([self.rows[e.id] for e in examples], ["bbox"], image_ids)
        scores = coco_ap(truth, records, "bbox")
        objects: dict[Any, int] = {}
        for annotation in truth["annotations"]:
            if not annotation.get("iscrowd", 0):
                objects[annotation["category_id"]] = objects.get(annotation["category_id"], 0) + 1
        names = {c["id"]: c["name"] for c in self.split.truth}
        (matches,) = scores.table.evaluations
        table = CategoryTable(scores.table.ids, matches, [names[c] for c in scores.per_category])
        counts = {
            names[c]: objects[c]
            for c, _ in sorted(scores.per_category.items(), key=lambda item: item[1])
            if c in objects
        }
        by_category = Breakdown("Box AP by category", "AP", "fraction", table, estimate_ap, counts, counted="objects")
        told: list[tuple[Any, ...]] = [
            (min(score, 1.0), float(state == "matched"), self.examples[i].cluster)
            for i, found in self.found().items()
            for score, state in found
            if state != "ignored"
        ]
        sure, right, clusters = ([each[k] for each in told] for k in range(3))
        return [by_category, *reliability(sure, right, clusters, "precision at IoU 0.5")]


def matched(objects: Sequence[Mapping[str, Any]], detections: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Detection -> the object that its box finds at IoU 0.5."""
    truth = [{**o, "iscrowd": o.get("iscrowd", 0), "area": 0.0} for o in objects]
    guesses = [
        {"category_id": d["category_id"], "score": d["score"], "bbox": d["bbox"], "area": 0.0} for d in detections
    ]
    return matched_pairs(truth, guesses, "bbox", OVERLAP) if truth and guesses else {}


def _state_of(record: Mapping[str, Any], found: bool) -> State:
    return "ignored" if record.get("iscrowd", 0) else "truth" if found else "missed"


def _found(objects: Sequence[Mapping[str, Any]] | None, found: Mapping[int, int], detection: int) -> State:
    if objects is None or (detection in found and objects[found[detection]].get("iscrowd", 0)):
        return "ignored"
    return "matched" if detection in found else "false"


def _rle(record: Mapping[str, Any], size: tuple[int, int]) -> Mapping[str, Any] | None:
    mask: Any = record.get("segmentation")
    if not has_mask(mask):
        return None
    width, height = size
    return polygons_rle(mask, (height, width)) if isinstance(mask, list) else compressed(mask, (height, width))
