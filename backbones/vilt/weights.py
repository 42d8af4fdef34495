"""The released ViLT files as data.

File names and location are those of the official README (github.com/dandelin/ViLT, release `200k`), scores those of its EVAL.md; every
score stands in results/published/vilt.csv with its source. The authors publish no checksums, see `backbones.pins`.
"""

from __future__ import annotations

from functools import partial

from beit3_bench.backbones.released import PublishedScore, ReleasedFile, recalls

LOCATION = "https://github.com/dandelin/ViLT/releases/download/200k"
_PAIRS = ("COCO captions", "Visual Genome")
_PROTOCOL = "all pairs"
_PRETRAINING = "pre-trained on images with captions: COCO, Visual Genome, SBU, Conceptual Captions 3M"
_released = partial(
    ReleasedFile,
    preset="base",
    image_size=384,
    tokenizer="bert-base-uncased",
    licence="Apache-2.0",
    family="vilt",
    location=LOCATION,
)

PARENT = "vilt_200k_mlm_itm"

WEIGHTS: tuple[ReleasedFile, ...] = (
    _released(
        PARENT,
        "vilt_200k_mlm_itm.ckpt",
        "pretrained",
        params=112,
        trained_on=_PAIRS,
        note=_PRETRAINING,
        zero_shot=("flickr30k", "coco-retrieval"),
        protocol=_PROTOCOL,
    ),
    _released(
        "vilt_irtr_coco",
        "vilt_irtr_coco.ckpt",
        "fine-tuned",
        task="coco-retrieval",
        params=112,
        parent=PARENT,
        trained_on=(*_PAIRS, "COCO Karpathy train and restval"),
        note=_PRETRAINING,
        published=recalls("coco-retrieval", (61.62, 86.32, 92.70, 42.99, 72.84, 83.07)),
        protocol=_PROTOCOL,
    ),
    _released(
        "vilt_irtr_f30k",
        "vilt_irtr_f30k.ckpt",
        "fine-tuned",
        task="flickr30k",
        params=112,
        parent=PARENT,
        trained_on=(*_PAIRS, "Flickr30K Karpathy train"),
        note=_PRETRAINING,
        published=recalls("flickr30k", (83.60, 96.80, 98.60, 64.54, 88.86, 93.92)),
        protocol=_PROTOCOL,
    ),
    _released(
        "vilt_vqa",
        "vilt_vqa.ckpt",
        "fine-tuned",
        task="vqav2",
        params=117,
        parent=PARENT,
        trained_on=(*_PAIRS, "VQAv2 train", "VQAv2 val", "Visual Genome QA"),
        note=_PRETRAINING,
        published=(PublishedScore("vqav2", "test-dev", "vqa_accuracy", 71.32),),
    ),
    _released(
        "vilt_nlvr2",
        "vilt_nlvr2.ckpt",
        "fine-tuned",
        task="nlvr2",
        params=117,
        parent=PARENT,
        trained_on=(*_PAIRS, "NLVR2 train"),
        note=_PRETRAINING,
        published=(
            PublishedScore("nlvr2", "dev", "accuracy", 75.65),
            PublishedScore("nlvr2", "test-P", "accuracy", 76.52),
        ),
    ),
)
"""Every released file that a task here can be asked of."""
