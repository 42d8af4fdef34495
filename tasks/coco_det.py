"""COCO detection and instance segmentation.

Protocol (ViTDet, section 4; detectron2 projects/ViTDet): longer side resized to the detector's square, padded, NMS at 0.5,
100 detections per image, COCOeval for boxes and masks. BEiT-3's own test-dev numbers (paper, section 3.2.1) stand on 1280
pixels, Soft-NMS and several scales: ``--image-size 1280 -o soft_nms=linear -o scales=1024,1280,1536 -o flip_test=1``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.abilities import Detects, Item
from beit3_bench.backbones.family import Outputs
from beit3_bench.errors import BenchError
from beit3_bench.tasks.coco_instances import (
    Instances,
    has_masks,
    instances_content,
    mask_notes,
    official_id,
    read_instances,
    result_records,
    with_valid_polygons,
    write_results,
    zero_id_note,
)
from beit3_bench.tasks.contract import Example, Row, ScoreInputs, Split, Task
from beit3_bench.tasks.detector_options import DetectionOptions
from beit3_bench.tasks.files import find, read_json, read_records
from beit3_bench.tasks.layouts.places import find_images, names_of
from beit3_bench.tasks.metrics.coco_ap import CocoScores, coco_ap
from beit3_bench.tasks.metrics.coco_matches import STATISTICS, estimate_ap
from beit3_bench.tasks.metrics.coco_truth import has_mask
from beit3_bench.tasks.scores import Metric, Scores

if TYPE_CHECKING:
    from beit3_bench.tasks.display import Display

TRAINING_SPLIT = "train2017"
ANNOTATIONS = {
    "val2017": "instances_val2017.json",
    "test-dev": "image_info_test-dev2017.json",
    "train2017": "instances_train2017.json",
}
IMAGES = {"val2017": "val2017", "test-dev": "test2017", "train2017": "train2017"}
COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
TEST_SETS = {"test-dev": "test-dev2017"}
RESULTS_FORM = {
    "bbox": 'a list of {"image_id", "category_id", "score", "bbox": [x, y, width, height]}',
    "segm": 'a list of {"image_id", "category_id", "score", "segmentation": {"size", "counts"}}',
}


class CocoDetection(Task):
    """COCO val2017 and test-dev, boxes and masks."""

    name = "coco-det"
    ability = Detects
    uses_text = False
    outputs = "categories"
    splits = ("val2017", "test-dev", TRAINING_SPLIT)
    default_split = "val2017"
    row_shape: ClassVar[Mapping[str, Any]] = {"detections": list}
    batch_size = 4  # images of a thousand pixels: more gains no speed
    score_files = ("annotations", "iou_type", "ap_backend")
    metrics = tuple(
        Metric(
            f"{kind}/{name}",
            "fraction",
            headline=(kind, name) == ("bbox", "AP"),
            formula=estimate_ap,
            no_ratio="ranks the detections of all images, class by class",
        )
        for kind in ("bbox", "segm")
        for name in STATISTICS
    )
    layout = """\
DATA_ROOT/
  annotations/instances_val2017.json            instances_train2017.json for fine-tuning
  annotations/image_info_test-dev2017.json      only for test-dev
  val2017/*.jpg, train2017/*.jpg, test2017/*.jpg   also below images/"""
    Options = DetectionOptions  # type: ignore[assignment]
    options: DetectionOptions

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        super().__init__(data_root, options)
        self._read: dict[str, Instances] = {}

    # ---- data -----------------------------------------------------------------------------------------------------

    def _annotation_file(self, split: str) -> Path:
        return find(self.data_root, ANNOTATIONS[split], ("annotations", "."), f"COCO {split} annotations")

    def instances(self, split: str) -> Instances:
        """The annotation file of a split, read once; every split has the same categories."""
        if split not in self._read:
            path = self._annotation_file(split)
            content = read_instances(path)
            wanted = self.options.num_classes
            if wanted is not None and len(content.categories) != wanted:
                raise BenchError(
                    f"{path}: has {len(content.categories)} categories, the task was given num_classes={wanted}"
                )
            for known in self._read.values():
                if [c["id"] for c in known.categories] != [c["id"] for c in content.categories]:
                    raise BenchError(f"{path}: its category ids differ from those of another split; use one data set")
            self._read[split] = content
        return self._read[split]

    def read(self, split: str) -> Split:
        """One example per image of the annotation file; the target is the list of its objects, the truth are the category records
        in order of id, and the labels their names. An object that COCOeval cannot find is a note.
        """
        content = self.instances(split)
        folder = find_images(self.data_root, IMAGES[split], f"COCO {split} image folder", (".", "images"))
        examples = [
            Example(
                str(image["id"]),
                (folder.picture(image["file_name"]).path,),
                cluster=str(image["id"]),
                target=None if content.objects is None else content.objects[image["id"]],
                kind="image",
                meta={"height": image["height"], "width": image["width"]}
                | ({"image_id": image["id"]} if isinstance(image["id"], str) else {}),
                names=names_of(folder.picture(image["file_name"])),
            )
            for image in content.images
        ]
        path = self._annotation_file(split)
        note = zero_id_note(path, (record for records in (content.objects or {}).values() for record in records))
        return Split(
            split,
            tuple(examples),
            tuple(category["name"] for category in content.categories),
            path,
            truth=content.categories,
            notes=() if note is None else (note,),
        )

    def size_problem(self, example: Example) -> str | None:
        from beit3_bench.backbones.preprocess import upright_size, wrong_size

        return wrong_size(example.images[0], upright_size(example.images[0]), _size(example))

    def check_outputs(self, split: Split, outputs: Outputs) -> list[str]:
        """As of every task; a detector without categories of its own is taken to have those of COCO, in order of id."""
        if outputs.count is not None and outputs.count != len(split.truth):
            raise BenchError(
                f"{outputs.checkpoint}: detects {outputs.count} classes, the annotations have {len(split.truth)} categories; "
                "give the data set that it was trained for"
            )
        notes = super().check_outputs(split, outputs)
        if outputs.labels is not None or [c["id"] for c in split.truth] == COCO_IDS:
            return notes
        assumption = (
            "the checkpoint carries no categories: its outputs are taken to be those of the annotations in order of id"
        )
        return [*notes, assumption]

    def customary_labels(self, count: int) -> tuple[str, ...] | None:
        """The categories of COCO in order of id, of a detector of 80 classes."""
        if count != len(COCO_IDS):
            return None
        from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

        names = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by id; those that COCO left out are N/A
        return tuple(names[number] for number in COCO_IDS)

    # ---- asking ---------------------------------------------------------------------------------------------------

    def item(self, example: Example) -> Item:
        return Item(example.id, example.images, size=_size(example))

    def rows(self, examples: Sequence[Example], values: Sequence[Any], split: Split, ahead: Sequence[Any]) -> list[Row]:
        """Detections of each image in official terms: boxes x, y, width, height in pixels, masks as RLE."""
        ids = [category["id"] for category in split.truth]
        return [_row(e.id, detections, ids) for e, detections in zip(examples, values, strict=True)]

    # ---- scoring --------------------------------------------------------------------------------------------------

    def score(self, rows: Mapping[str, Row], split: Split) -> Scores:
        """The twelve COCO statistics of boxes and, with a mask head, of masks; fractions. The value of a sample is the AP of
        the image by itself.
        """
        examples = split.examples
        ordered = [rows[e.id] for e in examples]
        image_ids = {e.id: official_id(e) for e in examples}
        truth = instances_content(examples, split.truth)
        bare = sum(not has_mask(o.get("segmentation")) for o in truth["annotations"])
        masks = not bare and has_masks(ordered)
        kinds = {"bbox": "bbox", "segm": "segmentation"} if masks else {"bbox": "bbox"}
        by_kind = [
            coco_ap(truth, result_records(ordered, [key], image_ids), kind, backend=self.options.ap_backend)
            for kind, key in kinds.items()
        ]
        table = by_kind[0].table
        for other in by_kind[1:]:
            table = table.joined(other.table)
        objects = sum(not o.get("iscrowd", 0) for e in examples for o in e.target)
        return Scores(
            metrics={name: _or_nan(value) for scores in by_kind for name, value in scores.metrics.items()},
            counts={
                "images": len(ordered),
                "objects": objects,
                "detections": sum(len(r["detections"]) for r in ordered),
            },
            table=table,
            samples={
                f"{kind}/AP": {str(image): ap for image, ap in scores.per_image.items()}
                for kind, scores in zip(kinds, by_kind, strict=True)
            },
            notes=[
                *([] if masks else [_boxes_only(bare, len(truth["annotations"]))]),
                *mask_notes(truth["annotations"]),
            ],
        )

    def display(self, rows: Mapping[str, Row], split: Split, scores: Mapping[str, Mapping[str, float]]) -> Display:
        from beit3_bench.tasks.display.boxes import DetectionDisplay

        return DetectionDisplay(self, split, rows, scores)

    def submission(self, rows: Mapping[str, Row], split: Split, folder: Path) -> list[Path]:
        """Official result files; for test-dev the zip files that the evaluation server takes."""
        image_ids = {e.id: official_id(e) for e in split.examples}
        ordered = [rows[e.id] for e in split.examples]
        return write_results(ordered, folder, TEST_SETS.get(split.name), self.options.algorithm, image_ids)

    @classmethod
    def score_file(cls, inputs: ScoreInputs) -> Scores:
        """An official result file against an instances file."""
        if inputs.annotations is None or inputs.iou_type is None:
            raise BenchError("scoring coco-det needs --annotations instances.json and --iou-type bbox or segm")
        truth = read_json(inputs.annotations, "COCO instances")
        detections = read_records(inputs.predictions, "COCO results", RESULTS_FORM[inputs.iou_type])
        try:
            scores: CocoScores = coco_ap(truth, detections, inputs.iou_type, backend=inputs.ap_backend or "own")
        except BenchError as error:
            file = inputs.annotations if str(error).startswith("annotations") else inputs.predictions
            raise BenchError(f"{file}: {error}") from error
        counts = {"images": len(truth["images"]), "detections": len(detections)}
        zero = zero_id_note(inputs.annotations, truth["annotations"])
        notes = [
            *([] if zero is None else [zero]),
            *(mask_notes(truth["annotations"]) if inputs.iou_type == "segm" else []),
        ]
        return Scores(metrics=dict(scores.metrics), counts=counts, table=scores.table, notes=notes)

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def training_split(self) -> Split:
        """Images of train2017 that show an object; crowds are left out, as in detectron2. The target is what is learned: boxes and
        masks with their class, a position in the labels.
        """
        split = self.read(TRAINING_SPLIT)
        position = {category["id"]: i for i, category in enumerate(split.truth)}
        key, chosen, dropped = "segmentation" if self.options.masks else "bbox", [], 0
        for example in split.examples:
            if example.target is None:
                raise BenchError(f"{self.data_root}: the training annotations hold no objects; get the instances file")
            objects = [o for o in example.target if not o.get("iscrowd", 0)]
            if any(not o.get(key) for o in objects):
                raise BenchError(
                    f"image {example.id} of {TRAINING_SPLIT}: an object without {key}; for data with boxes only use -o masks=0"
                )
            if self.options.masks:
                whole = with_valid_polygons(objects)
                dropped, objects = dropped + len(objects) - len(whole), whole
            if objects:
                learned = [{"bbox": o["bbox"], key: o[key], "class": position[o["category_id"]]} for o in objects]
                chosen.append(dataclasses.replace(example, target=learned))
        line = f"{dropped} objects of {TRAINING_SPLIT} have no polygon of three points: left out of training"
        return dataclasses.replace(split.of(chosen), notes=(line,) if dropped else ())


def _size(example: Example) -> tuple[int, int]:
    """Width and height, as the annotations say."""
    return example.meta["width"], example.meta["height"]


def _row(identity: str, detected: Mapping[str, np.ndarray], category_ids: Sequence[int]) -> Row:
    boxes = np.array(detected["boxes"], dtype=np.float32)
    boxes[:, 2:] -= boxes[:, :2]
    detections: list[dict[str, Any]] = [
        {"category_id": category_ids[c], "bbox": box, "score": s}
        for box, s, c in zip(boxes.tolist(), detected["scores"].tolist(), detected["classes"].tolist(), strict=True)
    ]
    if "masks" in detected and detections:
        from pycocotools import mask

        # columns of pixels lie together in the format: (H, W, n) in Fortran's order, which an ability may have made already
        bitmaps = np.asfortranarray(detected["masks"].transpose(1, 2, 0)).view(np.uint8)
        for detection, rle in zip(detections, mask.encode(bitmaps), strict=True):
            detection["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    return {"id": identity, "detections": detections, "masks": "masks" in detected}


def _boxes_only(bare: int, objects: int) -> str:
    if not bare:
        return "the detector has no mask head: boxes only"
    whose = "the annotations have" if bare == objects else f"{bare} of {objects} objects have"
    return f"{whose} no masks: boxes only"


def _or_nan(value: float) -> float:
    """COCOeval's -1 where there is nothing to find (no large objects, say)."""
    return float("nan") if value == -1 else value
