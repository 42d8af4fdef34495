"""What the first edition was asked for: the words behind `beit3-bench` of every fixture, for `make.py` and the tests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKPOINTS, RUNS, TRAININGS, EXPECTED = (HERE / name for name in ("checkpoints", "runs", "trainings", "expected"))
QUIET = ("--device", "cpu", "--workers", "0")


@dataclass(frozen=True)
class Asked:
    """One command. data: folder of the tiny world; checkpoint: file below ``checkpoints``; words: what else is given."""

    task: str
    data: str
    checkpoint: str
    words: tuple[str, ...] = ()

    def data_root(self, world: Path) -> str:
        return os.path.normpath(world / self.data)

    def command(self, verb: str, world: Path, checkpoints: Path = CHECKPOINTS) -> list[str]:
        """Words of `run`, `finetune` or `probe`, all but ``--output``."""
        task = [] if verb == "probe" else ["--task", self.task]
        places = ["--checkpoint", str(checkpoints / self.checkpoint), "--data-root", self.data_root(world)]
        return [verb, *task, *places, *QUIET, *self.words]


def options(**values: object) -> tuple[str, ...]:
    """``-o key=value`` for each."""
    return tuple(word for key, value in values.items() for word in ("-o", f"{key}={value}"))


FINISHED = {
    "vqav2": Asked("vqav2", "coco", "vqav2.pth"),
    "vqav2-without-labels": Asked("vqav2", "coco", "vqav2-without-labels.pth"),
    "vqav2-test-dev": Asked("vqav2", "coco", "vqav2.pth", ("--split", "test-dev", "--limit", "8")),
    "nlvr2": Asked("nlvr2", "nlvr2", "nlvr2.pth"),
    "coco-caption": Asked("coco-caption", "coco", "coco-caption.pth", ("--limit", "6", *options(max_length=12))),
    "coco-retrieval": Asked("coco-retrieval", "coco", "coco-retrieval.pth"),
    "imagenet": Asked("imagenet", "imagenet", "coco-retrieval.pth"),
    "imagenet-linear": Asked("imagenet-linear", "imagenet", "imagenet-linear.pth"),
    "imagenet-linear-moved": Asked("imagenet-linear", "../moved/imagenet", "imagenet-linear.pth"),
    "coco-det": Asked("coco-det", "coco", "coco-det.pth", options(engine="native", detections_per_image=3)),
}
"""Finished runs, by folder below ``runs``; ``moved``: data that was copied out of the tiny world, and so counts as real."""

UNFINISHED = {"vqav2-unfinished": Asked("vqav2", "coco", "vqav2.pth", ("--batch-size", "8"))}
"""Runs that were killed after two batches."""

TABLE = ("--systems", "BEiT-3")
COMPARED = ("vqav2", "vqav2-without-labels")

_SMALL = {"image_size": 32, "batch": 8, "warmup_steps": 1, "log_steps": 1, "validate_epochs": 0}
_DETECTOR = {
    **_SMALL, "image_size": 64, "batch": 2, "out_channels": 8, "fc_dim": 8, "proposals": 20, "rois_per_image": 16, "engine": "native",
}  # fmt: skip


def _short(task: str, data: str, checkpoint: str, **values: object) -> Asked:
    small = _DETECTOR if task == "coco-det" else _SMALL
    return Asked(task, data, checkpoint, ("--preset", "tiny", *options(**{**small, **values})))


START = "start.pth"
TRAINED = {
    "coco-retrieval.pth": _short("coco-retrieval", "coco", START, steps=200, batch=32, lr=3e-3),
    "vqav2.pth": _short("vqav2", "coco", "coco-retrieval.pth", steps=200, batch=32, lr=6e-3),
    "nlvr2.pth": _short("nlvr2", "nlvr2", "coco-retrieval.pth", steps=60, batch=16, lr=3e-3),
    "coco-caption.pth": _short("coco-caption", "coco", "coco-retrieval.pth", steps=250, batch=32, lr=6e-3),
    "imagenet-linear.pth": _short("imagenet-linear", "imagenet", "coco-retrieval.pth", steps=100, batch=40, lr=6e-3),
    "coco-det.pth": _short("coco-det", "coco", "coco-retrieval.pth", steps=400, lr=6e-3),
}
"""Fine-tuned checkpoints, in the order in which they were made: each is a ``best.pth``."""

OTHER_SEED = ("--seed", "1")
"""Of ``vqav2-without-labels.pth``, which is otherwise trained as ``vqav2.pth``."""

KILLED = {
    "vqav2": _short("vqav2", "coco", "coco-retrieval.pth", steps=6, save_steps=3, lr=3e-3),
    "coco-det": _short("coco-det", "coco", "coco-retrieval.pth", steps=4, save_steps=2, lr=3e-3),
}
"""Trainings that were killed behind their first saved state, by folder below ``trainings``."""

GONE_ON = {
    "vqav2": _short("vqav2", "coco", "vqav2.pth", steps=2),
    "imagenet-linear": _short("imagenet-linear", "imagenet", "imagenet-linear.pth", steps=2),
    "coco-retrieval": _short("coco-retrieval", "coco", "coco-retrieval.pth", steps=2),
    "coco-det": _short("coco-det", "coco", "coco-det.pth", steps=2),
}
"""Trainings that started from a fine-tuned checkpoint; of these the logs are kept."""

PROBES = {
    "knn": Asked("probe", "imagenet", "coco-retrieval.pth", ("--method", "knn", "--k", "5", "--json")),
    "linear": Asked("probe", "imagenet", "vqav2.pth", ("--method", "linear", "--on", "patches", "-C", "10", "--json")),
}
