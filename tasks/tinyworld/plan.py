"""How much of everything a tiny world holds, and what its writers share."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from beit3_bench.errors import BenchError

if TYPE_CHECKING:
    from beit3_bench.tasks.tinyworld.render import Painter
    from beit3_bench.tasks.tinyworld.scenes import Scene, SceneSource


@dataclass(frozen=True)
class Counts:
    """Pictures per split; ``nlvr2_*``: sets (of four picture pairs); ``winoground``, ``aro``: questions; ``vocabulary``: pieces at most."""

    coco_train: int = 2000
    coco_restval: int = 200
    coco_val: int = 100
    coco_test: int = 100
    coco_unlabelled: int = 80
    flickr30k_train: int = 1500
    flickr30k_val: int = 100
    flickr30k_test: int = 100
    imagenet_train_per_class: int = 80
    imagenet_val_per_class: int = 20
    nlvr2_train: int = 500
    nlvr2_dev: int = 50
    nlvr2_test1: int = 50
    nocaps_val: int = 90
    nocaps_test: int = 30
    winoground: int = 90
    aro: int = 120
    ade20k_training: int = 500
    ade20k_validation: int = 100
    vocabulary: int = 400


PRESETS = {
    "tiny": Counts(),
    "mini": Counts(
        coco_train=60,
        coco_restval=12,
        coco_val=12,
        coco_test=12,
        coco_unlabelled=8,
        flickr30k_train=40,
        flickr30k_val=10,
        flickr30k_test=10,
        imagenet_train_per_class=4,
        imagenet_val_per_class=2,
        nlvr2_train=8,
        nlvr2_dev=4,
        nlvr2_test1=4,
        nocaps_val=9,
        nocaps_test=4,
        winoground=9,
        aro=54,
        ade20k_training=12,
        ade20k_validation=6,
        vocabulary=300,
    ),
}


def resolve(size: str, knobs: dict[str, int]) -> Counts:
    """The counts of a preset with single ones replaced.

    Raises:
        BenchError: unknown preset or knob, or a count that is too small to make a world of.
    """
    if size not in PRESETS:
        raise BenchError(f"tiny world: no size {size!r}; known: {', '.join(PRESETS)}")
    known = asdict(PRESETS[size])
    for name, value in knobs.items():
        if name not in known:
            raise BenchError(f"tiny world: no knob {name!r}; known: {', '.join(known)}")
        least = 250 if name == "vocabulary" else 3
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BenchError(f"tiny world: {name} is {value!r}; give a whole number, at least {least}")
    return replace(PRESETS[size], **knobs)


@dataclass
class CocoPicture:
    """A picture of the COCO folder. subset: its 2014 folder; split: its Karpathy split (None: test2015)."""

    id: int
    scene: Scene
    subset: str
    split: str | None

    @property
    def filename(self) -> str:
        return f"COCO_{self.subset}_{self.id:012d}.jpg"

    @property
    def filename_2017(self) -> str:
        return f"{self.id:012d}.jpg"


@dataclass
class Workshop:
    """What the writers share: where to write, how many, the scenes drawn so far, the text written so far."""

    root: Path
    seed: int
    counts: Counts
    painter: Painter
    source: SceneSource
    text: list[str] = field(default_factory=list)
    coco: list[CocoPicture] = field(default_factory=list)

    def rng(self, name: str) -> Random:
        """A generator of its own for ``name``: a change of one dataset leaves the others as they are."""
        return Random(f"{self.seed}/{name}")

    def folder(self, *parts: str) -> Path:
        path = self.root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path


def write_json(path: Path, value: Any) -> None:
    """Compact UTF-8 JSON, keys in the order given."""
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def link(source: Path, target: Path) -> None:
    """A second name for the same picture; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
