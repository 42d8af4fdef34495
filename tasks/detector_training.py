"""Detectors as tasks make and train them: from options and recipes to a network, its data and its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.beit3.detection.plan import DetectorPlan
from beit3_bench.backbones.beit3.detection.resize import MODE, ShortestEdge
from beit3_bench.errors import BenchError
from beit3_bench.tasks.contract import Example, Task
from beit3_bench.tasks.detector_options import DetectionOptions
from beit3_bench.tasks.metrics.coco_truth import valid_polygons

if TYPE_CHECKING:
    import torch

    from beit3_bench.backbones.beit3.checkpoint import LoadReport
    from beit3_bench.backbones.beit3.config import BEiT3Config
    from beit3_bench.backbones.beit3.detection.training_config import TrainingConfig
    from beit3_bench.backbones.beit3.recipes import Recipe
    from beit3_bench.backbones.checkpoints import Checkpoint

TRAINING_SPLIT = "train2017"


class DetectorTask(Task):
    """A task whose network is a detector of `backbones.beit3.detection` or of the detectron2 adapter.

    Attributes:
        classes: category records of the annotations, a class being a position in this list.
        plan: of the network, once there is one.
    """

    head = "detection"
    uses_text = False
    outputs = "categories"
    Options = DetectionOptions  # type: ignore[assignment]
    options: DetectionOptions

    def __init__(self, data_root: str | Path, options: Mapping[str, str] | None = None):
        super().__init__(data_root, options)
        self.classes: list[dict[str, Any]] = []
        self.plan: DetectorPlan | None = None
        self._jitter: Callable | None = None
        self._left_out: list[str] = []

    # ---- the network ----------------------------------------------------------------------------------------------

    def model(self, config: BEiT3Config) -> torch.nn.Module:
        """A new detector of the options around a tower of ``config``, whose image size is the detector's."""
        from beit3_bench.backbones.beit3.detection.plan import strided

        if not self.classes:
            self.examples(TRAINING_SPLIT)
        return self.build(self.new_plan(config.image_size), strided(config))

    def new_plan(self, image_size: int) -> DetectorPlan:
        o = self.options
        given = {"head": o.head, "window_size": o.window_size, "proposals": o.proposals}
        return DetectorPlan(
            num_classes=len(self.classes),
            image_size=image_size,
            out_channels=o.out_channels,
            fc_dim=o.fc_dim,
            with_masks=o.masks,
            **{k: v for k, v in given.items() if v is not None},
        )

    def build(self, plan: DetectorPlan, tower: BEiT3Config) -> Any:
        """The detector on the engine of the options, untrained, in evaluation mode."""
        self.plan = plan
        self.options.settle_engine()
        if self.options.engine == "detectron2":
            from beit3_bench.backbones.beit3.detectron2_adapter import build_model

            return build_model(plan, tower, **self.options.inference())
        return plan.build(tower, **self.options.inference())

    def head_arguments(self) -> dict[str, Any]:
        """The detector's plan, which a fine-tuned checkpoint carries."""
        return self.plan.to_dict() if self.plan else {}

    def labels(self) -> list[str]:
        """Names of the categories in order of their ids."""
        return [category["name"] for category in self.classes]

    def preprocessing_of(self, plan: DetectorPlan, config: TrainingConfig | None = None) -> ShortestEdge:
        """The resizing of evaluation: options, or that of detectron2's own evaluation (``config``) where it fits into the
        detector's square, or the longer side becomes that square.
        """
        mean, std = (tuple(v / 255 for v in values) for values in (plan.pixel_mean, plan.pixel_std))
        side, o = plan.image_size, self.options
        short = longest = side
        if config is not None and config.short_side and config.longest_side and config.longest_side <= side:
            short, longest = config.short_side, config.longest_side
        short, longest = o.short_side or short, o.max_size or longest
        return ShortestEdge(side, MODE, mean, std, short_side=short, longest_side=longest)  # type: ignore[arg-type]

    def training_preprocessing(self, image_size: int) -> ShortestEdge:
        """How images are resized when a detector under training is validated."""
        return self.preprocessing_of(self.plan or DetectorPlan(image_size=image_size))

    # ---- fine-tuning ----------------------------------------------------------------------------------------------

    def configure_training(self, recipe: Mapping[str, Any]) -> None:
        """Large-scale jitter at the recipe's size."""
        from beit3_bench.backbones.beit3.training.scale_jitter import LargeScaleJitter

        scale = (self.options.jitter_min, self.options.jitter_max)
        self._jitter = LargeScaleJitter(recipe["image_size"], scale, recipe["flip"])

    def training_examples(self) -> list[Example]:
        """Images of train2017 that show an object; crowds are left out, as in detectron2."""
        chosen = []
        examples = self.examples(TRAINING_SPLIT)
        position = {category["id"]: i for i, category in enumerate(self.classes)}
        key, dropped = "segmentation" if self.options.masks else "bbox", 0
        for example in examples:
            if example.target is None:
                raise BenchError(f"{self.data_root}: the training annotations hold no objects; get the instances file")
            objects = [o for o in example.target if not o.get("iscrowd", 0)]
            if any(not o.get(key) for o in objects):
                raise BenchError(
                    f"image {example.id} of {TRAINING_SPLIT}: an object without {key}; for data with boxes only use -o masks=0"
                )
            if self.options.masks:
                whole = _with_valid_polygons(objects)
                dropped, objects = dropped + len(objects) - len(whole), whole
            if objects:
                example.target = [
                    {"bbox": o["bbox"], key: o[key], "class": position[o["category_id"]]} for o in objects
                ]
                chosen.append(example)
        if dropped:
            self._left_out = [
                f"{dropped} objects of {TRAINING_SPLIT} have no polygon of three points: left out of training"
            ]
        return chosen

    def training_model(
        self, preset: str, recipe: Recipe, checkpoint: Checkpoint | None
    ) -> tuple[torch.nn.Module, BEiT3Config, LoadReport | None, list[str]]:
        """A detector to be trained, from pretrained BEiT-3 weights or from another detector.

        Returns:
            the model; its configuration at the recipe's size; what the checkpoint lacked; names that stay new.
        """
        from beit3_bench.backbones.beit3.checkpoint import LoadReport, config_from_tensors
        from beit3_bench.backbones.beit3.config import BEiT3Config
        from beit3_bench.backbones.beit3.detection.described import describe_detector
        from beit3_bench.backbones.beit3.detection.plan import NET, start_detector, strided

        runtime = {"drop_path_rate": recipe.drop_path, "checkpoint_activations": recipe.checkpoint_activations}
        plan, notes = self.new_plan(recipe.image_size), list(self._left_out)
        if checkpoint is None:
            base = BEiT3Config.preset(preset)
        else:
            origin, known = str(checkpoint.path), checkpoint.metadata.get("config") or {}
            heads = known.get("num_heads") or BEiT3Config.preset(preset).num_heads
            if any(name.startswith(NET) for name in checkpoint.tensors):
                described = describe_detector(checkpoint, checkpoint.metadata.get("head_arguments"), heads)
                base, asked = described.tower, {"head": plan.head, "num_classes": plan.num_classes}
                asked |= {"image_size": plan.image_size, "with_masks": plan.with_masks}
                chosen = [n for n in ("window_size", "proposals") if getattr(self.options, n) is not None]
                asked |= {n: getattr(plan, n) for n in chosen if n not in described.told}
                plan = described.plan.replace(**asked)
                # the square is the recipe's: only what the tower was trained with matters
                notes += described.lines({**vars(self.options), "image_size": plan.image_size})
                if described.config is not None:
                    self.options.window_size, self.options.proposals = plan.window_size, plan.proposals
            else:
                base = config_from_tensors(checkpoint.tensors, origin, None if known else preset, num_heads=heads)
                base = base.replace(layer_norm_eps=known.get("layer_norm_eps", base.layer_norm_eps))
        tower = strided(base, **runtime)
        self.plan = plan
        model = self.build(plan, tower)
        model.roi_heads.batch_size_per_image = self.options.rois_per_image
        report, new = start_detector(model, checkpoint) if checkpoint else (LoadReport(), [])
        report.notes += [*notes, *(checkpoint.notes if checkpoint else [])]
        return model, plan.input_config(tower).replace(**runtime), report, new

    def parameter_groups(self, model: torch.nn.Module, config: BEiT3Config, recipe: Recipe) -> list[dict[str, Any]]:
        """ViTDet's groups: layer decay by name, no weight decay for norms and positions."""
        from beit3_bench.backbones.beit3.detection.recipe import param_groups

        groups = param_groups(model, 1.0, recipe.weight_decay, recipe.layer_decay, config.depth)
        return [{**g, "name": f"rate x{g['lr']:.3g}, decay {g['weight_decay']:g}", "lr_scale": g["lr"]} for g in groups]

    def training_collate(
        self, examples: Sequence[Example], generator: torch.Generator, image_ops: Callable
    ) -> dict[str, Any]:
        """Jittered images of various sizes with their targets, as `Detector.losses` takes them."""
        from beit3_bench.backbones.beit3.training.augment import derived

        assert self._jitter is not None
        inputs = []
        for example in examples:
            image, targets = self._jitter(
                checked_image(example), example.target, self.options.masks, derived(generator, example.id)
            )
            inputs.append({"image": image, "instances": targets})
        return {"ids": [e.id for e in examples], "inputs": inputs}

    def loss(self, model: torch.nn.Module, batch: dict[str, Any], gather: Callable, step: int = 0) -> torch.Tensor:
        """Sum of the RPN, box and mask losses."""
        losses = model.losses(batch["inputs"])  # type: ignore[operator]
        return sum(losses.values())  # type: ignore[return-value]


def _with_valid_polygons(objects: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Objects without polygons of fewer than three points, and without those that have no other: as detectron2."""
    kept: list[Mapping[str, Any]] = []
    for record in objects:
        mask = record["segmentation"]
        if isinstance(mask, list):
            mask = valid_polygons(mask)
            if not mask:
                continue
        kept.append({**record, "segmentation": mask})
    return kept


def checked_image(example: Example) -> Any:
    """The example's image, upright (`_apply_exif_orientation` of detectron2) and of the size that the annotations say."""
    from beit3_bench.backbones.preprocess import decode

    image = decode(example.images[0], upright=True)
    if problem := size_problem(example, image.size):
        raise BenchError(problem)
    return image


def size_problem(example: Example, size: tuple[int, int]) -> str | None:
    """What is wrong with an upright image of ``size`` (width, height), in words; None where the annotations say the same."""
    expected = (example.meta["width"], example.meta["height"])
    if size == expected:
        return None
    told = f"{example.images[0]}: is {size[0]}x{size[1]} pixels, the annotations say {expected[0]}x{expected[1]}"
    if size == expected[::-1]:
        told += " (an EXIF orientation counts, as in detectron2: annotations are those of the upright image)"
    return f"{told}; give image and annotations of one data set"
