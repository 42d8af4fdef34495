"""The released BEiT-3 files as data.

File names, download location, published scores and parameter counts are those of the official README
(github.com/microsoft/unilm, folder `beit3`). The authors publish no checksums; see `backbones.pins`.
"""

from __future__ import annotations

from functools import partial

from beit3_bench.backbones.released import PublishedScore, ReleasedFile

OFFICIAL_LOCATION = "https://github.com/addf400/files/releases/download/beit3"
TOKENIZER_FILE = "beit3.spm"

_released = partial(ReleasedFile, tokenizer=TOKENIZER_FILE, family="beit3", location=OFFICIAL_LOCATION)

_WEB = "pre-trained on ImageNet-21K images, 160 GB of text and web pairs (LAION-400M, LAION-2B-en, COYO-700M, CC15M)"
_PRETRAINED = {
    "": (_WEB, ()),
    "itc_": (f"{_WEB}; then image-text contrastive intermediate tuning", ()),
    "indomain_": (f"{_WEB}; then masked modelling on COCO and Visual Genome pairs", ("COCO captions", "Visual Genome")),
}
_VQA_DATA = ("VQAv2 train", "VQAv2 val (all but 1,000 images)")
_FINE_TUNING_DATA: dict[str, tuple[str, ...]] = {
    "imagenet-linear": ("ImageNet-1K train",),
    "vqav2": _VQA_DATA,
    "nlvr2": ("NLVR2 train",),
    "coco-caption": ("COCO Karpathy train and restval",),
    "nocaps": ("COCO Karpathy train and restval",),
    "coco-retrieval": ("COCO Karpathy train and restval",),
    "flickr30k": ("Flickr30K Karpathy train",),
}
_METRICS: dict[str, tuple[tuple[str, str], ...]] = {
    "imagenet-linear": (("val", "top1"), ("val", "top5")),
    "vqav2": (("test-dev", "vqa_accuracy"), ("test-std", "vqa_accuracy")),
    "nlvr2": (("dev", "accuracy"), ("test-P", "accuracy")),
    "coco-caption": (("test", "CIDEr"),),
    "nocaps": (("val", "CIDEr"),),
    "coco-retrieval": (("test", "IR@1"), ("test", "TR@1")),
    "flickr30k": (("test", "IR@1"), ("test", "TR@1")),
}

# preset, stage, millions of parameters
_PRETRAINED_FILES = (
    ("base", "", 276),
    ("large", "", 746),
    ("base", "itc_", 222),
    ("large", "itc_", 674),
    ("base", "indomain_", 276),
    ("large", "indomain_", 746),
)

# task, preset, stage in the file name, stage of the parent, size, suffix, millions of parameters, scores as in _METRICS
_FINE_TUNED_FILES = (
    ("imagenet-linear", "base", "", "", 224, "in1k", 87, (85.4, 97.6)),
    ("imagenet-linear", "base", "indomain_", "indomain_", 224, "in1k", 87, (85.4, 97.6)),
    ("imagenet-linear", "large", "", "", 224, "in1k", 305, (87.6, 98.3)),
    ("imagenet-linear", "large", "indomain_", "indomain_", 224, "in1k", 305, (87.5, 98.3)),
    ("vqav2", "base", "", "", 480, "vqa", 228, (77.65,)),
    ("vqav2", "base", "indomain_", "indomain_", 480, "vqa", 228, (78.46,)),
    ("vqav2", "large", "", "", 480, "vqa", 683, (81.85,)),
    ("vqav2", "large", "indomain_", "indomain_", 480, "vqa", 683, (82.53,)),
    ("vqav2", "large", "indomain_", "indomain_", 768, "vgqaaug_vqa", 684, (82.97, 83.03)),
    ("nlvr2", "base", "", "", 224, "nlvr2", 226, (83.6, 84.4)),
    ("nlvr2", "base", "indomain_", "indomain_", 224, "nlvr2", 226, (84.6, 85.3)),
    ("nlvr2", "large", "", "", 224, "nlvr2", 681, (88.5, 89.4)),
    ("nlvr2", "large", "indomain_", "indomain_", 224, "nlvr2", 681, (89.2, 90.0)),
    ("coco-caption", "base", "", "", 480, "coco_captioning", 271, (133.6,)),
    ("coco-caption", "base", "indomain_", "indomain_", 480, "coco_captioning", 271, (135.0,)),
    ("coco-caption", "large", "", "", 480, "coco_captioning", 739, (143.2,)),
    ("nocaps", "base", "", "", 480, "nocaps", 271, (104.4,)),
    ("nocaps", "base", "indomain_", "indomain_", 480, "nocaps", 271, (105.6,)),
    ("nocaps", "large", "", "", 480, "nocaps", 739, (120.2,)),
    ("coco-retrieval", "base", "", "itc_", 384, "coco_retrieval", 222, (61.4, 79.1)),
    ("coco-retrieval", "large", "", "itc_", 384, "coco_retrieval", 675, (63.4, 82.1)),
    ("flickr30k", "base", "", "itc_", 384, "f30k_retrieval", 222, (86.2, 96.3)),
    ("flickr30k", "large", "", "itc_", 384, "f30k_retrieval", 675, (88.1, 97.2)),
)


def _pretrained(preset: str, stage: str, params: int) -> ReleasedFile:
    name = f"beit3_{preset}_{stage}patch16_224"
    note, seen = _PRETRAINED[stage]
    tasks = ("imagenet", "coco-retrieval", "flickr30k") if stage == "itc_" else ()
    return _released(
        name, f"{name}.pth", "pretrained", preset, 224, params=params, trained_on=seen, note=note, zero_shot=tasks
    )


def _fine_tuned(
    task: str, preset: str, stage: str, origin: str, size: int, suffix: str, params: int, scores: tuple[float, ...]
) -> ReleasedFile:
    name = f"beit3_{preset}_{stage}patch16_{size}_{suffix}"
    note, seen = _PRETRAINED[origin]
    data = _FINE_TUNING_DATA[task] + (("Visual Genome QA",) if "vgqa" in suffix else ())
    return _released(
        name,
        f"{name}.pth",
        "fine-tuned",
        preset,
        size,
        task,
        "crop" if task == "imagenet-linear" else "squash",
        params,
        parent=f"beit3_{preset}_{origin}patch16_224",
        trained_on=seen + data,
        note=f"{note}; fine-tuned on {', '.join(data)}",
        published=tuple(
            PublishedScore(task, split, metric, value)
            for (split, metric), value in zip(_METRICS[task], scores, strict=False)
        ),
    )


WEIGHTS: tuple[ReleasedFile, ...] = (
    *(_pretrained(*row) for row in _PRETRAINED_FILES),
    *(_fine_tuned(*row) for row in _FINE_TUNED_FILES),
    _released("beit3.spm", TOKENIZER_FILE, "tokenizer", note="SentencePiece model shared by all released weights"),
)
"""Every released file, in the order of the official README."""
