"""Hyper-parameters of a fine-tuning: the fields that there are, their ranges, and how named sections inherit.

A family keeps its recipes as data, a section per preset, with the fields of `Recipe` that differ from the defaults; the defaults
are those of BEiT-3's official script (`run_beit3_finetuning.py`). ``inherits = "base"`` starts from another section.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError
from beit3_bench.plain import fill
from beit3_bench.spelling import did_you_mean

if TYPE_CHECKING:
    from beit3_bench.backbones.family import Asked, Family

SCHEDULES = ("cosine", "step")


def _operational(default: Any) -> Any:
    """A field that decides how a training is carried out, not what comes out of it; it may change between resumes."""
    return field(default=default, metadata={"operational": True})


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters of one fine-tuning.

    Optimisation
        epochs, steps: passes over the training split (may be fractional), or optimizer steps where ``steps`` > 0.
        batch: samples per optimizer step, over all processes and accumulated micro-batches.
        lr, min_lr: peak and final rate.  warmup_epochs, warmup_steps (if > 0, it wins): linear rise from 0.
        schedule: ``"cosine"`` to min_lr, or ``"step"``: a tenth from 8/9 of the steps on, again from 26/27 (detectron2).
        betas, eps, weight_decay: AdamW.  clip_grad: greatest gradient norm, 0 = not clipped.
        layer_decay: rate of a layer relative to the one above; 1 = none.
        head_lr_factor: rate of parameters named ``head*`` (`task_head_lr_weight`); counts only where layer_decay is 1.
        ema_decay: of the averaged weights, which are then validated and kept; 0 = none.
    Model
        image_size (pixels), drop_path (stochastic depth of the last layer), text_tokens (longest text, CLS and SEP
        included), glorot (new weights are Glorot-uniform instead of the official initialisation; always so from scratch),
        checkpoint_activations (compute activations again in the backward pass: less memory, 1/3 more time).
    Images
        crop_scale (share of the area), flip (probability), auto_augment, color_jitter: of timm's `create_transform`.
        vl_randaugment: RandAugment of the vision-language recipes.  erase (probability): of timm's `RandomErasing`.  mixup,
        cutmix (alphas), mix_switch: of timm's `Mixup`.
    Losses
        label_smoothing.  mask_prob, drop_worst_ratio, drop_worst_after (steps): captioning.
    Validation
        validation_split: where the best checkpoint is chosen.
    Task
        options: of the task, below those given with ``-o`` (TOML table ``[preset.options]``).
    Operation (may differ when a training is resumed)
        micro_batch: samples per process and forward pass, the rest is accumulated; 0 = all at once.
        validate_epochs: epochs between validations, 0 = at the end only.  save_steps: steps between saved states, 0 =
        after each epoch.  log_steps: steps between lines of log.csv.
    """

    epochs: float = 20.0
    steps: int = 0
    batch: int = 64
    lr: float = 5e-4
    min_lr: float = 1e-6
    warmup_epochs: float = 5.0
    warmup_steps: int = 0
    schedule: str = "cosine"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_grad: float = 0.0
    layer_decay: float = 0.9
    head_lr_factor: float = 0.0
    ema_decay: float = 0.0

    image_size: int = 224
    drop_path: float = 0.1
    text_tokens: int = 64
    glorot: bool = False
    checkpoint_activations: bool = _operational(False)

    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: float = 0.5
    vl_randaugment: bool = False
    auto_augment: str = ""
    color_jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_switch: float = 0.5

    label_smoothing: float = 0.1
    mask_prob: float = 0.6
    drop_worst_ratio: float = 0.2
    drop_worst_after: int = 12000

    validation_split: str = "val"
    options: dict[str, str] = field(default_factory=dict)

    micro_batch: int = _operational(0)
    validate_epochs: int = _operational(1)
    save_steps: int = _operational(0)
    log_steps: int = _operational(10)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, tuples as lists (as they come back from a file)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def changed(self, other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Fields that decide the result and differ from a stored ``to_dict``: name -> (stored, now)."""
        now = self.to_dict()
        decisive = [f.name for f in dataclasses.fields(self) if not f.metadata.get("operational")]
        return {name: (other.get(name), now[name]) for name in decisive if other.get(name) != now[name]}


_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (0, 1e6), "steps": (0, 1e9), "batch": (1, 1e7), "lr": (0, 10), "min_lr": (0, 10), "warmup_epochs": (0, 1e6),
    "warmup_steps": (0, 1e9), "eps": (1e-16, 1), "weight_decay": (0, 10), "clip_grad": (0, 1e6), "layer_decay": (1e-3, 1),
    "head_lr_factor": (0, 1e4), "ema_decay": (0, 1), "image_size": (1, 4096), "drop_path": (0, 0.99), "text_tokens": (3, 1022),
    "flip": (0, 1), "color_jitter": (0, 1), "erase": (0, 1), "mixup": (0, 100), "cutmix": (0, 100), "mix_switch": (0, 1),
    "label_smoothing": (0, 0.99), "mask_prob": (0, 1), "drop_worst_ratio": (0, 0.99), "drop_worst_after": (-1, 1e9),
    "micro_batch": (0, 1e7), "validate_epochs": (0, 1e6), "save_steps": (0, 1e9), "log_steps": (1, 1e9),
}  # fmt: skip


def resolve_section(sections: Mapping[str, Mapping[str, Any]], name: str, source: str) -> dict[str, Any]:
    """The values of a section, over those of the sections that it inherits from.

    Args:
        name: one of ``sections``.  source: of the sections, for messages.

    Raises:
        BenchError: it inherits from no other section.
    """
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    inherited = [name]
    while True:
        section = dict(sections[inherited[-1]])
        parent = section.pop("inherits", None)
        options = {**section.get("options", {}), **options}
        values = {**section, **values}
        if parent is None:
            return {**values, **({"options": options} if options else {})}
        if parent not in sections or parent in inherited:
            raise BenchError(
                f"{source}: section {inherited[-1]} inherits from {parent!r}, which is not another section of this file"
            )
        inherited.append(parent)


def load_recipe(
    family: Family,
    asked: Asked,
    name: str,
    overrides: Mapping[str, str] | None = None,
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recipe:
    """A family's recipe for a task, with ``-o key=value`` strings over it.

    Args:
        name: of the recipe, normally the preset (``"base"``); ``"base-indomain"`` and the like are variants.
        own: recipes of the task, by name; they count where the family has none for it.

    Raises:
        BenchError: no recipes for this task, or none of that name; an unknown key (with the nearest known one), a value that
            does not convert or lies outside its range.
    """
    task, own = asked.task, own or {}
    names = family.recipe_names(task) or tuple(own)
    if not names:
        tasks = ", ".join(family.recipe_tasks())
        mend = (
            f"fine-tune one of: {tasks}"
            if tasks
            else f"{family.title} models have none at all; start from another family's"
        )
        raise BenchError(f"task {task} has no fine-tuning recipe; {mend}")
    if name not in names:
        raise BenchError(f"task {task} has no recipe {name!r}; {did_you_mean(name, names, 'it has')}")
    values = family.recipe(asked, name)
    if values is None:
        values = resolve_section(own, name, f"recipes of task {task}")
    given = {recipe_key(key.replace("-", "_"), f"recipe of {task}"): text for key, text in (overrides or {}).items()}
    return make_recipe({**values, **given}, f"recipe {name} of {task}")


def recipe_keys() -> list[str]:
    """The fields of `Recipe` that ``-o key=value`` sets."""
    return [f.name for f in dataclasses.fields(Recipe) if f.name != "options"]


def is_recipe_key(key: str) -> bool:
    """Whether ``-o key=value`` sets a field of `Recipe`."""
    return key.replace("-", "_") in recipe_keys()


def recipe_key(key: str, owner: str) -> str:
    """The field of `Recipe` that a key names.

    Raises:
        BenchError: there is none, with the nearest one; ``owner`` says whose recipe it is.
    """
    names = [f.name for f in dataclasses.fields(Recipe)]
    if key not in names:
        raise BenchError(f"{owner}: no key {key!r}; {did_you_mean(key, names)}")
    return key


def make_recipe(values: Mapping[str, Any], owner: str) -> Recipe:
    """A checked `Recipe` from TOML values or strings.

    Raises:
        BenchError: unknown key, wrong type, value out of range; ``owner`` says whose recipe it is.
    """
    options = values.get("options")
    if isinstance(options, Mapping):  # numbers and switches of TOML, as `-o` would give them
        values = {**values, "options": {key: str(value) for key, value in options.items()}}
    recipe = fill(Recipe, values, owner, "{owner}: no key {key!r}; {hint}")
    for key, (least, most) in _RANGES.items():
        if not least <= getattr(recipe, key) <= most:
            raise BenchError(f"{owner}: {key} is {getattr(recipe, key)}; give a value from {least:g} to {most:g}")
    if not recipe.epochs and not recipe.steps:
        raise BenchError(f"{owner}: epochs and steps are both 0; give one of them")
    if not 0 < recipe.crop_scale[0] <= recipe.crop_scale[1] <= 1:
        raise BenchError(f"{owner}: crop_scale is {recipe.crop_scale}; give two shares of the area, e.g. 0.5,1.0")
    if not all(0 <= beta < 1 for beta in recipe.betas):
        raise BenchError(f"{owner}: betas are {recipe.betas}; both lie in 0..1")
    if recipe.schedule not in SCHEDULES:
        raise BenchError(f"{owner}: schedule is {recipe.schedule!r}; choose one of: {', '.join(SCHEDULES)}")
    if recipe.lr < recipe.min_lr:
        raise BenchError(f"{owner}: lr {recipe.lr} is below min_lr {recipe.min_lr}")
    return recipe
