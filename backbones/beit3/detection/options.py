"""What a task's options say about a detector: which one it is, how it is tested, and how a new one is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from beit3_bench.errors import BenchError


@dataclass(frozen=True)
class DetectorOptions:
    """Fields are described, and their values checked, in `beit3_bench.tasks.detector_options`."""

    engine: str = "auto"
    head: str | None = None
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
    out_channels: int = 256
    fc_dim: int = 1024
    masks: bool = True
    jitter_min: float = 0.1
    jitter_max: float = 2.0
    rois_per_image: int = 512

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> DetectorOptions:
        """From `Asked.values`; what is not there, or None, is the default."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if values.get(f.name) is not None})

    @property
    def sides(self) -> tuple[int, ...]:
        """The longer sides of ``scales``; empty without test-time augmentation of scale."""
        return tuple(int(part) for part in self.scales.split(",") if part.strip())

    @property
    def augments_test(self) -> bool:
        return bool(self.sides) or self.flip_test

    @property
    def protocol(self) -> str:
        """How an image is seen, in a few words."""
        scales = f"{len(self.sides)} scales" if len(self.sides) > 1 else "single scale"
        return f"{scales}, flipped" if self.flip_test else scales

    def inference(self) -> dict[str, Any]:
        """What `DetectorPlan.build` takes beside the tower."""
        soft = {
            "method": self.soft_nms,
            "iou_threshold": self.soft_nms_iou,
            "sigma": self.soft_nms_sigma,
            "min_score": self.soft_nms_min_score,
        }
        return {
            "score_threshold": self.score_threshold,
            "nms_threshold": self.nms_threshold,
            "soft_nms": None if self.soft_nms == "none" else soft,
            "detections_per_image": self.detections_per_image,
        }

    def check(self, task: str) -> None:
        """Raise for an engine that cannot do what is asked, or that does not import; ``task`` is named."""
        from beit3_bench.backbones.beit3 import detectron2_adapter

        if self.engine != "detectron2":
            return
        if self.augments_test:
            raise BenchError(f"task {task}: scales and flip_test need the native engine; use -o engine=native")
        detectron2_adapter.require()

    def chosen_engine(self) -> str:
        """``"native"`` or ``"detectron2"``: what was asked for; for ``auto`` detectron2 where it can do what is asked."""
        from beit3_bench.backbones.beit3 import detectron2_adapter

        if self.engine != "auto":
            return self.engine
        return "detectron2" if not self.augments_test and detectron2_adapter.is_available() else "native"
