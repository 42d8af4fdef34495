"""COCO detection and instance segmentation: BEiT-3 in ViTDet, Mask R-CNN or Cascade Mask R-CNN heads.

Protocol (ViTDet, section 4; detectron2 projects/ViTDet): longer side resized to the detector's square, padded, NMS at 0.5,
100 detections per image, COCOeval for boxes and masks. BEiT-3's own test-dev numbers (paper, section 3.2.1) stand on 1280
pixels, Soft-NMS and several scales: ``--image-size 1280 -o soft_nms=linear -o scales=1024,1280,1536 -o flip_test=1``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from beit3_bench.backbones.beit3.detection.plan import DetectorPlan
from beit3_bench.backbones.beit3.detection.resize import ShortestEdge
from beit3_bench.errors import BenchError
from beit3_bench.tasks.coco_instances import (
    Instances,
    has_masks,
    mask_notes,
    official_id,
    read_instances,
    result_records,
    write_results,
    zero_id_note,
)
from beit3_bench.tasks.contract import Example, Row, ScoreInputs
from beit3_bench.tasks.detector_training import DetectorTask, checked_image, size_problem
from beit3_bench.tasks.files import find, read_json, read_records
from beit3_bench.tasks.metrics.coco_ap import CocoScores, coco_ap
from beit3_bench.tasks.metrics.coco_matches import STATISTICS, estimate_ap
from beit3_bench.tasks.metrics.coco_truth import has_mask
from beit3_bench.tasks.scores import Metric, Scores

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.beit3.checkpoint import LoadedModel
    from beit3_bench.backbones.beit3.detection.described import DescribedDetector

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


class CocoDetection(DetectorTask):
    """COCO val2017 and test-dev, boxes and masks."""

    name = "coco-det"
    title = "COCO detection and instance segmentation"
    splits = ("val2017", "test-dev", "train2017")
    default_split = "val2017"
    row_shape: ClassVar[Mapping[str, Any]] = {"detections": list}
    batch_size = 4  # images of a thousand pixels: more gains no speed
    score_files = ("annotations", "iou_type")
    metrics = tuple(
        Metric(f"{kind}/{name}", "fraction", headline=(kind, name) == ("bbox", "AP"))
        for kind in ("bbox", "segm")
        for name in STATISTICS
    )
    layout = """\
DATA_ROOT/
  annotations/instances_val2017.json            instances_train2017.json for fine-tuning
  annotations/image_info_test-dev2017.json      only for test-dev
  val2017/*.jpg, train2017/*.jpg, test2017/*.jpg   also below images/"""

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        super().__init__(data_root, options)
        self.split = self.default_split
        self._read: dict[str, Instances] = {}

    # ---- data -----------------------------------------------------------------------------------------------------

    def instances(self, split: str) -> Instances:
        """The annotation file of a split, read once; every split has the same categories."""
        if split not in self._read:
            path = find(self.data_root, ANNOTATIONS[split], ("annotations", "."), f"COCO {split} annotations")
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

    def examples(self, split: str) -> list[Example]:
        """One example per image of the annotation file; the target is the list of its objects."""
        content = self.instances(split)
        self.split, self.classes = split, content.categories
        folder = find(self.data_root, IMAGES[split], (".", "images"), f"COCO {split} image folder")
        return [
            Example(
                str(image["id"]),
                (str(folder / image["file_name"]),),
                cluster=str(image["id"]),
                target=None if content.objects is None else content.objects[image["id"]],
                kind="image",
                meta={"height": image["height"], "width": image["width"]}
                | ({"image_id": image["id"]} if isinstance(image["id"], str) else {}),
            )
            for image in content.images
        ]

    def data_notes(self, split: str) -> list[str]:
        """An object that COCOeval cannot find."""
        objects = self.instances(split).objects or {}
        path = find(self.data_root, ANNOTATIONS[split], ("annotations", "."), f"COCO {split} annotations")
        note = zero_id_note(path, (record for records in objects.values() for record in records))
        return [] if note is None else [note]

    def size_problem(self, example: Example) -> str | None:
        from beit3_bench.backbones.preprocess import upright_size

        return size_problem(example, upright_size(example.images[0]))

    def collate(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Images resized and stacked at the top left of zeros: uint8 (n, 3, h, w), their true sizes beside them; and the
        same again for every further scale.
        """
        assert isinstance(self.preprocessing, ShortestEdge)
        sides = [replace(self.preprocessing, short_side=s, longest_side=s) for s in self.options.sides()] or [
            self.preprocessing
        ]
        versions: list[list[Any]] = [[] for _ in sides]
        for example in examples:
            image = checked_image(example)
            for found, resizing in zip(versions, sides, strict=True):
                found.append(resizing.pixels(image))
        stacked = [_stacked(images) for images in versions]
        return {
            "ids": [e.id for e in examples],
            "sizes": [(e.meta["height"], e.meta["width"]) for e in examples],
            "images": stacked[0],
            "scaled": stacked[1:],
            "shapes": [[tuple(image.shape[1:]) for image in images] for images in versions],
        }

    # ---- the network ----------------------------------------------------------------------------------------------

    def load_model(
        self, checkpoint: Path, preset: str | None, image_size: int | None, allow_missing: Sequence[str]
    ) -> LoadedModel:
        """A detector from a file with detectron2's names (its ``model_final.pth``, or one that `finetune` wrote).

        At which size and with which windows it was trained is in the file, or in detectron2's ``config.yaml`` beside it;
        what neither says is a note in the result.

        Raises:
            BenchError: another kind of checkpoint, another head or number of classes than asked for.
        """
        from beit3_bench.backbones.beit3.checkpoint import LoadedModel, LoadReport
        from beit3_bench.backbones.beit3.config import BEiT3Config
        from beit3_bench.backbones.beit3.detection.described import describe_detector
        from beit3_bench.backbones.beit3.detection.plan import preset_of
        from beit3_bench.backbones.beit3.detection.weights import load_detector
        from beit3_bench.backbones.checkpoints import read_checkpoint

        if allow_missing:
            raise BenchError(f"task {self.name}: detectors are loaded whole; leave out --allow-missing")
        source = read_checkpoint(checkpoint)
        settings = source.metadata.get("head_arguments") if source.metadata.get("head") == self.head else None
        heads = BEiT3Config.preset(preset).num_heads if preset else None
        described = describe_detector(source, settings, heads)
        plan = self._asked(described, image_size)
        notes = self._load_notes(described, image_size)
        if described.config is not None:  # the result says what it was
            self.options.window_size, self.options.proposals = plan.window_size, plan.proposals
        model = self.build(plan, described.tower)
        load_detector(model, source.tensors, str(source.path))
        preprocessing = self.preprocessing_of(plan, described.config if image_size is None else None)
        return LoadedModel(
            model,
            plan.input_config(described.tower),
            LoadReport(loaded=list(source.tensors), notes=[*source.notes, *notes]),
            preprocessing,
            source.metadata,
            source.sha256,
            preset or source.metadata.get("preset") or preset_of(described.tower),
            source.path,
            {"plan": plan.to_dict()} if described.config is not None else {},
        )

    def _asked(self, described: DescribedDetector, image_size: int | None) -> DetectorPlan:
        """The checkpoint's plan, with what was asked for where that is a choice."""
        o, plan, origin = self.options, described.plan, described.origin
        if o.head is not None and o.head != plan.head:
            raise BenchError(f"{origin}: holds a {plan.head} head, -o head={o.head} was asked for; leave it out")
        if len(self.classes) != plan.num_classes:
            raise BenchError(
                f"{origin}: detects {plan.num_classes} classes, the annotations have {len(self.classes)} categories; "
                "give the data set that it was trained for"
            )
        for key in ("window_size", "proposals"):
            wanted = getattr(o, key)
            if wanted is not None and wanted != getattr(plan, key):
                if key in described.told:
                    raise BenchError(f"{origin}: was trained with {key} {getattr(plan, key)}; leave out -o {key}")
                plan = plan.replace(**{key: wanted})
        if image_size is not None:
            plan = plan.replace(image_size=image_size)
        if o.max_size is not None and o.max_size > plan.image_size:
            side = -(-o.max_size // 32) * 32
            raise BenchError(
                f"task {self.name}: max_size {o.max_size} does not fit into the detector's square of {plan.image_size}; "
                f"give --image-size {side}"
            )
        return plan

    def check_labels(self, checkpoint: Path, metadata: Mapping[str, Any], outputs: int | None) -> list[str]:
        """As of every task; a detector without categories of its own is taken to have those of COCO, in order of id."""
        notes = super().check_labels(checkpoint, metadata, outputs)
        if metadata.get("labels") is not None or [c["id"] for c in self.classes] == COCO_IDS:
            return notes
        said = (
            "the checkpoint carries no categories: its outputs are taken to be those of the annotations in order of id"
        )
        return [*notes, said]

    def _load_notes(self, described: DescribedDetector, image_size: int | None) -> list[str]:
        """What is not known of the detector's training, and where its own evaluation would be another; for the result."""
        given = {"image_size": image_size, "window_size": self.options.window_size, "proposals": self.options.proposals}
        notes = described.lines(given)
        if described.config is not None:
            own = self.options.inference()
            own["soft_nms"] = self.options.soft_nms if self.options.soft_nms != "none" else None
            theirs = {"soft_nms": None, **described.config.inference}
            other = [f"{k} {theirs[k]} instead of {own[k]}" for k in own if k in theirs and theirs[k] != own[k]]
            if other:
                notes.append(f"{described.config.path}: would be tested with {', '.join(other)}")
        return notes

    def predict(self, model: torch.nn.Module, batch: dict[str, Any]) -> list[Row]:
        """Detections of each image in official terms: boxes x, y, width, height in pixels, masks as RLE."""
        stacks = [batch["images"], *batch["scaled"]]
        images = [
            [stack[i, :, : shapes[i][0], : shapes[i][1]] for stack, shapes in zip(stacks, batch["shapes"], strict=True)]
            for i in range(len(batch["ids"]))
        ]
        found: list[dict[str, torch.Tensor]] = []
        if self.options.augments_test:
            from beit3_bench.backbones.beit3.detection.tta import detect_views

            for versions, size in zip(images, batch["sizes"], strict=True):
                found.append(detect_views(model, versions, size, self.options.flip_test))  # type: ignore[arg-type]
        else:
            inputs = [
                {"image": versions[0], "height": height, "width": width}
                for versions, (height, width) in zip(images, batch["sizes"], strict=True)
            ]
            # On a CPU one by one: more at once is no faster there, takes gigabytes, and lets convolutions choose another
            # order of summation by the number of images.
            step = 1 if inputs[0]["image"].device.type == "cpu" else len(inputs)
            for start in range(0, len(inputs), step):
                found += model.detect(inputs[start : start + step])  # type: ignore[operator]
        ids = [category["id"] for category in self.classes]
        return [_row(i, detections, ids) for i, detections in zip(batch["ids"], found, strict=True)]

    # ---- scoring --------------------------------------------------------------------------------------------------

    def score(self, rows: Mapping[str, Row], examples: Sequence[Example]) -> Scores:
        """The twelve COCO statistics of boxes and, with a mask head, of masks; fractions. The value of a sample is the AP of
        the image by itself.
        """
        ordered = [rows[e.id] for e in examples]
        image_ids = {e.id: official_id(e) for e in examples}
        truth = {
            "images": [{"id": image_ids[e.id], **e.meta} for e in examples],
            "annotations": [o for e in examples for o in e.target],
            "categories": self.classes,
        }
        bare = sum(not has_mask(o.get("segmentation")) for o in truth["annotations"])
        masks = not bare and has_masks(ordered)
        kinds = {"bbox": "bbox", "segm": "segmentation"} if masks else {"bbox": "bbox"}
        found = [
            coco_ap(truth, result_records(ordered, [key], image_ids), kind, backend=self.options.ap_backend)
            for kind, key in kinds.items()
        ]
        table = found[0].table
        for other in found[1:]:
            table = table.joined(other.table)
        objects = sum(not o.get("iscrowd", 0) for e in examples for o in e.target)
        return Scores(
            metrics={name: _or_nan(value) for scores in found for name, value in scores.metrics.items()},
            counts={
                "images": len(ordered),
                "objects": objects,
                "detections": sum(len(r["detections"]) for r in ordered),
            },
            table=table,
            samples={
                f"{kind}/AP": {str(image): ap for image, ap in scores.per_image.items()}
                for kind, scores in zip(kinds, found, strict=True)
            },
            notes=[
                *([] if masks else [_boxes_only(bare, len(truth["annotations"]))]),
                *mask_notes(truth["annotations"]),
            ],
        )

    def estimate(self, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return estimate_ap(sums)

    def submission(self, rows: Mapping[str, Row], examples: Sequence[Example], folder: Path) -> list[Path]:
        """Official result files; for test-dev the zip files that the evaluation server takes."""
        image_ids = {e.id: official_id(e) for e in examples}
        ordered = [rows[e.id] for e in examples]
        return write_results(ordered, folder, TEST_SETS.get(self.split), self.options.algorithm, image_ids)

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


def _stacked(images: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    stack = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for place, image in zip(stack, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return stack


def _row(identity: str, found: Mapping[str, torch.Tensor], category_ids: Sequence[int]) -> Row:
    boxes = found["boxes"].float().cpu().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    scores, classes = found["scores"].float().tolist(), found["classes"].tolist()
    detections: list[dict[str, Any]] = [
        {"category_id": category_ids[c], "bbox": box, "score": s}
        for box, s, c in zip(boxes.tolist(), scores, classes, strict=True)
    ]
    if "masks" in found and detections:
        import torch
        from pycocotools import mask

        # columns of pixels lie together in the format: (n, W, H) in memory is (H, W, n) in Fortran's order
        bitmaps = found["masks"].transpose(1, 2).contiguous().view(torch.uint8).cpu().numpy().transpose(2, 1, 0)
        for detection, rle in zip(detections, mask.encode(bitmaps), strict=True):
            detection["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    return {"id": identity, "detections": detections, "masks": "masks" in found}


def _boxes_only(bare: int, objects: int) -> str:
    if not bare:
        return "the detector has no mask head: boxes only"
    whose = "the annotations have" if bare == objects else f"{bare} of {objects} objects have"
    return f"{whose} no masks: boxes only"


def _or_nan(value: float) -> float:
    """COCOeval's -1 where there is nothing to find (no large objects, say)."""
    return float("nan") if value == -1 else value
