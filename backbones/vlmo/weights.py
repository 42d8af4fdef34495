"""The released VLMo files as data.

File names, download location and scores are those of the official README (github.com/microsoft/unilm, folder `vlmo`, commit 768a3c8);
every score stands in results/published/vlmo.csv with its source. All were measured as a dual encoder (retrieval) or by
classification. The authors publish no checksums; see `backbones.pins`.
"""

from __future__ import annotations

from functools import partial

from beit3_bench.backbones.released import PublishedScore, ReleasedFile
from beit3_bench.backbones.wordpiece import VOCABULARY_FILE, VOCABULARY_SHA256

OFFICIAL_LOCATION = "https://github.com/wenhui0924/vlmo_ckpts/releases/download/vlmo"
VOCABULARY_LOCATION = "https://huggingface.co/google-bert/bert-base-uncased/resolve/main"

_LICENCE = "none of its own; the code's is MIT"
_released = partial(
    ReleasedFile, tokenizer="bert-base-uncased", licence=_LICENCE, family="vlmo", location=OFFICIAL_LOCATION
)

_PAIRS = ("COCO captions", "Visual Genome")
_PRETRAINING = "pre-trained on 4M images with captions: COCO, Visual Genome, SBU, Conceptual Captions 3M"
_COCO = ("COCO Karpathy train and restval",)
_SEEN: dict[str, tuple[str, ...]] = {
    "vqav2": ("VQAv2 train", "VQAv2 val (all but 1,000 images)"),
    "nlvr2": ("NLVR2 train",),
    "coco-retrieval": _COCO,
    "flickr30k": ("Flickr30K Karpathy train",),
}
_METRICS: dict[str, tuple[tuple[str, str], ...]] = {
    "vqav2": (("test-dev", "vqa_accuracy"),),
    "nlvr2": (("test-P", "accuracy"),),
    "coco-retrieval": (("test", "TR@1"), ("test", "IR@1")),
    "flickr30k": (("test", "TR@1"), ("test", "IR@1")),
}
_SUFFIXES = {
    "vqav2": (480, "vqa"),
    "nlvr2": (384, "nlvr2"),
    "coco-retrieval": (384, "coco"),
    "flickr30k": (384, "f30k"),
}
_MILLIONS = {"base": 175, "base_plus": 167, "large": 562}
_SCORES: dict[str, dict[str, tuple[float, ...]]] = {
    "base": {"vqav2": (76.6,), "nlvr2": (83.3,), "coco-retrieval": (74.8, 57.2), "flickr30k": (92.3, 79.3)},
    "base_plus": {"vqav2": (78.5,), "nlvr2": (85.1,), "coco-retrieval": (76.3, 58.6), "flickr30k": (93.2, 81.8)},
    "large": {"vqav2": (79.9,), "nlvr2": (86.9,), "coco-retrieval": (78.2, 60.6), "flickr30k": (95.3, 84.5)},
}
"""As in `_METRICS`."""
_FROM_COCO = ("base", "large")
"""Whose Flickr30K files were tuned from their COCO files."""


def _pretrained(preset: str, stage: str) -> ReleasedFile:
    name = f"vlmo_{preset}_patch16_224{stage}"
    return _released(
        name,
        f"{name}.pt",
        "pretrained",
        preset,
        224,
        params=_MILLIONS[preset],
        trained_on=() if stage else _PAIRS,
        note="stage 2 of pre-training: images, then text; no pairs" if stage else _PRETRAINING,
    )


def _fine_tuned(preset: str, task: str) -> ReleasedFile:
    size, suffix = _SUFFIXES[task]
    name = f"vlmo_{preset}_patch16_{size}_{suffix}"
    tuned_twice = task == "flickr30k" and preset in _FROM_COCO
    seen = (_COCO if tuned_twice else ()) + _SEEN[task]
    return _released(
        name,
        f"{name}.pt",
        "fine-tuned",
        preset,
        size,
        task,
        params=_MILLIONS[preset],
        parent=f"vlmo_{preset}_patch16_384_coco" if tuned_twice else f"vlmo_{preset}_patch16_224",
        trained_on=_PAIRS + seen,
        note=f"{_PRETRAINING}; fine-tuned on {', '.join(seen)}",
        published=tuple(
            PublishedScore(task, split, metric, value)
            for (split, metric), value in zip(_METRICS[task], _SCORES[preset][task], strict=True)
        ),
    )


WEIGHTS: tuple[ReleasedFile, ...] = (
    *(_pretrained(preset, stage) for preset in _SCORES for stage in ("", "_stage2")),
    *(_fine_tuned(preset, task) for task in _SUFFIXES for preset in _SCORES),
    ReleasedFile(
        "bert-base-uncased",
        VOCABULARY_FILE,
        "tokenizer",
        note="WordPiece vocabulary of all released VLMo, ALBEF and BLIP files",
        licence="Apache-2.0",
        family="vlmo",
        location=VOCABULARY_LOCATION,
        sha256=VOCABULARY_SHA256,
    ),
)
"""Every released file, and the vocabulary that they go with."""
