"""What a tiny model learns from a tiny world, and what it is asked then: the experiments of `beit3-bench demo`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Experiment:
    """One evaluation.

    trained_on: the task whose training split the model learns from.
    start: the task whose model that training starts from; None = random weights.
    split: what is evaluated; None = the task's default split.
    """

    task: str
    trained_on: str
    start: str | None = "flickr30k"
    split: str | None = None


EXPERIMENTS = (
    Experiment("flickr30k", "flickr30k", start=None),
    Experiment("coco-det", "coco-det"),
    Experiment("nlvr2", "nlvr2"),
    Experiment("vqav2", "vqav2", split="minival"),  # the published recipe trains on the rest of val
    Experiment("coco-caption", "coco-caption"),
    Experiment("nocaps", "coco-caption"),  # has no training split; the published checkpoints are COCO captioners, too
    Experiment("ade20k-seg", "ade20k-seg"),
    Experiment("snli-ve", "snli-ve"),
    Experiment("coco-retrieval", "coco-retrieval"),
    Experiment("sugarcrepe", "coco-retrieval"),  # has no training split, as nobody trains on it
    Experiment("winoground", "coco-retrieval"),
    Experiment("aro", "coco-retrieval", split="vg-attribution"),
    Experiment("imagenet-linear", "imagenet-linear"),
    Experiment("imagenet", "imagenet"),
)
"""In the order in which they are begun: a model that others start from comes first, then what takes longest."""

QUICK = "flickr30k"
"""The one task of a quick look: it needs no other's model."""
