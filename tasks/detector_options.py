"""Options of the detection task: ``-o key=value`` of `run` and `finetune`, and tables of recipes."""

from __future__ import annotations

from dataclasses import dataclass

from beit3_bench.errors import BenchError, requires
from beit3_bench.tasks.coco_instances import ALGORITHM
from beit3_bench.tasks.metrics.coco_ap import BACKENDS

CHOICES = {
    "engine": ("auto", "native", "detectron2"),
    "head": (None, "mask_rcnn", "cascade_mask_rcnn"),
    "soft_nms": ("none", "linear", "gaussian"),
    "ap_backend": BACKENDS,
}
COUNTS = (
    *("short_side", "max_size", "num_classes", "detections_per_image"),
    *("out_channels", "fc_dim", "proposals", "rois_per_image"),
)


@dataclass
class DetectionOptions:
    """engine: auto (detectron2 where it imports, else native), native or detectron2; the result records which.
    head: mask_rcnn or cascade_mask_rcnn; default: the checkpoint's, of which it must be.
    num_classes: default: as many as the annotations have categories, of which it must be the number.
    window_size: tokens along a window of attention, of a checkpoint that does not say (14) or of a new detector; 0 = global
    attention everywhere.
    proposals: how many an image has after NMS, of a checkpoint that does not say (1000) or of a new detector.
    soft_nms: none, linear or gaussian, in place of NMS.  soft_nms_iou: above it linear lowers scores.
    soft_nms_sigma: width of gaussian; a larger one lowers scores less.  soft_nms_min_score: what falls below it is dropped.
    score_threshold: detections below it are dropped.  nms_threshold: of two boxes that overlap more, the better one stays.
    detections_per_image: so many are kept, the best ones.
    short_side, max_size: pixels of the shorter side, and of the longer one at most; default: both the detector's square, i.e.
    the longer side becomes that.
    scales: longer sides for test-time augmentation, e.g. 800,1024,1280.  flip_test: see mirrored images, too.
    algorithm: its name in that of the test-dev file.
    ap_backend: whose COCO statistics the result holds: own, pycocotools or faster-coco-eval; equal to 1e-12, of which our
    own takes a fifth of the time of pycocotools and makes the intervals in any case.
    out_channels: of the pyramid of a new detector.  fc_dim: width of the box head of a new detector.
    masks: whether a new detector finds masks, too.
    jitter_min, jitter_max: smallest and largest factor of large-scale jitter.
    rois_per_image: proposals of an image that enter the losses.
    """

    engine: str = "auto"
    head: str | None = None
    num_classes: int | None = None
    window_size: int | None = None
    proposals: int | None = None
    soft_nms: str = "none"
    soft_nms_iou: float = 0.6
    soft_nms_sigma: float = 0.5
    soft_nms_min_score: float = 1e-3
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections_per_image: int = 100
    short_side: int | None = None
    max_size: int | None = None
    scales: str = ""
    flip_test: bool = False
    algorithm: str = "beit3"
    ap_backend: str = "own"
    out_channels: int = 256
    fc_dim: int = 1024
    masks: bool = True
    jitter_min: float = 0.1
    jitter_max: float = 2.0
    rois_per_image: int = 512

    def __post_init__(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                told = ", ".join(word for word in allowed if word)
                raise BenchError(f"task coco-det: {key}={getattr(self, key)!r}; choose one of: {told}")
        if self.ap_backend == "faster-coco-eval":  # before hours of detection, not after them
            requires("faster_coco_eval", "the COCO back end faster-coco-eval")
        for key in COUNTS:
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise BenchError(f"task coco-det: {key} is {getattr(self, key)}; give a whole number from 1 on")
        if self.window_size is not None and self.window_size < 0:
            raise BenchError(f"task coco-det: window_size is {self.window_size}; give tokens, or 0 for no windows")
        if not (0 <= self.score_threshold < 1 and 0 < self.nms_threshold <= 1 and 0 < self.soft_nms_iou <= 1):
            raise BenchError(
                f"task coco-det: score_threshold {self.score_threshold}, nms_threshold {self.nms_threshold}, "
                f"soft_nms_iou {self.soft_nms_iou}: give numbers between 0 and 1"
            )
        if not (self.soft_nms_sigma > 0 and self.soft_nms_min_score >= 0):
            raise BenchError(
                f"task coco-det: soft_nms_sigma {self.soft_nms_sigma} must be above 0, "
                f"soft_nms_min_score {self.soft_nms_min_score} not below"
            )
        if not 0 < self.jitter_min <= self.jitter_max <= 10:
            raise BenchError(
                f"task coco-det: jitter_min {self.jitter_min} and jitter_max {self.jitter_max}; give 0 < min <= max <= 10"
            )
        if not ALGORITHM.fullmatch(self.algorithm):
            raise BenchError(
                f"task coco-det: algorithm={self.algorithm!r} goes into a file name; use letters, digits, - and ."
            )
        sides = self.sides()
        if any(not 32 <= side <= 8192 for side in sides) or len(set(sides)) != len(sides):
            raise BenchError(f"task coco-det: scales={self.scales!r}; give different sides of 32 to 8192 pixels")

    def sides(self) -> list[int]:
        """The longer sides of ``scales``; empty without test-time augmentation of scale."""
        try:
            return [int(part) for part in self.scales.split(",") if part.strip()]
        except ValueError as error:
            raise BenchError(f"task coco-det: scales={self.scales!r}; give longer sides, e.g. 800,1024,1280") from error
