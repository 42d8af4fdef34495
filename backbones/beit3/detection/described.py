"""A detector as its checkpoint describes it: tensors, our metadata, or the configuration that detectron2 left beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from beit3_bench.backbones.beit3.config import BEiT3Config
from beit3_bench.backbones.beit3.detection.plan import STRIDE, DetectorPlan, plan_of, tower_of
from beit3_bench.backbones.beit3.detection.training_config import CONFIG, TrainingConfig, config_beside
from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from beit3_bench.backbones.checkpoints import Checkpoint

UNSHOWN = {"image_size": "pixels", "window_size": "tokens along a window", "proposals": "proposals"}
"""Fields of a plan that no tensor shows, and their units."""
LARGEST = {"image_size": 8192, "window_size": 1024, "proposals": 100_000}
"""What a configuration may say; a mistyped one must not ask for the memory of a cluster."""


@dataclass(frozen=True)
class DescribedDetector:
    """What a checkpoint says about its detector.

    told: fields of the plan that it says itself or that its configuration says; the others are defaults.
    origin: what told them: the checkpoint, or the path of its configuration.
    config: of detectron2's training, where it lies beside the checkpoint and is of this detector.
    notes: what could not be known, in lines for the result.
    """

    plan: DetectorPlan
    tower: BEiT3Config
    told: frozenset[str]
    origin: str
    config: TrainingConfig | None = None
    notes: tuple[str, ...] = field(default=())

    def assumed(self, given: Mapping[str, Any]) -> list[str]:
        """The defaults that stand for what nothing says, but for what was ``given`` on the command line, in words."""
        names = [n for n in UNSHOWN if n not in self.told and given.get(n) is None]
        return [f"{getattr(self.plan, n)} {unit}" for n, unit in UNSHOWN.items() if n in names]

    def lines(self, given: Mapping[str, Any]) -> list[str]:
        """The notes, and what was assumed."""
        if not (assumed := self.assumed(given)):
            return list(self.notes)
        return [
            *self.notes,
            f"{self.origin}: does not say how it was trained; assumed: {', '.join(assumed)} "
            f"(give --image-size, -o window_size=N, -o proposals=N, or put detectron2's {CONFIG} beside it)",
        ]


def describe_detector(
    checkpoint: Checkpoint, settings: Mapping[str, Any] | None, num_heads: int | None = None
) -> DescribedDetector:
    """Read the shape of a detector.

    Args:
        settings: the plan that the file carries (`DetectorPlan.to_dict`); None = detectron2's configuration beside it.
        num_heads: of the tower, where neither file nor configuration says.

    Raises:
        BenchError: no ViTDet detector with a BEiT-3 tower, or one that contradicts its own settings.
    """
    tensors, origin = checkpoint.tensors, str(checkpoint.path)
    own = checkpoint.metadata.get("config")
    own = own if isinstance(own, Mapping) else {}
    notes: list[str] = []
    config: TrainingConfig | None = None
    if settings is None:
        config, problem = config_beside(checkpoint.path)
        if config is not None and (other := _contradictions(config, checkpoint)):
            problem = f"{config.path}: is of another detector ({', '.join(other[:3])})"
            config = None
        if problem:
            notes.append(f"{problem}; it was not used")
    if config is not None and config.image_format not in (None, "RGB"):
        raise BenchError(f"{config.path}: was trained on {config.image_format} pixels; only RGB is evaluated here")
    stated = config.plan if config is not None else settings
    plan = plan_of(tensors, origin, stated)
    known = config.tower if config is not None else own
    tower = tower_of(tensors, origin, own.get("num_heads") or known.get("num_heads") or num_heads)
    if isinstance(known.get("layer_norm_eps"), float):
        tower = tower.replace(layer_norm_eps=known["layer_norm_eps"])
    return DescribedDetector(
        plan, tower, frozenset(stated or ()), str(config.path) if config else origin, config, tuple(notes)
    )


def _contradictions(config: TrainingConfig, checkpoint: Checkpoint) -> list[str]:
    """What a configuration says that the tensors, or each other, rule out; in words."""
    tower = tower_of(checkpoint.tensors, str(checkpoint.path), 1)
    plan = plan_of(checkpoint.tensors, str(checkpoint.path))
    shown = {n: getattr(tower, n) for n in ("embed_dim", "depth", "ffn_dim")}
    shown |= {n: getattr(plan, n) for n in ("num_classes", "out_channels", "cls_token", "final_norm")}
    said = {**config.tower, **config.plan}
    wrong = [f"{n} {said[n]} instead of {v}" for n, v in shown.items() if n in said and said[n] != v]
    if tower.embed_dim % said.get("num_heads", 1):
        wrong.append(f"{said['num_heads']} heads for a width of {tower.embed_dim}")
    if said.get("image_size", STRIDE) % STRIDE:
        wrong.append(f"a square of {said['image_size']} pixels, no multiple of {STRIDE}")
    if any(not 0 <= block < tower.depth for block in said.get("global_blocks", ())):
        wrong.append(f"global blocks {said['global_blocks']} of {tower.depth}")
    wrong += [f"{name} {said[name]}" for name, most in LARGEST.items() if said.get(name, 0) > most]
    if not 0 < said.get("layer_norm_eps", 1e-5) < 1:
        wrong.append(f"layer_norm_eps {said['layer_norm_eps']}")
    if min(said.get("pixel_std", (1.0,))) <= 0:
        wrong.append(f"pixel_std {said['pixel_std']}")
    return wrong
