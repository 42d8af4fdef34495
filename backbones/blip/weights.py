"""The released BLIP files as data: the authors', and LAVIS' own trainings.

File names and locations are those of the official README (github.com/salesforce/BLIP, commit 056a169) and of LAVIS'
`configs/models/blip_*.yaml` (github.com/salesforce/LAVIS, commit 506965b). Every score stands in results/published/blip.csv with its
source; neither house publishes checksums, see `backbones.pins`.
"""

from __future__ import annotations

from functools import partial

from beit3_bench.backbones.released import PublishedScore, ReleasedFile, recalls

AUTHORS = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models"
LAVIS = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP"

_PAIRS = ("COCO captions", "Visual Genome")
_VQA = ("VQAv2 train", "VQAv2 val", "Visual Genome QA")
_COCO = ("COCO Karpathy train and restval",)
_FLICKR = ("Flickr30K Karpathy train",)
_SEEN = {
    "vqav2": _VQA, "nlvr2": ("NLVR2 train",), "coco-retrieval": _COCO, "flickr30k": _FLICKR, "coco-caption": _COCO
}  # fmt: skip
_PROTOCOLS = {
    "coco-retrieval": "re-ranked 256", "flickr30k": "re-ranked 128", "vqav2": "ranking 128", "coco-caption": "3 beams"
}  # fmt: skip
_MILLIONS = {"vqav2": 361, "nlvr2": 259}
_released = partial(
    ReleasedFile, tokenizer="bert-base-uncased", licence="BSD-3-Clause", family="blip", location=AUTHORS
)


def _pretrained(stem: str, preset: str, note: str) -> ReleasedFile:
    return _released(
        f"blip_{stem}",
        f"{stem}.pth",
        "pretrained",
        preset,
        224,
        params=446 if preset == "large" else 224,
        trained_on=_PAIRS,
        note=f"pre-trained on {note} images with captions, COCO and Visual Genome among them",
    )


def _tuned(
    stem: str, task: str, parent: str, published: tuple[PublishedScore, ...] = (), lavis: bool = False
) -> ReleasedFile:
    preset = "large" if "large" in parent and "capfilt" not in parent else "base"
    return _released(
        stem if lavis else f"blip_{stem}",
        f"{stem}.pth",
        "fine-tuned",
        preset,
        480 if task == "vqav2" else 384,
        task,
        params=_MILLIONS.get(task, 446 if preset == "large" else 224),
        parent=f"blip_{parent}",
        trained_on=_PAIRS + _SEEN[task],
        note=f"{'LAVIS own training' if lavis else 'fine-tuned by the authors'} on {', '.join(_SEEN[task])}",
        published=published,
        zero_shot=("nocaps",) if task == "coco-caption" else (),
        location=LAVIS if lavis else AUTHORS,
        protocol=_PROTOCOLS.get(task, ""),
    )


def _captions(bleu: float, cider: float) -> tuple[PublishedScore, ...]:
    return tuple(
        PublishedScore("coco-caption", "test", name, value) for name, value in (("BLEU-4", bleu), ("CIDEr", cider))
    )


def _answers(dev: float, std: float) -> tuple[PublishedScore, ...]:
    values = (("test-dev", dev), ("test-std", std))
    return tuple(PublishedScore("vqav2", split, "vqa_accuracy", value) for split, value in values)


WEIGHTS: tuple[ReleasedFile, ...] = (
    _pretrained("model_base_14M", "base", "14M"),
    _pretrained("model_base", "base", "129M"),
    _pretrained("model_base_capfilt_large", "base", "129M"),
    _pretrained("model_large", "large", "129M"),
    _tuned(
        "model_base_retrieval_coco",
        "coco-retrieval",
        "model_base",
        recalls("coco-retrieval", (81.9, 95.4, 97.8, 64.3, 85.7, 91.5)),
    ),
    _tuned(
        "model_large_retrieval_coco",
        "coco-retrieval",
        "model_large",
        recalls("coco-retrieval", (82.4, 95.4, 97.9, 65.1, 86.3, 91.8)),
    ),
    _tuned(
        "model_base_retrieval_flickr",
        "flickr30k",
        "model_base",
        recalls("flickr30k", (97.3, 99.9, 100.0, 87.3, 97.6, 98.9)),
    ),
    _tuned(
        "model_large_retrieval_flickr",
        "flickr30k",
        "model_large",
        recalls("flickr30k", (97.4, 99.8, 99.9, 87.6, 97.7, 99.0)),
    ),
    _tuned("model_base_caption_capfilt_large", "coco-caption", "model_base_capfilt_large", _captions(39.7, 133.3)),
    _tuned("model_large_caption", "coco-caption", "model_large", _captions(40.4, 136.7)),
    _tuned("model_vqa", "vqav2", "model_base", _answers(78.24, 78.17)),
    _tuned("model_base_vqa_capfilt_large", "vqav2", "model_base_capfilt_large", _answers(78.25, 78.32)),
    _tuned(
        "model_base_nlvr",
        "nlvr2",
        "model_base",
        (PublishedScore("nlvr2", "dev", "accuracy", 82.48), PublishedScore("nlvr2", "test-P", "accuracy", 83.08)),
    ),
    _tuned("blip_coco_retrieval", "coco-retrieval", "model_base_capfilt_large", lavis=True),
    _tuned("blip_flickr_retrieval", "flickr30k", "model_base_capfilt_large", lavis=True),
    _tuned("blip_coco_caption_base", "coco-caption", "model_base_capfilt_large", lavis=True),
)
"""Every released file that a task can be asked of."""
