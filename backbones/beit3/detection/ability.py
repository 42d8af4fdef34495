"""A detector from a file, as an ability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.abilities import Batch, Detects
from beit3_bench.backbones.beit3.checkpoint import LoadedModel, LoadReport
from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.described import DescribedDetector, describe_detector
from beit3_bench.backbones.beit3.detection.options import DetectorOptions
from beit3_bench.backbones.beit3.detection.plan import DetectorPlan, preset_of
from beit3_bench.backbones.beit3.detection.reading import DetectionReader
from beit3_bench.backbones.beit3.detection.resize import MODE, ShortestEdge
from beit3_bench.backbones.beit3.detection.weights import load_detector
from beit3_bench.backbones.beit3.loading import labels_in, model_of
from beit3_bench.backbones.family import Asked, LoadOptions, Model, Outputs
from beit3_bench.backbones.released import find_released
from beit3_bench.backbones.sources import Source
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from beit3_bench.backbones.beit3.detection.training_config import TrainingConfig

HEAD = "detection"
"""What a fine-tuned checkpoint's metadata call its head."""


class Detection(Detects):
    """A detector of `backbones.beit3.detection` or of the detectron2 adapter.

    flip: see every version of an image mirrored, too; with it, and with several scales, images are seen as by `detect_views`.
    """

    reader: DetectionReader

    def __init__(self, module: nn.Module, reader: DetectionReader, flip: bool = False):
        super().__init__(module, reader)
        self.flip = flip

    def predict(self, batch: Batch) -> list[dict[str, Any]]:
        stacks = [batch["images"], *batch["scaled"]]
        versions = [
            [stack[i, :, : shapes[i][0], : shapes[i][1]] for stack, shapes in zip(stacks, batch["shapes"], strict=True)]
            for i in range(len(batch["sizes"]))
        ]
        if self.flip or len(stacks) > 1:
            from beit3_bench.backbones.beit3.detection.tta import detect_views

            return [
                as_values(detect_views(self.module, images, size, self.flip))  # type: ignore[arg-type]
                for images, size in zip(versions, batch["sizes"], strict=True)
            ]
        inputs = [
            {"image": images[0], "height": height, "width": width}
            for images, (height, width) in zip(versions, batch["sizes"], strict=True)
        ]
        # On a CPU one by one: more at once is no faster there, takes gigabytes, and lets convolutions choose another
        # order of summation by the number of images.
        step = 1 if inputs[0]["image"].device.type == "cpu" else len(inputs)
        values = []
        for start in range(0, len(inputs), step):
            values += [as_values(each) for each in self.module.detect(inputs[start : start + step])]  # type: ignore[operator]
        return values

    def make_ready(self, device: torch.device, compiled: bool) -> None:
        """On a CPU weights are laid out once for its product kernels (see `backbones.packing`)."""
        from beit3_bench.backbones.packing import pack_weights

        if device.type == "cpu" and not compiled:
            pack_weights(self.module)


def as_values(detections: dict[str, Tensor]) -> dict[str, Any]:
    """Detections of one image as numpy arrays. ``masks`` bool (n, H, W) lies in memory as (n, W, H), transposed on the device:
    COCO's run lengths go down columns, so that encoding copies nothing.
    """
    values = {
        "boxes": detections["boxes"].float().cpu().numpy(),
        "scores": detections["scores"].float().cpu().numpy(),
        "classes": detections["classes"].cpu().numpy(),
    }
    if "masks" in detections:
        values["masks"] = detections["masks"].transpose(1, 2).contiguous().cpu().numpy().transpose(0, 2, 1)
    return values


# ---- from a file --------------------------------------------------------------------------------------------------------


def load_detection(source: Source, asked: Asked, options: LoadOptions) -> Model:
    """A detector from a file with detectron2's names (its ``model_final.pth``, or one that `finetune` wrote).

    At which size and with which windows it was trained is in the file, or in detectron2's ``config.yaml`` beside it; what
    neither says is a note.

    Raises:
        BenchError: another kind of checkpoint, another head or number of classes than asked for.
    """
    if options.allow_missing:
        raise BenchError(f"task {asked.task}: detectors are loaded whole; leave out --allow-missing")
    wanted, checkpoint = DetectorOptions.of(asked.values), source.checkpoint
    settings = checkpoint.metadata.get("head_arguments") if checkpoint.metadata.get("head") == HEAD else None
    described = describe_detector(checkpoint, settings, _heads(options))
    if wanted.head is not None and wanted.head != described.plan.head:
        raise BenchError(
            f"{described.origin}: holds a {described.plan.head} head, -o head={wanted.head} was asked for; leave it out"
        )
    labels, weight = labels_in(checkpoint.metadata, checkpoint.path), find_released(checkpoint.path, "beit3")
    released = weight is not None and weight.task == asked.task
    count = described.plan.num_classes
    assumptions = asked.check_outputs(Outputs(checkpoint.path, labels, count, released, checkpoint.metadata))
    plan = chosen_plan(described, wanted, asked.task, options.image_size)
    notes = notes_of(described, wanted, options.image_size)
    wanted.check(asked.task)
    engine = wanted.chosen_engine()
    module = build(plan, described.tower, wanted, engine)
    load_detector(module, checkpoint.tensors, str(checkpoint.path))
    preprocessing = preprocessing_of(plan, wanted, described.config if options.image_size is None else None)
    loaded = LoadedModel(
        module,
        plan.input_config(described.tower),
        LoadReport(loaded=list(checkpoint.tensors), notes=[*checkpoint.notes, *notes]),
        preprocessing,
        checkpoint.metadata,
        checkpoint.sha256,
        options.preset or checkpoint.metadata.get("preset") or preset_of(described.tower),
        checkpoint.path,
        {"plan": plan.to_dict()} if described.config is not None else {},
    )
    ability = Detection(module, DetectionReader(preprocessing, wanted.sides), wanted.flip_test)
    resolved = {"engine": engine, **resolved_plan(described, plan)}
    return model_of(ability, source, loaded, wanted.protocol, resolved, assumptions=assumptions)


def build(plan: DetectorPlan, tower: BEiT3Config, options: DetectorOptions, engine: str) -> Any:
    """The detector on an engine, untrained, in evaluation mode."""
    if engine == "detectron2":
        from beit3_bench.backbones.beit3.detectron2_adapter import build_model

        return build_model(plan, tower, **options.inference())
    return plan.build(tower, **options.inference())


def chosen_plan(
    described: DescribedDetector, wanted: DetectorOptions, task: str, image_size: int | None
) -> DetectorPlan:
    """The checkpoint's plan, with what was asked for where that is a choice.

    Raises:
        BenchError: it is none, or images do not fit into the detector's square.
    """
    plan, origin = described.plan, described.origin
    for key, value in (("window_size", wanted.window_size), ("proposals", wanted.proposals)):
        known = plan.to_dict()[key]
        if value is not None and value != known:
            if key in described.told:
                raise BenchError(f"{origin}: was trained with {key} {known}; leave out -o {key}")
            plan = plan.replace(**{key: value})
    if image_size is not None:
        plan = plan.replace(image_size=image_size)
    if wanted.max_size is not None and wanted.max_size > plan.image_size:
        side = -(-wanted.max_size // 32) * 32
        raise BenchError(
            f"task {task}: max_size {wanted.max_size} does not fit into the detector's square of {plan.image_size}; "
            f"give --image-size {side}"
        )
    return plan


def resolved_plan(described: DescribedDetector, plan: DetectorPlan) -> dict[str, Any]:
    """Options that detectron2's configuration beside the checkpoint decided; the result says what they were."""
    return {} if described.config is None else {"window_size": plan.window_size, "proposals": plan.proposals}


def notes_of(described: DescribedDetector, wanted: DetectorOptions, image_size: int | None) -> list[str]:
    """What is not known of the detector's training, and where its own evaluation would be another; for the result."""
    given = {"image_size": image_size, "window_size": wanted.window_size, "proposals": wanted.proposals}
    notes = described.lines(given)
    if described.config is not None:
        own = wanted.inference()
        own["soft_nms"] = wanted.soft_nms if wanted.soft_nms != "none" else None
        theirs = {"soft_nms": None, **described.config.inference}
        other = [f"{k} {theirs[k]} instead of {own[k]}" for k in own if k in theirs and theirs[k] != own[k]]
        if other:
            notes.append(f"{described.config.path}: would be tested with {', '.join(other)}")
    return notes


def preprocessing_of(
    plan: DetectorPlan, options: DetectorOptions, config: TrainingConfig | None = None
) -> ShortestEdge:
    """The resizing of evaluation: options, or that of detectron2's own evaluation (``config``) where it fits into the
    detector's square, or the longer side becomes that square.
    """
    mean, std = (tuple(v / 255 for v in values) for values in (plan.pixel_mean, plan.pixel_std))
    side = plan.image_size
    short = longest = side
    if config is not None and config.short_side and config.longest_side and config.longest_side <= side:
        short, longest = config.short_side, config.longest_side
    short, longest = options.short_side or short, options.max_size or longest
    return ShortestEdge(side, MODE, mean, std, short_side=short, longest_side=longest)  # type: ignore[arg-type]


def _heads(options: LoadOptions) -> int | None:
    """Attention heads, where neither file nor configuration says: as given, or those of the preset."""
    if options.given is not None and options.given.num_heads:
        return options.given.num_heads
    return BEiT3Config.preset(options.preset).num_heads if options.preset else None
